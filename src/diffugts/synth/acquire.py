"""What the scanner does to an ideal image: blur, slice thickness, noise, bias field; pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffugts.synth.field import F32, Axes, noise

FWHM = 2.3548


@dataclass(frozen=True)
class Scanner:
    """One acquisition: drawn once per render, so that two windows of a render share it."""

    blur_mm: float
    thickness_mm: float
    slice_axis: int
    noise: float
    grain_mm: float
    streaks: float
    field_of_view_mm: float
    fill: float
    bias: float
    bias_mm: float
    gamma: float
    gain: float
    seed: int


def draw_scanner(rng: np.random.Generator, modality: str) -> Scanner:
    """A random scanner and protocol. CT is sliced along the body axis; MR in any plane, and thicker."""
    ct = modality == "ct"
    thick = float(rng.choice([1.0, 1.5, 2.5, 3.0, 5.0] if ct else [1.0, 1.2, 3.0, 4.0, 6.0]))
    return Scanner(
        blur_mm=float(rng.uniform(0.8, 2.0)),
        thickness_mm=thick,
        slice_axis=2 if ct or rng.random() < 0.6 else int(rng.integers(3)),
        noise=float(np.exp(rng.uniform(np.log(4), np.log(32)))) if ct else float(rng.uniform(0.004, 0.05)),
        grain_mm=float(rng.uniform(0.5, 1.6)),
        streaks=float(rng.uniform(1, 7)) if ct and rng.random() < 0.25 else 0.0,
        field_of_view_mm=float(rng.uniform(175, 260)) if ct and rng.random() < 0.4 else 0.0,
        fill=float(rng.choice([-1000.0, -1024.0, -1024.0, -2000.0])),
        bias=0.0 if ct else float(rng.uniform(0.0, 0.28)),
        bias_mm=float(rng.uniform(60, 140)),
        gamma=1.0 if ct else float(np.exp(rng.normal(0, 0.15))),
        gain=1.0 if ct else float(np.exp(rng.uniform(np.log(50), np.log(3000)))),
        seed=int(rng.integers(2**31)),
    )


def margin_mm(scanner: Scanner) -> float:
    """How much anatomy around a window the acquisition mixes in."""
    return 1.5 * scanner.thickness_mm + 1.5 * scanner.blur_mm


def point_spread(image: F32, spacing: tuple[float, ...], fwhm_mm: float) -> F32:
    """Gaussian blur of the given full width, less what the voxel itself already averages."""
    sigma = [np.sqrt(max(fwhm_mm**2 - (0.7 * s) ** 2, 0.0)) / FWHM / s for s in spacing]
    if max(sigma) < 0.2:
        return image
    out: F32 = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=2.5)
    return out


def thick_slices(image: F32, axes: Axes, axis: int, thickness_mm: float) -> F32:
    """Average over thick slices that lie at multiples of their thickness, then linear back to the grid.

    Returns the image as it is when its voxels are not thinner than the slices.
    """
    coords = axes[axis]
    step = abs(float(coords[1] - coords[0])) if len(coords) > 1 else thickness_mm
    if thickness_mm <= 1.2 * step:
        return image
    centres = thickness_mm * np.arange(np.floor(coords[0] / thickness_mm), np.ceil(coords[-1] / thickness_mm) + 1)
    overlap = np.clip(
        np.minimum(centres[:, None] + thickness_mm / 2, coords[None] + step / 2)
        - np.maximum(centres[:, None] - thickness_mm / 2, coords[None] - step / 2),
        0,
        None,
    )
    gather = overlap / np.maximum(overlap.sum(1, keepdims=True), 1e-9)
    back = np.clip(1 - np.abs(coords[:, None] - centres[None]) / thickness_mm, 0, 1)
    both = ((back / back.sum(1, keepdims=True)) @ gather).astype(np.float32)
    out: F32 = np.ascontiguousarray(np.moveaxis(np.tensordot(both, image, axes=(1, axis)), 0, axis))
    return out


def correlated_noise(
    shape: tuple[int, ...], spacing: tuple[float, ...], grain_mm: float, rng: np.random.Generator
) -> F32:
    """Unit-variance noise with the grain of a reconstruction: blurred white noise less its slow part."""
    white = rng.standard_normal(shape, dtype=np.float32)
    sigma = [grain_mm / s for s in spacing[:2]] + [0.3 * grain_mm / spacing[2]]
    if max(sigma) < 0.25:
        return white
    soft = ndimage.gaussian_filter(white, sigma, truncate=2.5, mode="wrap")
    soft -= ndimage.gaussian_filter(soft, [2 * s for s in sigma], truncate=2.0, mode="wrap") * np.float32(0.6)
    out: F32 = soft / np.float32(max(float(soft.std()), 1e-6))
    return out


def acquire_ct(image: F32, axes: Axes, spacing: tuple[float, ...], scanner: Scanner, rng: np.random.Generator) -> F32:
    """(D, H, W) ideal HU -> HU as scanned: blur, slices, grainy noise, streaks, round field of view."""
    out = thick_slices(point_spread(image, spacing, scanner.blur_mm), axes, scanner.slice_axis, scanner.thickness_mm)
    thin = np.sqrt(max(scanner.thickness_mm, min(spacing)) / 2.0)
    out = out + np.float32(scanner.noise / thin) * correlated_noise(out.shape, spacing, scanner.grain_mm, rng)
    if scanner.streaks:  # photon starvation: noise that is long from side to side
        lines = rng.standard_normal((1, *out.shape[1:]), dtype=np.float32)
        wave = noise((axes[0],) + (np.zeros(1), np.zeros(1)), 60.0, scanner.seed)
        out += np.float32(scanner.streaks) * lines * (np.float32(0.7) + np.float32(0.3) * wave)
    if scanner.field_of_view_mm:
        ring = np.hypot(axes[0][:, None], axes[1][None]) > scanner.field_of_view_mm
        out[ring] = scanner.fill
    floor: F32 = np.maximum(out, np.float32(min(scanner.fill, -1024.0)))
    return floor


def acquire_mr(image: F32, axes: Axes, spacing: tuple[float, ...], scanner: Scanner, rng: np.random.Generator) -> F32:
    """(D, H, W) ideal signal -> magnitude image: blur, slices, bias field, gamma, Rician noise, gain."""
    out = thick_slices(point_spread(image, spacing, scanner.blur_mm), axes, scanner.slice_axis, scanner.thickness_mm)
    out = np.maximum(out, 0) ** np.float32(scanner.gamma)
    out *= np.exp(np.float32(scanner.bias) * np.clip(noise(axes, scanner.bias_mm, scanner.seed), -2.5, 2.5))
    sd = np.float32(scanner.noise)
    real = out + sd * rng.standard_normal(out.shape, dtype=np.float32)
    result: F32 = np.hypot(real, sd * rng.standard_normal(out.shape, dtype=np.float32)) * np.float32(scanner.gain)
    return result
