"""What users get: the wheel's contents, the public names, the versions that hold together."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import diffugts

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "diffugts"

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in the project's folder")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_carries_all_that_the_package_has(wheel: zipfile.ZipFile):
    """Weights, cards, lexicon and py.typed among them: whatever lies in the package is in the wheel."""
    carried = {name for name in wheel.namelist() if ".dist-info/" not in name}
    present = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert carried == present
    for name in ("py.typed", "lexicon.json", "models/text/minilm.safetensors", "models/compact/config.json"):
        assert f"diffugts/{name}" in carried


def test_the_wheel_carries_each_weight_file_that_a_record_names(wheel: zipfile.ZipFile):
    from diffugts.backbone.weights import available

    carried = set(wheel.namelist())
    for model in available():
        for file in model.files:
            assert f"diffugts/models/{model.name}/{file.path}" in carried


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile):
    folder = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nVersion: {diffugts.__version__}\n" in metadata
    assert "\nRequires-Python: >=3.10\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "diffugts = diffugts.cli:entry" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_the_package_is_small_enough_to_ship(wheel: zipfile.ZipFile):
    assert sum(entry.compress_size for entry in wheel.infolist()) < 90e6  # PyPI takes 100 MB; each head is 10


def test_every_public_name_can_be_imported():
    for name in diffugts.__all__:
        assert getattr(diffugts, name) is not None
    assert set(diffugts.__all__) <= set(dir(diffugts))
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = diffugts.Segmentor


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, diffugts; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert {"torch", "monai", "numpy"}.isdisjoint(done.stdout.split())


def test_constraints_pin_versions_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pattern = re.compile(r'[a-z0-9-]+==[\w.]+( ; python_version (<|>=) "3\.11")?')
    assert [line for line in pins if not pattern.fullmatch(line)] == []
    assert "torch==2.13.0" in pins


def test_every_requirement_is_pinned_for_every_python():
    """On 3.10 and on later ones alike: no name is left to what the index has today."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    names = {name.lower() for name in re.findall(r'"([A-Za-z0-9-]+)\s*[><=]', block)}
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            pins.setdefault(line.split("==")[0], set()).add(line.partition("python_version ")[2].split(" ")[0])
    for name in names:
        assert pins.get(name) in ({""}, {"<", ">="}), name


def test_no_file_names_a_folder_of_the_machine_it_was_made_on():
    pattern = re.compile(r"/(work|root|home/\w+|Users/\w+)/")
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.json"), *PACKAGE.rglob("*.md"), *ROOT.glob("*.*")]
    found = [path for path in files if path.is_file() and pattern.search(path.read_text("utf-8", "ignore"))]
    assert found == []
