"""The server's worker with a segmenter that has no model; what a scan's name holds steers it. Run as a program."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import FakeCase, FakeSegmenter


class SlowCase(FakeCase):
    """Hangs where the prompt is of a cyst, dies where it is of a metastasis, and prints where it should not."""

    def segment(self, prompts: Any, *args: Any, progress: Any = None, **options: Any) -> Any:
        print("noise on stdout")
        progress("encode", 0.25)
        if any("cyst" in text for text in prompts):
            time.sleep(600)
        if any("metastasis" in text for text in prompts):
            sys.stdout.flush()
            import os

            os._exit(9)
        return super().segment(prompts, *args, progress=progress, **options)


class SlowSegmenter(FakeSegmenter):
    """Makes slow cases."""

    def encode(self, *args: Any, **options: Any) -> SlowCase:
        case = super().encode(*args, **options)
        return SlowCase(case.volume, case.modality)


if __name__ == "__main__":
    module = types.ModuleType("diffugts.segmenter")
    module.Segmenter = SlowSegmenter  # type: ignore[attr-defined]
    sys.modules["diffugts.segmenter"] = module
    from diffugts.serve.worker import main

    main()
