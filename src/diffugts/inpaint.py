"""Training-free latent inpainting: repaint what lies inside a mask, keep the rest.

The sampler never learns about masks. At every step the unknown part comes from the model and the known part
from the scan's own latent, noised to the time the sampler goes to next; with one fixed noise the known path is a
straight line of the rectified flow. A flow that learned to paint into clean surroundings is shown the scan's latent
as it is instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffugts.errors import InputError

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(z_t (N, C, d, h, w), t (N,) in 0..1) → v = x0 − noise."""
Epsilon = Callable[[Tensor, Tensor], Tensor]
"""(z_t (N, C, d, h, w), timestep (N,)) → the noise in z_t."""


def dilate(mask: npt.NDArray[np.bool_], spacing: Sequence[float], margin_mm: float) -> npt.NDArray[np.bool_]:
    """Grow a mask (D, H, W) by every voxel whose centre is within ``margin_mm`` of one of its voxels' centres."""
    from scipy import ndimage

    if margin_mm <= 0 or not mask.any():
        same: npt.NDArray[np.bool_] = mask.copy()
        return same
    reach = [int(margin_mm / mm) + 1 for mm in spacing]
    found = ndimage.find_objects(mask.astype(np.uint8))[0]  # the distances are wanted near the mask only
    box = tuple(
        slice(max(part.start - r, 0), min(part.stop + r, side))
        for part, r, side in zip(found, reach, mask.shape, strict=True)
    )
    grown = np.zeros_like(mask)
    grown[box] = ndimage.distance_transform_edt(~mask[box], sampling=tuple(spacing)) <= margin_mm
    return grown


def to_latent_mask(mask: Tensor, stride: int) -> Tensor:
    """m = maxpool(M): (D, H, W) bool to the latent grid (1, 1, d, h, w) float; small lesions survive."""
    return F.max_pool3d(mask[None, None].float(), stride)


def flow_times(steps: int, device: torch.device | None = None, voxels: int = 0, base: int = 0) -> Tensor:
    """Times from 1 (noise) down to 0, ``steps`` + 1 of them.

    Evenly spaced without a ``base``; with one, t' = r·t / (1 + (r − 1)·t), r = (voxels / base)^(1/3), as MAISI was
    trained (MONAI's ``RFlowScheduler`` with ``use_timestep_transform``; base 32³).

    Args:
        voxels: of the latent that the network sees. base: see ``ModelConfig.time_base``.
    """
    if steps < 1:
        raise InputError(f"sampling needs at least 1 step, not {steps}")
    times = torch.linspace(1.0, 0.0, steps + 1, device=device)
    if not base:
        return times
    ratio = float((voxels / base) ** (1 / 3))
    return ratio * times / (1 + (ratio - 1) * times)


def inpaint_flow(
    velocity: Velocity, z: Tensor, mask: Tensor, noise: Tensor, steps: int = 10, jumps: int = 0,
    generator: torch.Generator | None = None, times: Tensor | None = None, clean: bool = False,
) -> Tensor:  # fmt: skip
    """Repaint ``mask`` with a rectified flow.

    Args:
        velocity: the frozen network, conditions bound.
        z: (1, C, d, h, w) latent of the scan. mask: (1, 1, d, h, w), 1 = repaint.
        noise: (N, C, d, h, w) one start per sample; also the known path's only noise.
        steps: Euler steps from t = 1 to t = 0.
        times: the (steps + 1,) times themselves, from 1 to 0, where they are not evenly spaced.
        jumps: RePaint jumps per step: go back to t with fresh noise and redo the step, so that the repainted
            part can agree with its surroundings. Needs ``generator``, on the CPU.
        clean: what is known is shown without noise (``ModelConfig.clean_context``).

    Returns:
        (N, C, d, h, w): equal to ``z`` bit for bit where the mask is 0.
    """
    times = flow_times(steps, z.device) if times is None else times
    zt = torch.where(mask > 0, noise, z) if clean else noise.clone()
    for t, tn in pairwise(times):
        for round_ in range(jumps + 1):
            v = velocity(zt, t.expand(len(zt)))
            known = z if clean else (1 - tn) * z + tn * noise
            zn = mask * (zt + v * (t - tn)) + (1 - mask) * known
            if round_ < jumps and tn > 0:
                a = (1 - t) / (1 - tn)
                fresh = torch.randn(zn.shape, generator=generator).to(zn.device)
                zt = a * zn + torch.sqrt((t**2 - (a * tn) ** 2).clamp_min(0)) * fresh
                zt = torch.where(mask > 0, zt, z) if clean else zt
            else:
                break
        zt = zn
    return torch.where(mask > 0, zt, z)


def inpaint_ddim(epsilon: Epsilon, z: Tensor, mask: Tensor, noise: Tensor, alphas: Tensor, steps: int = 50) -> Tensor:
    """Repaint ``mask`` with deterministic DDIM (Song et al., 2021) on a DDPM's noise schedule.

    Args:
        epsilon: the frozen network, conditions bound.
        z, mask, noise: as in :func:`inpaint_flow`.
        alphas: (T,) cumulative products of 1 − beta.
        steps: how many of the T timesteps are visited, evenly spaced, from the noisiest down.

    Returns:
        (N, C, d, h, w): equal to ``z`` bit for bit where the mask is 0.
    """
    visited = torch.linspace(len(alphas) - 1, 0, steps, device=z.device).round().long()
    following = torch.cat([alphas[visited[1:]], alphas.new_ones(1)])
    zt = noise.clone()
    for step, a, an in zip(visited, alphas[visited], following, strict=True):
        eps = epsilon(zt, step.expand(len(zt)))
        x0 = (zt - torch.sqrt(1 - a) * eps) / torch.sqrt(a)
        unknown = torch.sqrt(an) * x0 + torch.sqrt(1 - an) * eps
        known = torch.sqrt(an) * z + torch.sqrt(1 - an) * noise  # q(z_{tn} | z), at the time gone to
        zt = mask * unknown + (1 - mask) * known
    return torch.where(mask > 0, zt, z)


def scaled_linear_alphas(steps: int = 1000, beta_start: float = 0.0015, beta_end: float = 0.0195) -> Tensor:
    """Cumulative alphas of MAISI's DDPM schedule, (T,)."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2
    return torch.cumprod(1 - betas, dim=0)
