"""Which cases are measured: a `cases.json`, or a public dataset as it is downloaded.

`cases.json` is ``{"cases": [{"id", "images": {name: path}, "tumor": path or null, "modality", "anatomy", "prompt",
…}]}`` with paths relative to it; "tumor": null says that the scan holds none. "patient" may tell which scans belong
together; otherwise the id does, without the image's name in it (`sarcoma_ct_001` and `sarcoma_t1_001`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from diffugts.errors import InputError
from diffugts.prompts import ANY_TUMOR

"""Asked of scans that have no prompt because they have no tumour."""


@dataclass(frozen=True)
class CaseItem:
    """One scan with its truth.

    Attributes:
        id: unique in a list of cases.
        image: the scan's file or DICOM folder.
        tumor: file of the expert's mask on the scan's grid; None: the scan holds no tumour.
        labels: the mask's values that mean tumour; empty: every value but 0.
        modality: "CT" or "MR".
        anatomy: where the tumour lies, as in the category's name.
        prompt: what is asked.
        patient: scans of one patient are drawn together in the bootstrap.
    """

    id: str
    image: Path
    tumor: Path | None
    modality: str
    anatomy: str
    prompt: str
    patient: str
    labels: tuple[int, ...] = ()

    @property
    def category(self) -> str:
        """Anatomy and modality: "lung CT"."""
        return f"{self.anatomy} {self.modality}"


def read_cases(path: Path) -> list[CaseItem]:
    """The cases of a `cases.json`.

    Raises:
        InputError: no such file, no JSON, or a case without one of its keys.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["cases"]
        found = [_item(case, path.parent) for case in listed]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a cases.json.") from error
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(
            f"{path} is no list of cases ({type(error).__name__}: {error}); it needs "
            '{"cases": [{"id", "images", "tumor", "modality", "anatomy", "prompt"}]}.'
        ) from error
    return _unique(found, path)


def _item(case: dict[str, Any], root: Path) -> CaseItem:
    name, image = next(iter(case["images"].items()))
    parts = [part for part in case["id"].split("_") if part != name]
    return CaseItem(
        id=str(case["id"]),
        image=root / image,
        tumor=root / case["tumor"] if case["tumor"] else None,
        modality=str(case["modality"]).upper(),
        anatomy=str(case["anatomy"]),
        prompt=case.get("prompt") or ANY_TUMOR,
        patient=str(case.get("patient") or "_".join(parts)),
        labels=tuple(case.get("labels") or ()),
    )


def _unique(cases: list[CaseItem], source: Path) -> list[CaseItem]:
    if not cases:
        raise InputError(f"{source} holds no case; check the path.")
    ids = [case.id for case in cases]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise InputError(f"{source} has the case {twice!r} twice; give each its own id.")
    return cases


def choose(cases: Iterable[CaseItem], only: str = "", limit: int | None = None) -> list[CaseItem]:
    """The cases whose id or category holds ``only`` (or fits it, with * and ?), at most ``limit`` of each category.

    Raises:
        InputError: none is left.
    """
    pattern = only if any(sign in only for sign in "*?[") else f"*{only}*"
    taken: dict[str, int] = {}
    kept = []
    for case in cases:
        if fnmatch(case.id, pattern) or fnmatch(case.category, pattern):
            taken[case.category] = taken.get(case.category, 0) + 1
            if limit is None or taken[case.category] <= limit:
                kept.append(case)
    if not kept:
        raise InputError(f"no case fits {only!r}; it is matched against ids and categories such as 'lung CT'.")
    return kept


# --- datasets as downloaded -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One task of the Medical Segmentation Decathlon: its folder, where the tumours are, and their label."""

    folder: str
    anatomy: str
    prompt: str
    label: int


