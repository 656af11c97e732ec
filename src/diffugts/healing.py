"""Pseudo-healthy anatomy for a candidate: repaint and decode only the region around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from diffugts.backbone.conditions import Conditions
from diffugts.backbone.latent_diffusion import LatentDiffusion, announce, blending_weight
from diffugts.backbone.memory import box_limit
from diffugts.blend import seamless
from diffugts.inpaint import flow_times, inpaint_ddim, inpaint_flow, scaled_linear_alphas, to_latent_mask
from diffugts.organs import OrganMap
from diffugts.tiles import Box, Cover, at, clusters, grown, tight, union, volume, within

RIM = 4
"""Latent voxels around the mask that are decoded with it: the decoder looks about as far."""


@dataclass(frozen=True)
class Sampling:
    """How the candidate is repainted.

    Attributes:
        steps: sampling steps; None takes the model's own number.
        jumps: RePaint jumps per step (flow only); None takes the model's own number.
        context: latent voxels of scan kept around the candidate for the model to look at.
        guidance: see ``LatentDiffusion.guided``; None takes the model's own.
        organs: what lies where in the scan, for the ControlNet.
    """

    steps: int | None = None
    jumps: int | None = None
    context: int = 6
    guidance: float | None = None
    organs: OrganMap | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Healed:
    """One region of a scan, as it is and as it would look healthy.

    Attributes:
        box: the region in image voxels of the model grid.
        mask: (D, H, W) bool, what was repainted, at the latent's resolution.
        decoded: (D, H, W) X = D(z/s), the scan as the model sees it.
        painted: (D, H, W) H = D(z0/s).
        healthy: (D, H, W) the same inside M without a seam at its surface (``blend``); X outside of it.
        latent: (1, C, d, h, w) z. healthy_latent: z0, equal to z outside the mask.
    """

    box: Box
    mask: Tensor
    decoded: Tensor
    painted: Tensor
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
    stride = model.config.stride
    m = to_latent_mask(mask, stride)
    limit = box_limit(model)
    cover = Cover(sampling.context, model.config.multiple // stride, limit)
    groups = clusters((m[0, 0] > 0).cpu().numpy(), cover)
    if not groups:
        return
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(latent.device)
    for number, boxes in enumerate(groups):
        outer = union(boxes)
        place = at(outer)
        z, part = latent[place], m[place]
        inner = [within(box, outer) for box in boxes]
        report = progress and partial(_overall, progress, number, len(groups))
        z0 = _repaint(model, z, part, noise[place], inner, outer, conditions, seed, sampling, report)
        yield _decoded(model, z, z0, part, mask, inner, outer, limit)
        if progress:
            progress((number + 1) / len(groups))


def _overall(progress: Callable[[float], None], done: int, count: int, share: float) -> None:
    """Tell of a fraction of one of ``count`` regions as a fraction of them all."""
    progress((done + share) / count)


@torch.inference_mode()
def _repaint(
    model: LatentDiffusion, z: Tensor, mask: Tensor, noise: Tensor, boxes: Sequence[Box], outer: Box,
    conditions: Conditions, seed: int, sampling: Sampling, progress: Callable[[float], None] | None,
) -> Tensor:  # fmt: skip
    """z0 of one cluster: (1, C, ·) like z, whose boxes are given in its own coordinates."""
    config = model.config
    guidance = config.guidance if sampling.guidance is None else sampling.guidance
    steps = sampling.steps or config.steps
    jumps = config.jumps if sampling.jumps is None else sampling.jumps
    evaluations = steps * (jumps + 1) - jumps if config.prediction == "flow" else steps
    maps = [None if sampling.organs is None else sampling.organs.crop(box, outer, config.stride) for box in boxes]
    weights = [blending_weight([part.stop - part.start for part in box], z.device) for box in boxes]
    calls = 0

    def network(zt: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        began = time.perf_counter()
        if len(boxes) == 1:
            v = model.guided(zt[at(boxes[0])], t, conditions, guidance, maps[0])
        else:
            v, total = torch.zeros_like(zt), zt.new_zeros(1, 1, *zt.shape[2:])
            for box, weight, organs in zip(boxes, weights, maps, strict=True):
                v[at(box)] += weight * model.guided(zt[at(box)], t, conditions, guidance, organs)
                total[at(box)] += weight
            v /= total.clamp_min(1e-6)  # what lies in no box is known
        calls += 1
        if calls == 2:  # the first one also pays for what starts only once
            announce("repainting", (time.perf_counter() - began) * (evaluations - calls))
        if progress:
            progress(min(calls / (evaluations + 1), 0.95))
        return v

    if config.prediction == "flow":
        generator = torch.Generator().manual_seed(seed)  # on the CPU, so that devices agree
        times = flow_times(steps, z.device, max(volume(box) for box in boxes), config.time_base)
        return inpaint_flow(network, z, mask, noise, steps, jumps, generator, times, config.clean_context)
    alphas = scaled_linear_alphas(config.train_steps).to(z.device)
    return inpaint_ddim(lambda zt, t: network(zt, t.float()), z, mask, noise, alphas, steps)


@torch.inference_mode()
def _decoded(
    model: LatentDiffusion, z: Tensor, z0: Tensor, mask: Tensor, candidate: Tensor, boxes: Sequence[Box], outer: Box,
    limit: int,
) -> Healed:  # fmt: skip
    """Decode a cluster where it was repainted, and a rim around that.

    Args:
        mask: (1, 1, ·) like z, what was repainted. candidate: (D, H, W) of the whole scan, what was to be.
    """
    stride, marked = model.config.stride, (mask[0, 0] > 0).cpu().numpy()
    whole = grown(tight(marked) or boxes[0], marked.shape, RIM)
    parts = [grown(found, marked.shape, RIM) for box in boxes if (found := tight(marked[box], box)) is not None]
    images = []
    for latent in (z, z0):
        if len(parts) == 1:
            images.append(model.decode_within(latent[at(whole)], limit)[0, 0])
            continue
        shape = [(part.stop - part.start) * stride for part in whole]
        image, total = (z.new_zeros(1, 1, *shape) for _ in range(2))
        for part in parts:
            place = at(_scaled(within(part, whole), stride))
            weight = blending_weight([(p.stop - p.start) * stride for p in part], z.device)
            image[place] += weight * model.decode_within(latent[at(part)], limit)
            total[place] += weight
        images.append((image / total.clamp_min(1e-6))[0, 0])
    full = mask[at(whole)][0, 0] > 0
    for axis in range(3):
        full = full.repeat_interleave(stride, axis)
    sides = [slice(o.start + w.start, o.start + w.stop) for o, w in zip(outer, whole, strict=True)]
    box = _scaled((sides[0], sides[1], sides[2]), stride)
    x, h = (image.float() for image in images)
    left = seamless((x - h).cpu().numpy(), candidate[box].cpu().numpy())
    healthy = x - torch.from_numpy(left).to(x.device)
    return Healed(box, full, x, h, healthy, z[at(whole)], z0[at(whole)])


def _scaled(box: Box, stride: int) -> Box:
    a, b, c = (slice(part.start * stride, part.stop * stride) for part in box)
    return a, b, c
