"""Anomalies that are no tumours: a piece of another scan, or a mass, where it does not belong.

Foreign patches (after Tan et al., "Detecting outliers with foreign patch interpolation", 2020) ask the attention head
for what does not fit its surroundings, in any anatomy, without a model of what a tumour looks like there. They let a
head learn what is healthy in an organ whose tumours it must never see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.synth.field import noise, rotation
from diffugts.training.bank import KNOWN, TUMOUR, Item, Patch

Map = npt.NDArray[np.float32]

RADIUS = {"piece": (3.0, 32.0), "mass": (5.0, 32.0)}  # voxels
EVEN = (2.0, 20.0)  # voxels over which a smoothed piece is smoothed
MASSES = 0.75  # share of masses in tones of their surroundings; the others are pieces and tones of other scans
PUSHES = 0.4  # share of those masses that push aside what lies around them
OWN_TONES = 0.4  # share of them in the tone of another tissue of their own scan
MIXED = 0.4  # share of them that are two tissues in patches
FAINT = {"ct": (0.006, 0.08), "mr": (0.15, 0.9)}  # how much such a mass differs: of 0..1 in CT, of log in MR
DENSE = (0.46, 0.57)  # of 0..1, -80 to 140 HU: most masses in lungs and in fat
UNEVEN = {"ct": 0.012, "mr": 0.12}  # most swing of an even mass's tone, 0..1
FINE_VOX = 1.5  # what is finer is grain: a scanner's noise, and edges of small structures
QUIET = 0.1  # share of a patch's body that is so even that its grain is noise alone
SOFT = 0.45  # of 0..1, -100 HU: an even mass in CT is no lung and no air
TRIES = 10
BODY = {"ct": 0.03, "mr": 0.08}  # of 0..1, blurred; what is darker is air or a stripped skull
VISIBLE = {"ct": 0.009, "mr": 0.04}  # mean difference, 0..1, below which a piece cannot be told from what was there
LEAST_VOXELS = 60
LEAST_SHARE = {"piece": 0.75, "mass": 0.4}  # of a blob that must lie in known tissue; a large one reaches the skin
AT_HOME = 0.75  # share of the pieces that lie in the patch's home where it is in sight
IN_SIGHT = 1000  # voxels
AERATED = (0.05, 0.25)  # of 0..1, -900 to -500 HU: least mean and most tone of a lung
LUNG_ML = 100.0


def home_of(item: Item, image: npt.NDArray[Any], organs: Sequence[str]) -> npt.NDArray[np.bool_] | None:
    """(D, H, W) where one of these organs surely lies in a patient's whole scan; None where that is not known.

    Only lungs in CT are: dark, large, and apart from the air around the patient.
    """
    if "lung" not in organs or item.modality != "ct" or item.anatomy != "torso" or not item.as_scanned:
        return None
    tone = ndimage.uniform_filter(np.asarray(image, np.float32), 3)
    parts, count = ndimage.label(ndimage.binary_opening(tone < AERATED[1], iterations=2))
    millilitres = np.bincount(parts.ravel()) * float(np.prod(item.spacing)) / 1000
    kept = (millilitres > LUNG_ML) & (ndimage.mean(tone, parts, np.arange(count + 1)) > AERATED[0])
    kept[0] = False
    for axis in (0, 1):  # around the patient, not above and below
        kept[np.unique(np.take(parts, (0, -1), axis))] = False
    return np.asarray(kept[parts]) if kept.any() else None


def with_foreign(patch: Patch, donate: Callable[[], Patch], rng: np.random.Generator, own: bool = True) -> Patch:
    """The patch with one foreign piece or mass, flagged as a lesion of no organ; itself if none could be placed.

    Most of them lie in the patch's home where one is in sight.

    Args:
        donate: draws another patch; it is asked again until the modality fits and no lesion is in it that its item
            does not name: a head that must not see a tumour must not be given pieces of it to find.
        own: whether the patch itself may give the piece or be moved aside; not where such a lesion is.
    """
    modality = patch.item.modality[:2]
    home = patch.home if patch.home is not None and patch.home.sum() > IN_SIGHT and rng.random() < AT_HOME else None
    body = ndimage.uniform_filter(patch.image, 5) > BODY[modality]
    places = np.argwhere((patch.flags == KNOWN) & (body if home is None else home))
    if not len(places):
        return patch
    for _ in range(TRIES):
        kind = "mass" if rng.random() < MASSES else "piece"
        blob = _blob(len(patch.image), rng.choice(places), RADIUS[kind], rng)
        share = np.where(body, blob.share, 0)
        inside = (share > 0.5) & (patch.flags > 0)
        if inside.sum() < max(LEAST_VOXELS, LEAST_SHARE[kind] * (blob.share > 0.5).sum()):
            continue
        if kind == "mass":
            content = _mass(patch, blob, inside, rng)
            under = _pushed(patch.image, blob, rng) if own and rng.random() < PUSHES else patch.image
        else:
            donor = donate()
            if donor.item.modality[:2] != modality or donor.unnamed.any():
                continue
            content, under = _content(patch, donor, rng, own), patch.image
            if (ndimage.uniform_filter(content, 5)[inside] < BODY[modality]).mean() > 0.2:
                continue
        if np.abs(ndimage.uniform_filter(content - patch.image, 3))[inside].mean() < VISIBLE[modality]:
            continue
        image = np.clip(under + share * (content - under), 0, 1).astype(np.float32)
        flags = np.where(inside, TUMOUR + len(patch.item.lesions), patch.flags).astype(np.uint8)
        return replace(patch, image=image, flags=flags, item=replace(patch.item, lesions=(*patch.item.lesions, "")))
    return patch


@dataclass(frozen=True)
class _Blob:
    """An irregular solid.

    Attributes:
        share: (S, S, S) 0..1, 1 inside, with an edge of a few voxels.
        depth: (S, S, S) 1 at its centre, 0 at its surface, negative outside.
        offset: (3, S, S, S) voxels from its centre.
    """

    share: Map
    depth: Map
    offset: Map


def _blob(size: int, centre: npt.NDArray[np.int64], radii: tuple[float, float], rng: np.random.Generator) -> _Blob:
    """A blob around a voxel of a patch with sides of ``size`` voxels, its radius between ``radii``."""
    radius = float(np.exp(rng.uniform(*np.log(radii))))
    stretch = np.exp(rng.normal(0, 0.25, 3))
    offset = np.indices((size,) * 3, dtype=np.float32) - centre[:, None, None, None].astype(np.float32)
    turned = np.tensordot((np.asarray(rotation(rng, 180)) / stretch[:, None]).astype(np.float32), offset, 1)
    distance = np.sqrt((turned**2).sum(0)) / radius
    grid = [np.arange(size, dtype=np.float64)] * 3
    distance += rng.uniform(0, 0.25) * noise(grid, max(radius * 0.6, 2.0), int(rng.integers(2**31)))
    share = np.clip((1 - distance) * radius / rng.uniform(0.8, 4.0) + 0.5, 0, 1).astype(np.float32)
    return _Blob(share, np.asarray(1 - distance, np.float32), offset)


def _content(patch: Patch, donor: Patch, rng: np.random.Generator, own: bool) -> Map:
    """What is pasted: another scan's piece as it is or smoothed, the patch's own from elsewhere, or an even mass.

    Most lesions are more even than the tissue that they replace.
    """
    kind = rng.random()
    image = donor.image
    if own and kind < 0.2:
        shift = rng.integers(patch.image.shape[0] // 4, 3 * patch.image.shape[0] // 4, 3)
        image = np.roll(patch.image, tuple(int(s) for s in shift), (0, 1, 2))
    for axis in range(3):
        if rng.random() < 0.5:
            image = np.flip(image, axis)
    if 0.4 < kind <= 0.7:
        smooth = ndimage.gaussian_filter(image, float(np.exp(rng.uniform(*np.log(EVEN)))))
        image = smooth + rng.uniform(0.2, 1) * _grain(image)
    if kind > 0.7:
        image = _even(patch, image, rng)
    if patch.item.modality[:2] == "mr":
        image = image * np.exp(rng.uniform(-0.6, 0.6))
    return np.asarray(image, np.float32)


def _even(patch: Patch, donor: Map, rng: np.random.Generator) -> Map:
    """A mass of one tissue: the donor's tone at one place in its body, with slow waves and the patch's noise."""
    tones = _tones(donor, patch.item.modality)
    return _tissue(patch, float(rng.choice(tones)), rng) if len(tones) else donor


def _tones(image: Map, modality: str) -> Map:
    """Smoothed tones of an image's solid tissue, (K,)."""
    tones = ndimage.uniform_filter(image, 5)
    return np.asarray(tones[tones > (SOFT if modality == "ct" else BODY[modality[:2]])])