MSD = (
    Task("Task03_Liver", "liver", "liver tumor", 2),
    Task("Task06_Lung", "lung", "lung tumor", 1),
    Task("Task07_Pancreas", "pancreas", "pancreas tumor", 2),
    Task("Task08_HepaticVessel", "hepatic vessel", "hepatic vessel tumor", 2),
    Task("Task10_Colon", "colon", "colon cancer", 1),
)
"""The paper's five tasks. With KiTS and BraTS they are its seven categories."""

KITS_TUMOUR = 2  # 1 is kidney, 3 is cyst
FLAIR = ("flair", "t2f")  # as it is called up to 2021, and from 2023 on


def msd(root: Path) -> Iterator[CaseItem]:
    """Tasks 03, 06, 07, 08 and 10, those of them that are there; ``root`` holds them, or is one."""
    for task in MSD:
        places = (path for path in (root / task.folder, root) if path.name == task.folder and path.is_dir())
        folder = next(places, None)
        if folder is None:
            continue
        label = _tumour_label(folder / "dataset.json", task.label)
        for truth in sorted((folder / "labelsTr").glob("[!.]*.nii*")):
            image = folder / "imagesTr" / truth.name
            if image.exists():
                name = _stem(truth)
                yield CaseItem(name, image, truth, "CT", task.anatomy, task.prompt, name, (label,))


def _tumour_label(dataset: Path, default: int) -> int:
    """The label that `dataset.json` calls tumour or cancer; the known one where it says nothing."""
    try:
        labels = json.loads(dataset.read_text(encoding="utf-8"))["labels"]
        named = [int(value) for value, name in labels.items() if re.search("tumou?r|cancer", name, re.IGNORECASE)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return default
    return named[0] if len(named) == 1 else default


def kits(root: Path) -> Iterator[CaseItem]:
    """KiTS19 to 23: ``case_00000/imaging.nii.gz`` and ``segmentation.nii.gz``, in ``root`` or its `dataset` folder."""
    folders = (path for base in (root, root / "dataset") for path in sorted(base.glob("case_*")))
    for folder in folders:
        image, truth = folder / "imaging.nii.gz", folder / "segmentation.nii.gz"
        if image.exists() and truth.exists():
            name = folder.name
            yield CaseItem(name, image, truth, "CT", "kidney", "kidney tumor", name, (KITS_TUMOUR,))


def brats(root: Path) -> Iterator[CaseItem]:
    """BraTS of any year: a folder with a FLAIR (`flair` or `t2f`) and a `seg`; the whole tumour is every label."""
    masks = (path for path in root.rglob("*.nii*") if re.search(r"[-_.]segm?$", _stem(path), re.IGNORECASE))
    for truth in sorted(masks):
        stem = re.sub(r"[-_.]segm?$", "", _stem(truth), flags=re.IGNORECASE)
        beside = {_stem(path).lower(): path for path in truth.parent.glob("[!.]*.nii*")}
        found = [path for name, path in beside.items() if re.search(rf"[-_]({'|'.join(FLAIR)})$", name)]
        own = [path for path in found if _stem(path).startswith(stem)] or found
        if own and not truth.name.startswith("."):
            name = truth.parent.name if len(found) == 1 else stem
            yield CaseItem(name, own[0], truth, "MR", "brain", "brain tumor", name)


DATASETS: dict[str, Callable[[Path], Iterator[CaseItem]]] = {"msd": msd, "kits": kits, "brats": brats}


def read_dataset(kind: str, root: Path) -> list[CaseItem]:
    """The cases of a dataset as downloaded.

    Args:
        kind: a key of ``DATASETS``. root: the folder that was unpacked.

    Raises:
        InputError: nothing of the kind is there.
    """
    found = list(DATASETS[kind](root))
    if not found:
        layouts = {
            "msd": "Task03_Liver/imagesTr and labelsTr, and so on",
            "kits": "case_00000/imaging.nii.gz and segmentation.nii.gz",
            "brats": "a folder per patient with …flair.nii.gz (or …t2f.nii.gz) and …seg.nii.gz",
        }
        raise InputError(f"{root} holds no {kind} cases; expected {layouts[kind]}.")
    return _unique(found, root)


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name)
