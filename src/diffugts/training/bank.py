"""A bank of training volumes on disk: images in 0..1 on the model grid, with what is known of each.

One item is ``<name>.image.npy`` (D, H, W) float16 0..1, ``<name>.flags.npy`` (D, H, W) uint8 and a line of
``index.jsonl``. Flags: 0 unknown (never supervised), 1 known and not tumour, 2 + i known and inside the
item's i-th tumour or target.
The index grows while a builder runs; :class:`Bank` picks new items up on ``refresh``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from diffugts.synth.field import noise

UNKNOWN, KNOWN, TUMOUR = 0, 1, 2
INDEX = "index.jsonl"
COIL = 40.0  # voxels between the nodes of a receiving coil's waves
HIDDEN = 0.02  # share of a crop; where more of it is tumour that its item does not name, another is drawn


@dataclass(frozen=True)
class Item:
    """One volume of the bank.

    Attributes:
        name: file stem inside the bank.
        modality: "ct" or a "mr…" key of the model's modality codes.
        anatomy: where it was taken: "chest", "head", "limb", …
        source: where it came from, for the model card.
        spacing: (3,) mm.
        lesions: organ of each planted tumour; empty for healthy and for unlabelled scans.
        labelled: whether every tumour in it is in the flags, so that heads can be trained on it.
        trusted: whether tissue outside the flags' tumours may be taken for healthy.
        weight: sampling weight.
    """

    name: str
    modality: str
    anatomy: str
    source: str
    spacing: tuple[float, float, float]
    lesions: tuple[str, ...] = ()
    trusted: bool = True
    labelled: bool = False
    weight: float = 1.0

    @property
    def as_scanned(self) -> bool:
        """Whether it is a patient's scan in which nothing was planted."""
        return self.name.startswith("scan_")


def write_item(root: Path, item: Item, image: npt.NDArray[np.float32], flags: npt.NDArray[np.uint8]) -> None:
    """Add one item; its line in the index comes last, so that readers never see half an item."""
    np.save(root / f"{item.name}.image.npy", image.astype(np.float16))
    np.save(root / f"{item.name}.flags.npy", flags)
    with open(root / INDEX, "a", encoding="utf-8") as index:
        index.write(json.dumps(asdict(item)) + "\n")


@dataclass(frozen=True)
class Patch:
    """A crop of one item: image (S, S, S) float32 0..1, flags (S, S, S) uint8, home (S, S, S) bool where known."""

    image: npt.NDArray[np.float32]
    flags: npt.NDArray[np.uint8]
    item: Item
    home: npt.NDArray[np.bool_] | None = None

    @property
    def unnamed(self) -> npt.NDArray[np.bool_]:
        """(S, S, S) where lesions lie that the item does not name."""
        inside: npt.NDArray[np.bool_] = self.flags >= TUMOUR + len(self.item.lesions)
        return inside


Home = Callable[[Item, npt.NDArray[Any]], npt.NDArray[np.bool_] | None]
"""Where in an item (its image beside it) an organ of interest lies."""


class Bank:
    """Random crops from the items that ``admit`` lets in, as it describes them; None keeps an item out."""

    def __init__(
        self, root: Path, admit: Callable[[Item], Item | None] = lambda item: item, home: Home = lambda *_: None
    ) -> None:
        self.root = root
        self.admit = admit
        self.home = home
        self._homes: dict[str, npt.NDArray[np.bool_] | None] = {}
        self.items: list[Item] = []
        self._read_lines, self._read_bytes = 0, -1
        self.refresh()

    def refresh(self) -> None:
        """Pick up items that were added since the last call."""
        size = (self.root / INDEX).stat().st_size
        if size == self._read_bytes:
            return
        lines = (self.root / INDEX).read_text(encoding="utf-8").splitlines()
        for line in lines[self._read_lines :]:
            data = json.loads(line)
            item = Item(**{**data, "spacing": tuple(data["spacing"]), "lesions": tuple(data["lesions"])})
            if admitted := self.admit(item):
                self.items.append(admitted)
        self._read_lines, self._read_bytes = len(lines), size
        weights = np.array([item.weight for item in self.items], dtype=np.float64)
        self._probabilities = weights / weights.sum() if len(weights) else weights

    def arrays(self, item: Item) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
        """Image and flags of an item, mapped from their files: a bank may be larger than memory."""
        image = np.load(self.root / f"{item.name}.image.npy", mmap_mode="r", allow_pickle=False)
        flags = np.load(self.root / f"{item.name}.flags.npy", mmap_mode="r", allow_pickle=False)
        return image, flags

    def sample(self, rng: np.random.Generator, size: int, on_tumour: float = 0.0, widest: float = 1.0) -> Patch:
        """One random crop of side ``size``; with probability ``on_tumour`` it holds a tumour voxel if there is one.

        Tumours and targets that the item does not name do not count: heads and the flow learn nothing there. Where
        there is none, it then holds a voxel of the item's ``home`` if that is known. Half of the crops show up to
        ``widest`` times as much along each axis, on voxels as much larger. Crops that are mostly unknown, mostly
        empty or show much of what is not named are drawn again (a few times).
        """
        item = self.items[rng.choice(len(self.items), p=self._probabilities)]
        image, flags = self.arrays(item)
        if item.name not in self._homes:
            self._homes[item.name] = self.home(item, image)
        home = self._homes[item.name]
        named = TUMOUR + len(item.lesions)
        aim, side = rng.random() < on_tumour, size
        if widest > 1 and rng.random() < 0.5:
            side = round(rng.uniform(size, max(min(widest * size, max(image.shape)), size)))
        target = _target(rng, (flags >= TUMOUR) & (flags < named), home) if aim else None
        for _ in range(8):
            box = _random_box(rng, image.shape, side, target)
            crop, known = image[box], flags[box]
            told = float((known > UNKNOWN).mean()) > 0.4 and float((known >= named).mean()) < HIDDEN
            if target is not None or (told and float((crop > 0.05).mean()) > 0.25):
                break
        seen = None if home is None else _pad(home[box], side)
        patch = Patch(_pad(crop.astype(np.float32), side), _pad(known, side), item, seen)
        return patch if side == size else _shrunk(patch, size)