def _mass(patch: Patch, blob: _Blob, inside: npt.NDArray[np.bool_], rng: np.random.Generator) -> Map:
    """A mass a little brighter or darker than what it grows in, or than another tissue of the scan, or like that one.

    Perhaps it has a core and a rim, perhaps a second tissue is mixed in, perhaps it is seen through. Contrasts are
    drawn alike for every organ, and most masses in lungs and in fat are dense: nothing else of how tumours look in an
    organ goes into it.
    """
    ct = patch.item.modality == "ct"
    tone, contrasts = float(np.median(patch.image[inside])), FAINT[patch.item.modality[:2]]

    def other(than: float) -> float:
        by = float(np.exp(rng.uniform(*np.log(contrasts)))) * rng.choice([-1.0, 1.0])
        return than + by if ct else than * float(np.exp(by))

    if ct and tone < SOFT and rng.random() < 0.8:
        solid = float(rng.uniform(*DENSE))
    elif len(tones := _tones(patch.image, patch.item.modality)) and rng.random() < OWN_TONES:
        solid = float(rng.choice(tones))
        solid = solid if rng.random() < 0.3 else other(solid)
    else:
        solid = other(tone)
    content = _tissue(patch, solid, rng)
    if rng.random() < MIXED:
        waves = noise([np.arange(len(content), dtype=np.float64)] * 3, rng.uniform(3, 12), int(rng.integers(2**31)))
        content = content + (_tissue(patch, other(solid), rng) - content) / (1 + np.exp(-rng.uniform(2, 8) * waves))
    if rng.random() < 0.4:
        core = np.clip((blob.depth - rng.uniform(0.3, 0.7)) * 8, 0, 1)
        content = content + core * (_tissue(patch, other(solid), rng) - content)
    if rng.random() < 0.25:
        width = rng.uniform(0.08, 0.25)
        band = np.clip(1 - np.abs(blob.depth - width) / width, 0, 1)
        content = content + band * (other(solid) - content)
    seen = rng.uniform(0, 0.4) if rng.random() < 0.5 else 0.0
    return np.asarray(np.clip(content + seen * (patch.image - tone), 0, 1), np.float32)


