"""What was painted, made to fit the scan: without a seam, and with the scan's own texture.

A latent is repainted in whole blocks, and a few coarse steps paint smoothly. So the difference from the scan at the
mask's surface is carried on into it as a membrane (seamless cloning: Pérez et al., 2003), and what is finer than the
flow paints is borrowed from like places of the same scan (image quilting: Efros and Freeman, 2001). Ours; nothing is
trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

TOLERANCE, ITERATIONS = 1e-3, 400  # of the membrane
COARSE_MM = 4.0  # deviation of the gaussian: what is finer is texture
BLOCK_MM = 6.0  # places are compared by their means over blocks of this side
BLOCKS = 4  # blocks along a tile's side
REACH_MM = 64.0  # texture is borrowed from so near
DONORS = 8192  # places that are looked at, drawn where there are more
ALIKE = 6  # one of the so many places that are most alike is drawn


def seamless(difference: Map, mask: Mask) -> Map:
    """X − H with its values around the mask carried on into it as a membrane, and taken off there.

    Args:
        difference: (D, H, W) X − H. mask: (D, H, W).

    Returns:
        (D, H, W) X − H', where H' meets the scan at the mask's surface without a step; 0 outside the mask.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import cg

    left = np.zeros_like(difference, dtype=np.float32)
    if not mask.any() or mask.all():
        left[mask] = difference[mask]
        return left
    voxels = np.argwhere(mask)
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(len(voxels))
    rows, columns = [], []
    neighbours, fixed = np.zeros(len(voxels)), np.zeros(len(voxels))
    for axis in range(3):
        for step in (-1, 1):
            beside = voxels.copy()
            beside[:, axis] += step
            exists = (beside[:, axis] >= 0) & (beside[:, axis] < mask.shape[axis])  # nothing is known past the border
            at = tuple(beside[exists].T)
            own, other = np.flatnonzero(exists), number[at]
            neighbours[own] += 1
            fixed[own] += np.where(other < 0, difference[at], 0)
            rows.append(own[other >= 0])
            columns.append(other[other >= 0])
    row, column = np.concatenate(rows), np.concatenate(columns)
    every = np.arange(len(voxels))
    values = np.concatenate([neighbours, -np.ones(len(row))])
    laplacian = coo_matrix((values, (np.append(every, row), np.append(every, column))), (len(voxels),) * 2).tocsr()
    membrane, _ = cg(laplacian, fixed, rtol=TOLERANCE, maxiter=ITERATIONS)
    left[mask] = difference[mask] - membrane
    return left


def textured(scan: Map, painted: Map, mask: Mask, spacing: Sequence[float], seed: int) -> Map:
    """What was painted, with the fine texture of places in the same scan that look like it.

    Args:
        scan: (I, J, K) on any grid, in any unit. painted: the same, with H inside the mask.
        mask: (I, J, K) what was painted; texture is never taken from there.
        spacing: of the voxels, mm. seed: of the draw among like places.

    Returns:
        (I, J, K): the scan outside the mask; ``painted`` itself where the scan has no place for a tile beside the mask.
    """
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return scan.astype(np.float32)
    block = [max(1, round(BLOCK_MM / mm)) for mm in spacing]
    tile = [min(BLOCKS * side, whole) for side, whole in zip(block, mask.shape, strict=True)]
    box = tuple(
        slice(max(part.start - side - int(REACH_MM / mm), 0), part.stop + side + int(REACH_MM / mm))
        for part, side, mm in zip(found[0], tile, spacing, strict=True)
    )
    image, inside = scan[box].astype(np.float32), mask[box]
    sigma = [COARSE_MM / mm for mm in spacing]
    own = ndimage.gaussian_filter(image, sigma)
    coarse = ndimage.gaussian_filter(np.where(inside, painted[box], image), sigma)
    fine = _borrowed(image - own, own, coarse, inside, tile, block, np.random.default_rng(seed))
    result = scan.astype(np.float32)
    if fine is None:
        result[mask] = painted[mask]
    else:
        result[box][inside] = np.clip(coarse + fine, image.min(), image.max())[inside]
    return result


def _borrowed(
    fine: Map, own: Map, coarse: Map, mask: Mask, tile: list[int], block: list[int], rng: np.random.Generator
) -> Map | None:
    """Fine texture over the mask, tile by tile from the places whose coarse tissue is most alike; None without any."""
    donors = _corners(mask.shape, [0, 0, 0], mask.shape, block, tile)
    taken = ndimage.maximum_filter(mask, tile, origin=[-(side // 2) for side in tile], mode="constant")
    donors = donors[~taken[tuple(donors.T)]]
    if not len(donors):
        return None
    donors = donors if len(donors) <= DONORS else rng.choice(donors, DONORS, replace=False)
    inner = ndimage.find_objects(mask.astype(np.uint8))[0]
    half = [max(1, side // 2) for side in tile]
    first = [part.start - side for part, side in zip(inner, half, strict=True)]
    places = _corners(mask.shape, first, [part.stop for part in inner], half, tile)
    nearest = _nearest(_looks(coarse, places, tile, block), _looks(own, donors, tile, block), min(ALIKE, len(donors)))
    drawn = donors[nearest[np.arange(len(places)), rng.integers(0, nearest.shape[1], len(places))]]
    a, b, c = (np.hanning(side + 2)[1:-1] for side in tile)
    window = (a[:, None, None] * b[:, None] * c).astype(np.float32)
    total, power = np.zeros_like(fine), np.zeros_like(fine)
    for place, donor in zip(places, drawn, strict=True):
        here, there = (tuple(slice(o, o + side) for o, side in zip(at, tile, strict=True)) for at in (place, donor))
        total[here] += window * fine[there]
        power[here] += window**2
    return np.asarray(total / np.sqrt(np.maximum(power, 1e-6)), np.float32)  # tiles are as strong together as alone


def _nearest(wanted: Map, known: Map, count: int, portion: int = 256) -> npt.NDArray[np.intp]:
    """(N, count) which of the known looks (M, blocks) are nearest to each that is wanted (N, blocks)."""
    square = (known**2).sum(1)  # of so many dimensions a product is quicker than a tree
    far = [square - 2 * part @ known.T for part in np.array_split(wanted, -(-len(wanted) // portion))]
    return np.concatenate([np.argpartition(distance, count - 1, axis=1)[:, :count] for distance in far])


def _corners(
    shape: Sequence[int], first: Sequence[int], end: Sequence[int], step: Sequence[int], tile: Sequence[int]
) -> npt.NDArray[np.intp]:
    """(N, 3) corners of tiles on a lattice, moved into the scan."""
    sides = [
        np.unique(np.clip(np.arange(low, high, by), 0, whole - side))
        for whole, low, high, by, side in zip(shape, first, end, step, tile, strict=True)
    ]
    return np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)


def _looks(image: Map, corners: npt.NDArray[np.intp], tile: Sequence[int], block: Sequence[int]) -> Map:
    """(N, blocks) means over the blocks of each tile."""
    means = ndimage.uniform_filter(image, block)
    counts = [max(1, side // width) for side, width in zip(tile, block, strict=True)]
    columns = []
    for index in np.ndindex(*counts):
        at = corners + np.array(index) * block + np.array(block) // 2
        columns.append(means[tuple(np.minimum(at, np.array(image.shape) - 1).T)])
    return np.stack(columns, 1)
