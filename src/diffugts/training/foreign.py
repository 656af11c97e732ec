"""Anomalies that are no tumours: a piece of another scan where it does not belong.

Foreign patches (after Tan et al., "Detecting outliers with foreign patch interpolation", 2020) ask the attention head
for what does not fit its surroundings, in any anatomy, without a model of what a tumour looks like there. They let a
head learn what is healthy in an organ whose tumours it must never see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.synth.field import noise, rotation
from diffugts.training.bank import KNOWN, TUMOUR, Item, Patch

Map = npt.NDArray[np.float32]

RADIUS = (3.0, 32.0)  # voxels
EVEN = (2.0, 20.0)  # voxels over which a smoothed piece is smoothed
UNEVEN = {"ct": 0.012, "mr": 0.12}  # most swing of an even mass's tone, 0..1
SOFT = 0.45  # of 0..1, -100 HU: an even mass in CT is no lung and no air
TRIES = 10
BODY = {"ct": 0.03, "mr": 0.08}  # of 0..1, blurred; what is darker is air or a stripped skull
VISIBLE = {"ct": 0.012, "mr": 0.05}  # mean difference, 0..1, below which a piece cannot be told from what was there
LEAST_VOXELS = 60
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
    """The patch with one foreign piece, flagged as a lesion of no organ; the patch itself if none could be placed.

    Most pieces lie in the patch's home where one is in sight.

    Args:
        donate: draws another patch; it is asked again until the modality fits and no lesion is in it that its item
            does not name: a head that must not see a tumour must not be given pieces of it to find.
        own: whether the piece may come from the patch itself; not where such a lesion is.
    """
    modality = patch.item.modality[:2]
    home = patch.home if patch.home is not None and patch.home.sum() > IN_SIGHT and rng.random() < AT_HOME else None
    for _ in range(TRIES):
        donor = donate()
        if donor.item.modality[:2] != modality or donor.unnamed.any():
            continue
        body = ndimage.uniform_filter(patch.image, 5) > BODY[modality]
        blob = _blob(patch.flags, body if home is None else home, rng)
        content = _content(patch, donor, rng, own)
        share = np.where(body, blob, 0)
        inside = (share > 0.5) & (patch.flags > 0)
        if inside.sum() < max(LEAST_VOXELS, 0.75 * (blob > 0.5).sum()):
            continue
        if (ndimage.uniform_filter(content, 5)[inside] < BODY[modality]).mean() > 0.2:
            continue
        if np.abs(ndimage.uniform_filter(content - patch.image, 3))[inside].mean() < VISIBLE[modality]:
            continue
        image = np.clip(patch.image + share * (content - patch.image), 0, 1).astype(np.float32)
        flags = np.where(inside, TUMOUR + len(patch.item.lesions), patch.flags).astype(np.uint8)
        return replace(patch, image=image, flags=flags, item=replace(patch.item, lesions=(*patch.item.lesions, "")))
    return patch


def _blob(flags: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_], rng: np.random.Generator) -> Map:
    """(S, S, S) 0..1, 1 in an irregular solid around a known voxel of ``where``, with an edge of a few voxels."""
    size = len(flags)
    places = np.flatnonzero((flags == KNOWN) & where)
    if not len(places):
        return np.zeros(flags.shape, np.float32)
    centre = np.array(np.unravel_index(rng.choice(places), flags.shape))
    radius = float(np.exp(rng.uniform(*np.log(RADIUS))))
    stretch = np.exp(rng.normal(0, 0.25, 3))
    axes = np.indices(flags.shape, dtype=np.float32) - centre[:, None, None, None].astype(np.float32)
    turned = np.tensordot((np.asarray(rotation(rng, 180)) / stretch[:, None]).astype(np.float32), axes, 1)
    distance = np.sqrt((turned**2).sum(0)) / radius
    grid = [np.arange(size, dtype=np.float64)] * 3
    distance += rng.uniform(0, 0.25) * noise(grid, max(radius * 0.6, 2.0), int(rng.integers(2**31)))
    blob: Map = np.clip((1 - distance) * radius / rng.uniform(0.8, 4.0) + 0.5, 0, 1).astype(np.float32)
    return blob


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
    """A mass of one tissue: the donor's tone at one place in its body, with slow waves and the patch's grain."""
    modality = patch.item.modality[:2]
    tones = ndimage.uniform_filter(donor, 5)
    tones = tones[tones > (SOFT if modality == "ct" else BODY[modality])]
    if not len(tones):
        return donor
    grid = [np.arange(len(donor), dtype=np.float64)] * 3
    waves = noise(grid, float(rng.uniform(4, 16)), int(rng.integers(2**31)))
    swing = rng.uniform(0, UNEVEN[modality])
    return np.asarray(rng.choice(tones) + swing * waves + rng.uniform(0.3, 1) * _grain(patch.image), np.float32)


def _grain(image: Map) -> Map:
    return np.asarray(image - ndimage.gaussian_filter(image, 1.5), np.float32)
