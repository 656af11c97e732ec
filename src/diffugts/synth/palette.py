"""How bright each tissue is: CT by contrast phase, MR by sequence, with the spread between scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffugts.errors import InputError
from diffugts.synth.field import F32
from diffugts.synth.labels import LABELS, L

PHASES = ("none", "arterial", "portal", "late")
SEQUENCES = ("t1", "t1c", "t2", "flair", "stir", "random")


@dataclass(frozen=True, eq=False)
class Palette:
    """Per label: mean intensity, amplitudes of the fine and the coarse texture; (n_labels,) float32 each."""

    modality: str
    name: str
    mean: F32
    fine: F32
    coarse: F32


# HU by phase (none, arterial, portal, late), spread between patients, fine and coarse texture
_CT: dict[str, tuple[tuple[float, float, float, float], float, float, float]] = {
    "background": ((-1000, -1000, -1000, -1000), 0, 0, 0),
    "skin": ((10, 15, 20, 20), 15, 8, 0),
    "scalp": ((20, 25, 30, 30), 10, 10, 5),
    "fat": ((-105, -105, -105, -104), 7, 3, 4),
    "visceral fat": ((-102, -102, -101, -100), 7, 4, 6),
    "muscle": ((52, 56, 62, 60), 6, 6, 6),
    "fascia": ((20, 22, 25, 25), 12, 6, 0),
    "cortical bone": ((800, 800, 800, 800), 160, 60, 60),
    "marrow": ((190, 190, 195, 195), 70, 35, 25),
    "cartilage": ((85, 88, 92, 92), 15, 10, 6),
    "lung": ((-850, -845, -840, -840), 35, 14, 14),
    "airway": ((-990, -990, -990, -990), 8, 0, 0),
    "airway wall": ((-100, -80, -60, -60), 60, 0, 0),
    "gas": ((-960, -960, -960, -960), 25, 4, 0),
    "sinus": ((-980, -980, -980, -980), 15, 0, 0),
    "artery": ((42, 300, 155, 110), 18, 2, 0),
    "vein": ((42, 100, 150, 112), 15, 2, 4),
    "lung vessel": ((30, 180, 115, 80), 20, 0, 0),
    "myocardium": ((46, 95, 110, 92), 8, 4, 4),
    "blood pool": ((42, 240, 145, 108), 15, 3, 6),
    "liver": ((57, 70, 108, 90), 10, 4, 3),
    "liver vessel": ((44, 85, 155, 112), 14, 0, 0),
    "gallbladder": ((8, 8, 9, 10), 6, 2, 2),
    "spleen": ((48, 110, 120, 96), 9, 4, 2),
    "stomach wall": ((38, 75, 75, 65), 10, 6, 4),
    "bowel wall": ((36, 80, 80, 68), 12, 6, 4),
    "colon wall": ((36, 65, 72, 64), 12, 6, 4),
    "bowel fluid": ((18, 20, 22, 25), 14, 5, 8),
    "stool": ((-10, -10, -5, -5), 40, 60, 70),
    "kidney cortex": ((33, 165, 185, 145), 14, 5, 3),
    "kidney medulla": ((30, 75, 160, 140), 12, 5, 4),
    "renal pelvis": ((6, 6, 20, 350), 8, 2, 4),
    "pancreas": ((40, 100, 95, 76), 10, 10, 8),
    "adrenal": ((28, 60, 68, 58), 10, 5, 0),
    "bladder": ((6, 6, 8, 60), 5, 2, 2),
    "pelvic organ": ((42, 62, 78, 72), 10, 8, 8),
    "spinal canal": ((8, 8, 10, 10), 10, 6, 0),
    "spinal cord": ((35, 36, 38, 38), 4, 4, 0),
    "oesophagus": ((36, 52, 60, 55), 10, 6, 4),
    "thyroid": ((100, 170, 150, 130), 20, 8, 6),
    "gland": ((25, 45, 50, 45), 15, 18, 15),
    "breast": ((10, 15, 20, 20), 20, 25, 30),
    "lymph node": ((40, 70, 85, 80), 12, 4, 2),
    "table": ((60, 60, 60, 60), 150, 0, 0),
    "grey matter": ((38, 40, 43, 43), 2, 2, 1),
    "white matter": ((29, 30, 32, 32), 2, 2, 1),
    "deep grey": ((37, 39, 42, 42), 2, 2, 1),
    "csf": ((8, 8, 9, 10), 3, 2, 1),
    "ventricle": ((6, 6, 7, 8), 3, 1, 1),
    "cerebellar grey": ((37, 39, 42, 42), 3, 3, 1),
    "cerebellar white": ((29, 30, 32, 32), 2, 2, 1),
    "brain stem": ((31, 32, 34, 34), 2, 2, 1),
    "eye": ((10, 10, 12, 12), 4, 2, 0),
    "lens": ((95, 95, 95, 95), 15, 0, 0),
    "mucosa": ((35, 60, 70, 65), 12, 10, 6),
    "dura": ((60, 80, 95, 90), 12, 0, 0),
}

# tissue classes that share MR contrast: (t1, t2, flair, stir), the brightest tissue about 1
_MR: dict[str, tuple[tuple[float, float, float, float], tuple[str, ...]]] = {
    "air": ((0.01, 0.01, 0.01, 0.01), ("background", "airway", "gas", "sinus", "table")),
    "lung": ((0.06, 0.06, 0.05, 0.07), ("lung",)),
    "fat": ((0.95, 0.75, 0.65, 0.12), ("fat", "visceral fat")),
    "skin": ((0.60, 0.45, 0.45, 0.40), ("skin", "scalp", "mucosa")),
    "muscle": ((0.36, 0.20, 0.25, 0.28), ("muscle", "myocardium", "airway wall", "oesophagus")),
    "fascia": ((0.18, 0.10, 0.12, 0.12), ("fascia", "dura")),
    "bone": ((0.05, 0.03, 0.04, 0.04), ("cortical bone",)),
    "marrow": ((0.70, 0.50, 0.48, 0.22), ("marrow",)),
    "cartilage": ((0.32, 0.40, 0.35, 0.40), ("cartilage",)),
    "blood": ((0.22, 0.15, 0.15, 0.25), ("artery", "vein", "lung vessel", "blood pool", "liver vessel")),
    "liver": ((0.52, 0.28, 0.34, 0.34), ("liver",)),
    "spleen": ((0.36, 0.50, 0.52, 0.62), ("spleen", "lymph node", "pelvic organ")),
    "cortex": ((0.48, 0.55, 0.52, 0.62), ("kidney cortex", "adrenal", "thyroid")),
    "medulla": ((0.36, 0.62, 0.55, 0.68), ("kidney medulla",)),
    "pancreas": ((0.56, 0.38, 0.42, 0.45), ("pancreas", "gland", "breast")),
    "wall": ((0.42, 0.34, 0.38, 0.42), ("stomach wall", "bowel wall", "colon wall")),
    "stool": ((0.45, 0.40, 0.38, 0.38), ("stool",)),
    "fluid": ((0.14, 1.00, 0.30, 0.95), ("gallbladder", "bowel fluid", "renal pelvis", "bladder", "eye")),
    "csf": ((0.12, 1.00, 0.10, 0.95), ("csf", "ventricle", "spinal canal")),
    "grey": ((0.48, 0.55, 0.56, 0.60), ("grey matter", "cerebellar grey", "spinal cord")),
    "deep": ((0.55, 0.46, 0.50, 0.52), ("deep grey",)),
    "white": ((0.68, 0.38, 0.42, 0.42), ("white matter", "cerebellar white", "brain stem")),
    "lens": ((0.40, 0.15, 0.25, 0.20), ("lens",)),
}
_ENHANCES = (
    "artery",
    "vein",
    "blood pool",
    "liver vessel",
    "kidney cortex",
    "dura",
    "mucosa",
    "spleen",
    "lung vessel",
)


def choose(value: str | None, options: tuple[str, ...], what: str, rng: np.random.Generator) -> str:
    """The option asked for, or a random one; the draw is made either way, so that the rest stays the same."""
    drawn = options[int(rng.integers(len(options)))]
    if value is None:
        return drawn
    if value not in options:
        raise InputError(f"unknown {what} {value!r}: choose one of {', '.join(options)}")
    return value


def ct_palette(rng: np.random.Generator, phase: str | None = None) -> Palette:
    """HU of every tissue for one patient and scan; portal venous scans are the most frequent."""
    phase = choose(phase, PHASES + ("portal", "portal", "none"), "phase", rng)
    column = PHASES.index(phase)
    n = len(LABELS)
    mean, fine, coarse = (np.zeros(n, np.float32) for _ in range(3))
    strength = rng.uniform(0.6, 1.3)  # how well the contrast agent took
    for name, (hu, spread, small, large) in _CT.items():
        value = hu[0] + (hu[column] - hu[0]) * strength * rng.uniform(0.85, 1.15)
        mean[L[name]] = value + rng.normal(0, spread)
        fine[L[name]], coarse[L[name]] = np.array([small, large]) * rng.uniform(0.5, 1.5)
    if rng.random() < 0.25:  # steatosis
        mean[L["liver"]] -= rng.uniform(10, 50)
    oral = rng.random()
    if oral < 0.2:  # positive oral contrast
        mean[L["bowel fluid"]] = rng.uniform(120, 450)
    if phase == "portal" and rng.random() < 0.3:  # early excretion
        mean[L["renal pelvis"]] = rng.uniform(100, 500)
    for name in ("background", "airway"):
        mean[L[name]] = max(mean[L[name]], -1000)
    return Palette("ct", phase, mean, fine, coarse)


def mr_palette(rng: np.random.Generator, sequence: str | None = None) -> Palette:
    """Relative signal of every tissue for one sequence; `random` draws every tissue class on its own."""
    sequence = choose(sequence, SEQUENCES, "sequence", rng)
    n = len(LABELS)
    mean, fine, coarse = (np.zeros(n, np.float32) for _ in range(3))
    column = {"t1": 0, "t1c": 0, "t2": 1, "flair": 2, "stir": 3, "random": 0}[sequence]
    dark = rng.random() < 0.8
    jitter = rng.uniform(0.03, 0.15)
    for group, (signal, names) in _MR.items():
        level = signal[column] * float(np.exp(rng.normal(0, jitter))) + rng.normal(0, 0.02)
        if sequence == "random" and group != "air" and not (dark and group in ("lung", "bone")):
            level = rng.uniform(0.03, 1.0)
        for name in names:
            mean[L[name]] = max(level * float(np.exp(rng.normal(0, 0.06))), 0.0)
            fine[L[name]] = mean[L[name]] * rng.uniform(0.01, 0.05)
            coarse[L[name]] = mean[L[name]] * rng.uniform(0.01, 0.06)
    if sequence == "t1c" or (sequence == "t1" and rng.random() < 0.15):
        for name in _ENHANCES:
            mean[L[name]] = min(mean[L[name]] * rng.uniform(1.3, 3.0), 1.2)
    if sequence in ("t1", "t1c", "t2") and rng.random() < 0.3:  # fat saturation
        mean[[L["fat"], L["visceral fat"]]] *= rng.uniform(0.12, 0.4)
        mean[L["marrow"]] *= rng.uniform(0.3, 0.6)
    fine[0] = coarse[0] = 0.0
    return Palette("mr", sequence, mean, fine, coarse)
