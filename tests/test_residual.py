"""Residuals, their fusion, and the threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from diffugts.residual import (
    Fusion,
    feature_residual,
    fuse,
    gaussian,
    normalised,
    otsu,
    pixel_residual,
    probability_of,
)


def test_equal_images_leave_nothing() -> None:
    x = torch.rand(8, 8, 8)
    assert float(pixel_residual(x, x.clone(), 1.0).max()) == 0.0


def test_smoothing_comes_before_the_absolute_value() -> None:
    """Texture of the two images averages out; a shift of the mean stays."""
    noise = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(pixel_residual(noise, torch.zeros_like(noise), 2.0).mean()) < 0.2 * float(noise.abs().mean())
    shifted = pixel_residual(noise + 5, torch.zeros_like(noise), 2.0)
    assert float(shifted.mean()) == pytest.approx(5, abs=0.1)


def test_gaussian_against_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    x = torch.rand(9, 10, 11, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(x.numpy(), 1.3, mode="nearest", radius=4)
    np.testing.assert_allclose(gaussian(x, 1.3).numpy(), expected, atol=1e-5)


def test_feature_residual_is_the_mean_over_channels() -> None:
    z, z0 = torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
    z0[:, 0] = 3.0
    out = feature_residual(z, z0, torch.Size((8, 8, 8)))
    assert out.shape == (8, 8, 8)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_fusion_by_hand() -> None:
    inside = torch.zeros(4, 4, 4, dtype=torch.bool)
    inside[1:3] = True
    pixel, feature, attention = (torch.full((4, 4, 4), v) for v in (0.2, 0.4, 0.5))
    r = fuse(pixel, feature, attention, inside, Fusion(pixel=2.0, feature=1.0, attention=1.0))
    assert float(r[~inside].abs().max()) == 0.0
    torch.testing.assert_close(r[inside], torch.full((32,), (2.0 + 1.0 + 0.5) / 4))


def test_normalised_ignores_what_lies_outside() -> None:
    residual = torch.rand(4, 4, 4) * 0.1
    inside = torch.zeros(4, 4, 4, dtype=torch.bool)
    inside[0] = True
    residual[3] = 100.0
    assert float(normalised(residual, inside)[inside].max()) == 1.0


def test_otsu_splits_two_groups_as_scikit_image_does() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat(
        [
            0.2 + 0.05 * torch.randn(500, generator=generator),
            0.7 + 0.08 * torch.randn(300, generator=generator),
        ]
    )
    values = values.clamp(0, 1)
    ours = otsu(values)
    theirs = threshold_otsu(values.numpy())
    assert ((values > ours) == (values > float(theirs))).float().mean() > 0.99


def test_probability_is_half_at_the_threshold_and_zero_where_nothing_differs() -> None:
    r = torch.tensor([0.0, 0.3, 0.9])
    p = probability_of(r, 0.3, 0.08)
    assert float(p[0]) == 0.0
    assert float(p[1]) == pytest.approx(0.5)
    assert float(p[2]) > 0.99
