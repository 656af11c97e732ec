"""The samplers keep what is known, start from noise, and follow the straight line of the flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffugts.errors import InputError
from diffugts.inpaint import (
    dilate,
    flow_times,
    inpaint_ddim,
    inpaint_flow,
    scaled_linear_alphas,
    to_latent_mask,
)

SHAPE = (1, 2, 6, 6, 6)


def _case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, noise = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    mask = torch.zeros(1, 1, 6, 6, 6)
    mask[..., 2:4, 2:5, 1:4] = 1
    return z, mask, noise


def _pull_to(target: float):  # type: ignore[no-untyped-def]
    """The exact velocity of a flow whose data is one constant: v = x0 − noise = (x0 − z_t) / t."""
    return lambda zt, t: (target - zt) / t.view(-1, 1, 1, 1, 1)


def test_known_latent_is_kept_bit_for_bit_and_the_rest_becomes_the_models() -> None:
    z, mask, noise = _case()
    out = inpaint_flow(_pull_to(3.0), z, mask, noise, steps=7)
    known = (mask == 0).expand_as(z)
    assert torch.equal(out[known], z[known])
    torch.testing.assert_close(out[~known], torch.full_like(out[~known], 3.0), atol=1e-5, rtol=0)


def test_starts_from_pure_noise_so_that_nothing_of_the_tumour_stays() -> None:
    """Starting late (t = 49 of 1000, say) leaves the tumour in: then the scan inside the mask would matter."""
    z, mask, noise = _case()
    velocity = lambda zt, t: 0.3 * zt.roll(1, 2) - zt  # noqa: E731
    changed = torch.where(mask > 0, z + 10, z)
    first, second = (inpaint_flow(velocity, scan, mask, noise, steps=5) for scan in (z, changed))
    assert torch.equal(first, second)


def test_known_path_is_at_the_time_the_network_is_asked_about() -> None:
    """Noising the known part at t instead of the next t leaves the background noisy at the end."""
    z, mask, noise = _case()
    seen: list[float] = []

    def velocity(zt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        line = (1 - t) * z + t * noise
        known = (mask == 0).expand_as(z)
        torch.testing.assert_close(zt[known], line[known])
        seen.append(float(t))
        return torch.zeros_like(zt)

    inpaint_flow(velocity, z, mask, noise, steps=4)
    assert seen == [1.0, 0.75, 0.5, 0.25]


def test_jumps_redo_steps_with_seeded_noise() -> None:
    z, mask, noise = _case()
    calls = []

    def velocity(zt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(float(t))
        return -zt

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return inpaint_flow(velocity, z, mask, noise, 4, jumps=2, generator=generator)

    first = run()
    assert len(calls) == 3 * 3 + 1  # the last step has nothing to jump back from
    assert torch.equal(first, run())
    assert torch.equal(first[(mask == 0).expand_as(z)], z[(mask == 0).expand_as(z)])


def test_a_flow_of_clean_surroundings_is_shown_the_scan_as_it_is() -> None:
    """From the first call to the last, jumps included, and noise inside the mask only."""
    z, mask, noise = _case()
    known = (mask == 0).expand_as(z)
    shown = []

    def velocity(zt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert torch.equal(zt[known], z[known])
        shown.append(zt[~known])
        return -zt

    for jumps in (0, 1):
        generator = torch.Generator().manual_seed(3)
        out = inpaint_flow(velocity, z, mask, noise, 3, jumps=jumps, generator=generator, clean=True)
        assert torch.equal(out[known], z[known])
    assert torch.equal(shown[0], noise[~known])
    assert len(shown) == 3 + 5


def test_ddim_keeps_the_known_and_finds_constant_data() -> None:
    z, mask, noise = _case()
    alphas = scaled_linear_alphas()

    def epsilon(zt: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        a = alphas[step].view(-1, 1, 1, 1, 1)
        return (zt - torch.sqrt(a) * 2.0) / torch.sqrt(1 - a)

    out = inpaint_ddim(epsilon, z, mask, noise, alphas, steps=20)
    known = (mask == 0).expand_as(z)
    assert torch.equal(out[known], z[known])
    torch.testing.assert_close(out[~known], torch.full_like(out[~known], 2.0), atol=1e-3, rtol=0)


def test_ddim_known_part_is_noised_at_the_next_timestep() -> None:
    z, mask, noise = _case()
    alphas, asked = scaled_linear_alphas(), []

    def epsilon(zt: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        a = alphas[step[0]]
        if asked:  # the first call sees pure noise
            known = (mask == 0).expand_as(z)
            torch.testing.assert_close(zt[known], (torch.sqrt(a) * z + torch.sqrt(1 - a) * noise)[known])
        asked.append(int(step[0]))
        return torch.zeros_like(zt)

    inpaint_ddim(epsilon, z, mask, noise, alphas, steps=5)
    assert asked[0] == 999
    assert asked[-1] == 0


def test_alphas_are_those_of_the_ddpm_schedule() -> None:
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195)
    torch.testing.assert_close(scaled_linear_alphas(), scheduler.alphas_cumprod, atol=1e-5, rtol=1e-4)


def test_empty_mask_is_identity() -> None:
    z, mask, noise = _case()
    assert torch.equal(inpaint_flow(_pull_to(1.0), z, torch.zeros_like(mask), noise, 3), z)


def test_flow_needs_a_step() -> None:
    with pytest.raises(InputError, match="at least 1 step, not 0"):
        flow_times(0)


def test_latent_mask_keeps_a_single_voxel() -> None:
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[5, 2, 7] = True
    latent = to_latent_mask(mask, 4)
    assert latent.shape == (1, 1, 2, 2, 2)
    assert latent.sum() == 1
    assert latent[0, 0, 1, 0, 1] == 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 4.0)])
def test_dilation_is_in_millimetres(spacing: tuple[float, float, float]) -> None:
    mask = np.zeros((21, 21, 21), bool)
    mask[10, 10, 10] = True
    grown = dilate(mask, spacing, 5.0)
    index = np.argwhere(np.ones_like(mask)).reshape(21, 21, 21, 3) - 10
    assert np.array_equal(grown, np.linalg.norm(index * spacing, axis=-1) <= 5.0)


def test_dilating_several_parts_grows_them_all() -> None:
    mask = np.zeros((30, 8, 8), bool)
    mask[3, 4, 4] = mask[25, 4, 4] = True
    assert dilate(mask, (1, 1, 1), 2).sum() == 2 * 33
