"""Tissue labels of the procedural patients, and the organs that prompts name."""

from __future__ import annotations

_NAMES = (
    "background", "skin", "fat", "muscle", "cortical bone", "marrow", "cartilage", "lung", "airway",
    "artery", "vein", "lung vessel", "myocardium", "blood pool", "liver", "liver vessel",
    "gallbladder", "spleen", "stomach wall", "gas", "bowel fluid", "stool", "kidney cortex",
    "kidney medulla", "renal pelvis", "pancreas", "adrenal", "bowel wall", "colon wall", "bladder",
    "pelvic organ", "spinal canal", "spinal cord", "oesophagus", "thyroid", "breast", "lymph node",
    "table", "grey matter", "white matter", "csf", "ventricle", "deep grey", "cerebellar grey",
    "cerebellar white", "brain stem", "eye", "lens", "sinus", "mucosa", "fascia", "scalp", "dura",
    "airway wall", "gland", "visceral fat",
)  # fmt: skip

LABELS: dict[int, str] = dict(enumerate(_NAMES))
"""Label value -> tissue name, the values of `Sample.labels`."""

L: dict[str, int] = {name: value for value, name in LABELS.items()}
"""Tissue name -> label value."""

ORGANS: dict[str, tuple[str, ...]] = {
    "lung": ("lung", "lung vessel"),
    "liver": ("liver", "liver vessel"),
    "kidney": ("kidney cortex", "kidney medulla", "renal pelvis"),
    "spleen": ("spleen",),
    "pancreas": ("pancreas",),
    "colon": ("colon wall",),
    "stomach": ("stomach wall",),
    "adrenal": ("adrenal",),
    "bladder": ("bladder",),
    "breast": ("breast",),
    "brain": (
        "grey matter", "white matter", "deep grey", "cerebellar grey", "cerebellar white", "brain stem",
    ),
    "bone": ("cortical bone", "marrow"),
    "soft tissue": ("muscle", "fascia"),
    "lymph node": ("lymph node",),
}  # fmt: skip
"""Organ name as prompts say it -> the tissues it is made of."""


def values(names: tuple[str, ...]) -> tuple[int, ...]:
    """Label values of tissue names."""
    return tuple(L[name] for name in names)