def _target(
    rng: np.random.Generator, tumour: npt.NDArray[np.bool_], home: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.int64] | None:
    found = np.flatnonzero(tumour)
    if not len(found) and home is not None:
        found = np.flatnonzero(home)
    return np.array(np.unravel_index(rng.choice(found), tumour.shape)) if len(found) else None


def _random_box(
    rng: np.random.Generator, shape: tuple[int, ...], size: int, around: npt.NDArray[np.int64] | None
) -> tuple[slice, ...]:
    box = []
    for axis, side in enumerate(shape):
        low, high = 0, max(side - size, 0)
        if around is not None:
            margin = size // 8
            low = min(max(int(around[axis]) - size + margin, 0), high)
            high = max(min(int(around[axis]) - margin, high), low)
        start = int(rng.integers(low, high + 1))
        box.append(slice(start, start + size))
    return tuple(box)


def _shrunk(patch: Patch, size: int) -> Patch:
    """The patch on fewer, larger voxels: images averaged, flags of the nearest."""
    side = len(patch.image)
    image = F.adaptive_avg_pool3d(torch.from_numpy(patch.image)[None], size)[0].numpy()
    nearest = ((np.arange(size) + 0.5) * side / size).astype(int)
    spacing = tuple(mm * side / size for mm in patch.item.spacing)
    item = replace(patch.item, spacing=(spacing[0], spacing[1], spacing[2]))
    grid = np.ix_(nearest, nearest, nearest)
    return Patch(image, patch.flags[grid], item, None if patch.home is None else patch.home[grid])


def _pad(array: npt.NDArray[np.generic], size: int) -> npt.NDArray:  # type: ignore[type-arg]
    """Grow a short crop to ``size``: replicate the edge of images, mark the growth of flags and homes as unknown."""
    width = [(0, size - side) for side in array.shape]
    if array.dtype in (np.uint8, np.bool_):
        return np.pad(array, width)
    return np.pad(array, width, mode="edge")


def _coil(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """How much brighter a receiving coil makes a place: slow waves, wider than most lesions."""
    waves = noise([np.arange(side, dtype=np.float64) for side in shape], COIL, int(rng.integers(2**31)))
    return np.asarray(np.exp(np.float32(rng.uniform(0, 0.15)) * waves), np.float32)


def augment(patch: Patch, rng: np.random.Generator) -> Patch:
    """Flips, and for intensities what another scanner might do; the anatomy's left–right is not kept."""
    image: npt.NDArray[np.floating[Any]] = patch.image
    flags, home = patch.flags, patch.home
    if rng.random() < 0.5:
        image, flags, home = image[::-1], flags[::-1], None if home is None else home[::-1]
    if patch.item.modality == "ct":
        image = image * rng.uniform(0.97, 1.03) + rng.normal(0, 0.006)
    else:
        image = np.clip(image, 0, None) ** rng.uniform(0.75, 1.3) * rng.uniform(0.8, 1.1) * _coil(image.shape, rng)
    if rng.random() < 0.5:
        image = image + rng.normal(0, rng.uniform(0, 0.02), image.shape)
    return Patch(np.clip(image, 0, 1).astype(np.float32), np.ascontiguousarray(flags), patch.item, home)


def scanned(patch: Patch, rng: np.random.Generator) -> Patch:
    """A scanner's blur and noise over all that a patch shows.

    What was planted or pasted has other noise than what lies around it, and sharper edges: a head that may look at
    those learns them instead of tumours.
    """
    image: npt.NDArray[np.floating[Any]] = patch.image
    if rng.random() < 0.6:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.2))
    if rng.random() < 0.8:
        image = image + rng.normal(0, rng.uniform(0.002, 0.02), image.shape)
    return replace(patch, image=np.clip(image, 0, 1).astype(np.float32))
