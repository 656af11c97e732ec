"""Pseudo-healthy anatomy for a candidate: repaint and decode only the region around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffugts.backbone.latent_diffusion import Conditions, LatentDiffusion
from diffugts.inpaint import inpaint_ddim, inpaint_flow, scaled_linear_alphas, to_latent_mask

Box = tuple[slice, slice, slice]
"""In latent voxels."""


@dataclass(frozen=True)
class Sampling:
    """How the candidate is repainted.

    Attributes:
        steps: sampling steps; None takes the model's own number.
        jumps: RePaint jumps per step (flow only).
        context: latent voxels of scan kept around the candidate for the model to look at.
    """

    steps: int | None = None
    jumps: int = 0
    context: int = 6


@dataclass(frozen=True)
class Healed:
    """One region of a scan, as it is and as it would look healthy.

    Attributes:
        box: the region in image voxels of the model grid.
        mask: (D, H, W) bool, what was repainted, at the latent's resolution.
        decoded: (D, H, W) X = D(z/s), the scan as the model sees it.
        healthy: (D, H, W) H = D(z0/s).
        latent: (1, C, d, h, w) z. healthy_latent: z0, equal to z outside the mask.
    """

    box: Box
    mask: Tensor
    decoded: Tensor
    healthy: Tensor
    latent: Tensor
    healthy_latent: Tensor


def heal_regions(
    model: LatentDiffusion, latent: Tensor, mask: Tensor, conditions: Conditions, seed: int, sampling: Sampling,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Healed]:  # fmt: skip
    """Repaint a mask, region by region; an empty mask costs nothing and yields nothing.

    Args:
        latent: (1, C, d, h, w) of the whole scan, scaled.
        mask: (D, H, W) bool on the model grid.
        seed: of the start noise, drawn on the CPU for the whole scan, so that a region's noise does not depend
            on the other regions, nor on the device.
    """
    m = to_latent_mask(mask, model.config.stride)
    boxes = regions(m[0, 0] > 0, sampling.context, model.config.multiple // model.config.stride)
    if not boxes:
        return
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(latent.device)
    for number, box in enumerate(boxes):
        place = (..., *box)
        z, part = latent[place], m[place]
        z0 = _repaint(model, z, part, noise[place], conditions, seed, sampling)
        stride = model.config.stride
        image_box: Box = tuple(slice(b.start * stride, b.stop * stride) for b in box)  # type: ignore[assignment]
        full = part[0, 0].repeat_interleave(stride, 0).repeat_interleave(stride, 1).repeat_interleave(stride, 2)
        yield Healed(image_box, full > 0, model.decode(z)[0, 0], model.decode(z0)[0, 0], z, z0)
        if progress:
            progress((number + 1) / len(boxes))


@torch.inference_mode()
def _repaint(
    model: LatentDiffusion, z: Tensor, mask: Tensor, noise: Tensor, conditions: Conditions, seed: int,
    sampling: Sampling,
) -> Tensor:  # fmt: skip
    def network(zt: Tensor, t: Tensor) -> Tensor:
        return model.predict(zt, t, [conditions] * len(zt))

    steps = sampling.steps or model.config.steps
    if model.config.prediction == "flow":
        generator = torch.Generator(device=z.device).manual_seed(seed)
        return inpaint_flow(network, z, mask, noise, steps, sampling.jumps, generator)
    alphas = scaled_linear_alphas(model.config.train_steps).to(z.device)
    return inpaint_ddim(lambda zt, t: network(zt, t.float()), z, mask, noise, alphas, steps)


def regions(mask: Tensor, context: int, multiple: int) -> list[Box]:
    """Boxes around the connected parts of a latent mask (d, h, w), with context; overlapping ones become one.

    Sides are multiples of ``multiple`` (the UNet halves them) unless the volume itself is smaller.
    """
    from scipy import ndimage

    labels, _ = ndimage.label(mask.cpu().numpy())
    boxes = [_grown(box, mask.shape, context, multiple) for box in ndimage.find_objects(labels)]
    merged: list[Box] = []
    while boxes:
        box = boxes.pop()
        other = next((b for b in boxes if _overlap(b, box)), None)
        if other is None:
            merged.append(box)
            continue
        boxes.remove(other)
        pairs = zip(box, other, strict=True)
        union = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
        boxes.append(_grown(union, mask.shape, 0, multiple))
    return sorted(merged, key=lambda b: (b[0].start, b[1].start, b[2].start))


def _grown(box: tuple[slice, ...], shape: torch.Size, context: int, multiple: int) -> Box:
    sides = []
    for part, side in zip(box, shape, strict=True):
        start, stop = max(part.start - context, 0), min(part.stop + context, side)
        length = min(-(-(stop - start) // multiple) * multiple, side)
        start = max(min(start, side - length), 0)
        sides.append(slice(start, start + length))
    return sides[0], sides[1], sides[2]


def _overlap(a: Box, b: Box) -> bool:
    return all(x.start < y.stop and y.start < x.stop for x, y in zip(a, b, strict=True))