def _tissue(patch: Patch, tone: float, rng: np.random.Generator) -> Map:
    """One tissue everywhere: its tone with slow waves and the patch's noise, and no trace of what lay there before."""
    modality = patch.item.modality[:2]
    grid = [np.arange(len(patch.image), dtype=np.float64)] * 3
    waves = noise(grid, float(rng.uniform(4, 16)), int(rng.integers(2**31)))
    swing = rng.uniform(0, UNEVEN[modality]) * (1 if modality == "ct" else min(1.0, 2 * tone))
    return np.asarray(tone + swing * waves + _noise_of(patch, rng), np.float32)


def _pushed(image: Map, blob: _Blob, rng: np.random.Generator) -> Map:
    """What lies around a blob pushed outward by it, out to somewhat over twice its radius."""
    radii = 1 - blob.depth
    amount = rng.uniform(0.1, 0.5) * np.clip(np.minimum(radii, 2.3 - radii) / 1.2, 0, 1) / np.maximum(radii, 0.1)
    places = np.indices(image.shape, dtype=np.float32) - amount * blob.offset
    return np.asarray(ndimage.map_coordinates(image, places, order=1, mode="nearest"), np.float32)


def _noise_of(patch: Patch, rng: np.random.Generator) -> Map:
    """(S, S, S) noise about as strong and as fine as a scanner's is where the patch is quietest.

    The patch's own grain would leave streaks of muscle, vessels and folds to be seen in a mass: a tumour has none.
    """
    grain = _grain(patch.image)
    body = ndimage.uniform_filter(patch.image, 5) > BODY[patch.item.modality[:2]]
    power = ndimage.uniform_filter(grain * grain, 5)[body]
    level = float(np.sqrt(max(np.quantile(power, QUIET), 0.0))) if len(power) else 0.0
    found = ndimage.gaussian_filter(rng.normal(size=patch.image.shape).astype(np.float32), rng.uniform(0.4, 1.2))
    return np.asarray(found * (rng.uniform(0.3, 1.1) * level / float(_grain(found).std())), np.float32)


def _grain(image: Map) -> Map:
    return np.asarray(image - ndimage.gaussian_filter(image, FINE_VOX), np.float32)
