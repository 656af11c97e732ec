"""MAISI through our code: NVIDIA's networks, MONAI's numbers, conditions, schedules, memory, organ maps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffugts.backbone import weights
from diffugts.backbone.checkpoints import import_files, networks
from diffugts.backbone.conditions import Conditions, Organs, find_regions, label_bits, parse_regions
from diffugts.backbone.config import MODALITY_CODES, ModelConfig
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.backbone.memory import costs, live_bytes, wanted_splits
from diffugts.backbone.networks import allowed_splits, cpu_safe
from diffugts.commands.options import SEQUENCES
from diffugts.errors import InputError, WeightsError
from diffugts.healing import Sampling, heal_regions
from diffugts.inpaint import flow_times, inpaint_ddim, inpaint_flow, scaled_linear_alphas
from diffugts.organs import OrganMap, read_labels
from diffugts.roi import narrowed, roi_box
from diffugts.segmenter import Segmenter
from diffugts.spatial import place
from diffugts.tiles import Cover, clusters, volume
from diffugts.volume import Volume
from tiny_maisi import SHIPPED, maisi_config, maisi_model, models_folder, nvidia_files

CT = Conditions((1.5, 1.4, 3.0), "ct")


@pytest.fixture
def usual_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions as MONAI's: to compare with it to the last digits."""
    monkeypatch.setattr("diffugts.backbone.convolutions.ONEDNN", False)


@pytest.fixture(scope="module")
def flow() -> LatentDiffusion:
    return maisi_model()


@pytest.fixture(scope="module")
def ddpm() -> LatentDiffusion:
    return maisi_model("maisi-ct-ddpm")


def latent(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(1, 4, *(shape or (8, 8, 8)), generator=torch.Generator().manual_seed(seed))


# --- full size, without memory ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unet"),
    [("maisi-ct-rflow", 180.5), ("maisi-ct-ddpm", 169.4), ("maisi-mr-rflow", 180.5), ("maisi-mr-brain-rflow", 180.5)],
)
def test_networks_have_nvidias_size(name: str, unet: float) -> None:
    config = ModelConfig.read(SHIPPED / name / "config.json")
    parts = networks(config)
    count = {part: sum(p.numel() for p in net.parameters()) / 1e6 for part, net in parts.items()}
    assert count["autoencoder"] == pytest.approx(20.94, abs=0.006)
    assert count["unet"] == pytest.approx(unet, abs=0.06)
    assert ("controlnet" in parts) == name.startswith("maisi-ct")
    assert (config.stride, config.multiple) == (4, 32)
    assert config.name == name


def test_every_key_and_shape_is_that_of_monais_own_class() -> None:
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    config = ModelConfig.read(SHIPPED / "maisi-ct-rflow" / "config.json")
    parts = networks(config)
    with torch.device("meta"):
        plain = {
            "autoencoder": AutoencoderKlMaisi(**config.autoencoder),
            "unet": DiffusionModelUNetMaisi(**{**config.unet, "use_flash_attention": False}),
        }
    for part, net in plain.items():
        wanted = {key: value.shape for key, value in net.state_dict().items()}
        assert {key: value.shape for key, value in parts[part].state_dict().items()} == wanted


# --- parity with MONAI's classes --------------------------------------------------------------------------


@pytest.mark.usefixtures("usual_kernels")
def test_encode_and_decode_are_monais(flow: LatentDiffusion) -> None:
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    monai = AutoencoderKlMaisi(**cpu_safe(flow.config.autoencoder)).eval()
    monai.load_state_dict(flow.autoencoder.net.state_dict())
    x = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mu, _ = monai.encode(x)
        encoding = flow.encode(x, CT)
        torch.testing.assert_close(encoding.latent, mu * flow.config.scale_factor, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(flow.decode(encoding.latent), monai.decode(mu), atol=1e-5, rtol=1e-5)
    assert tuple(stage.shape[1] for stage in encoding.stages) == flow.feature_channels
    assert [32 // stage.shape[2] for stage in encoding.stages] == list(flow.feature_strides)


def _monais_unet(model: LatentDiffusion) -> nn.Module:
    """MONAI's class with its own attention, not the fused kernel."""
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    net: nn.Module = DiffusionModelUNetMaisi(**cpu_safe(model.config.unet)).eval()
    net.load_state_dict(model.unet.state_dict())
    return net


@pytest.mark.usefixtures("usual_kernels")
def test_one_denoising_step_is_monais_with_maisis_conditions(flow: LatentDiffusion, ddpm: LatentDiffusion) -> None:
    spacing = torch.tensor([[150.0, 140.0, 300.0]])
    z = latent()
    with torch.no_grad():
        wanted = _monais_unet(flow)(
            x=z, timesteps=torch.tensor([700.0]), spacing_tensor=spacing, class_labels=torch.tensor([1])
        )
        torch.testing.assert_close(flow.predict(z, torch.tensor([0.7]), [CT]), wanted, atol=1e-5, rtol=1e-5)
        wanted = _monais_unet(ddpm)(
            x=z,
            timesteps=torch.tensor([700.0]),
            spacing_tensor=spacing,
            top_region_index_tensor=torch.tensor([[0.0, 100.0, 0.0, 0.0]]),
            bottom_region_index_tensor=torch.tensor([[0.0, 0.0, 0.0, 100.0]]),
        )
        told = replace(CT, regions=parse_regions("chest-pelvis"))
        torch.testing.assert_close(ddpm.predict(z, torch.tensor([700.0]), [told]), wanted, atol=1e-5, rtol=1e-5)


def test_thirty_step_trajectory_is_that_of_monais_scheduler(flow: LatentDiffusion) -> None:
    """At whole time steps, where MONAI's truncation of the next time to an integer changes nothing."""
    from monai.networks.schedulers import RFlowScheduler

    scheduler = RFlowScheduler(1000, use_discrete_timesteps=True)
    scheduler.set_timesteps(30)
    noise, sample = latent(3), latent(3)
    steps = [*scheduler.timesteps.tolist(), 0]
    with torch.no_grad():
        for t, following in pairwise(steps):
            v = flow.predict(sample, torch.tensor([t / 1000]), [CT])
            sample, _ = scheduler.step(v, t, sample, following)
        ours = inpaint_flow(
            lambda zt, t: flow.predict(zt, t, [CT]), torch.zeros_like(noise), torch.ones(1, 1, 8, 8, 8), noise, 30,
            times=torch.tensor(steps) / 1000,
        )  # fmt: skip
    torch.testing.assert_close(ours, sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_times_depend_on_the_latents_size_as_maisi_was_trained(side: int) -> None:
    from monai.networks.schedulers import RFlowScheduler

    scheduler = RFlowScheduler(1000, use_discrete_timesteps=False, use_timestep_transform=True)
    scheduler.set_timesteps(30, input_img_size_numel=torch.tensor(side**3))
    ours = flow_times(30, voxels=side**3, base=32**3)
    np.testing.assert_allclose(ours[:-1], scheduler.timesteps.float() / 1000, atol=5e-4)  # MONAI's are float16
    assert (ours[0], ours[-1]) == (1, 0)


def test_ddim_is_monais(ddpm: LatentDiffusion) -> None:
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(
        1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195, clip_sample=False
    )
    alphas = scaled_linear_alphas()
    noise, asked = latent(1), []

    def epsilon(zt: Tensor, step: Tensor) -> Tensor:
        asked.append((int(step), zt.clone()))
        return ddpm.predict(zt, step.float(), [CT]) if len(asked) < 4 else torch.zeros_like(zt)

    with torch.no_grad():
        inpaint_ddim(epsilon, torch.zeros_like(noise), torch.ones(1, 1, 8, 8, 8), noise, alphas, 1000)
        for (step, zt), (following, wanted) in pairwise(asked[:4]):
            assert following == step - 1
            eps = ddpm.predict(zt, torch.tensor([float(step)]), [CT])
            torch.testing.assert_close(scheduler.step(eps, step, zt)[0], wanted, atol=1e-5, rtol=1e-5)


def test_inpainting_keeps_the_known_latent_exactly(flow: LatentDiffusion, ddpm: LatentDiffusion) -> None:
    mask = torch.zeros(64, 64, 64, dtype=torch.bool)
    mask[20:40, 24:36, 28:44] = True
    for model in (flow, ddpm):
        z = latent(5, 16, 16, 16)
        (healed,) = heal_regions(model, z, mask, CT, 0, Sampling(steps=2, context=3))
        known = healed.latent == healed.healthy_latent
        repainted = torch.nn.functional.max_pool3d(healed.mask[None, None].float(), 4)[0, 0] > 0
        assert known[:, :, ~repainted].all()
        assert not known[:, :, repainted].all()


# --- splits and windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 40, 64])
def test_split_convolutions_change_nothing(side: int) -> None:
    """Whatever is asked for: shapes that MONAI's splitting gets wrong are computed in fewer slabs."""
    model = maisi_model()
    x = torch.rand(1, 1, 8, side, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.autoencoder.splits = 1
        mu, stages = model.autoencoder.encode(x)
        image = model.autoencoder.decode(mu)
        model.autoencoder.splits = 4
        split, split_stages = model.autoencoder.encode(x)
        torch.testing.assert_close(split, mu, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.autoencoder.decode(mu), image, atol=1e-5, rtol=1e-5)
        for one, other in zip(stages, split_stages, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_allowed_splits_are_even_and_thicker_than_their_overlap() -> None:
    assert [allowed_splits(side, 8) for side in (8, 9, 10, 16, 24, 32)] == [2, 1, 2, 4, 8, 8]
    assert allowed_splits(32, 1) == 1


def _pointwise(model: LatentDiffusion) -> None:
    """Make every convolution look at one voxel and every norm do nothing: then windows must equal the whole."""
    for net in (model.autoencoder.net.encoder, model.autoencoder.net.decoder):
        for name, module in list(net.named_modules()):
            if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
                keep = 0 if module.stride[0] == 2 else 1  # a downsampling pads at the end alone
                mask = torch.zeros(3, 3, 3)
                mask[keep, keep, keep] = 1
                module.weight.mul_(mask)
            if isinstance(module, nn.GroupNorm):
                parent, _, leaf = name.rpartition(".")
                setattr(net.get_submodule(parent), leaf, nn.Identity())


def test_windows_equal_the_whole() -> None:
    model = maisi_model()
    with torch.no_grad():
        _pointwise(model)
        x = torch.rand(1, 1, 96, 64, 32, generator=torch.Generator().manual_seed(0))
        windowed = model.encode(x, CT)
        mu, stages = model.autoencoder.encode(x)
        torch.testing.assert_close(windowed.latent, mu * model.config.scale_factor, atol=1e-5, rtol=1e-5)
        finest = torch.nn.functional.avg_pool3d(stages[0], 2)
        torch.testing.assert_close(windowed.stages[0], finest, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(windowed.stages[2], stages[2], atol=1e-5, rtol=1e-5)


def test_no_seam_where_windows_meet(flow: LatentDiffusion) -> None:
    """Decoding in windows: steps across the blended zone are no steeper than elsewhere."""
    z = torch.nn.functional.interpolate(latent(2, 5, 3, 3), size=(40, 8, 8), mode="trilinear")
    image = flow.decode_windows(z, window=16)[0, 0]
    steps = image[4::4].diff(dim=0).abs().mean((1, 2))  # from latent voxel to latent voxel, texture left out
    whole = flow.decode(z)[0, 0][4::4].diff(dim=0).abs().mean((1, 2))
    assert float(steps[2:-2].max()) < 2 * float(whole[2:-2].max())


# --- conditions -------------------------------------------------------------------------------------------


def test_guidance_is_from_the_unconditional_class(flow: LatentDiffusion, ddpm: LatentDiffusion) -> None:
    z, t = latent(), torch.tensor([0.5])
    with torch.no_grad():
        with_, without = (flow.predict(z, t, [c]) for c in (CT, replace(CT, modality="unknown")))
        wanted = without + 3 * (with_ - without)  # which multiplies the rounding of the two passes
        torch.testing.assert_close(flow.guided(z, t, CT, 3.0), wanted, atol=5e-4, rtol=1e-3)
        assert not torch.allclose(wanted, with_, atol=5e-3)
        assert torch.equal(flow.guided(z, t, CT, 0.0), with_)
        assert torch.equal(flow.guided(z, t, CT, 1.0), with_)
        with pytest.raises(InputError, match="guidance must be 0"):
            ddpm.guided(z, t, CT, 3.0)


def test_shipped_guidance_schedules_and_codes_are_nvidias() -> None:
    found = {name: ModelConfig.read(SHIPPED / name / "config.json") for name in
             ("maisi-ct-rflow", "maisi-ct-ddpm", "maisi-mr-rflow", "maisi-mr-brain-rflow")}  # fmt: skip
    assert [config.guidance for config in found.values()] == [0, 0, 10, 2]
    assert [config.prediction for config in found.values()] == ["flow", "epsilon", "flow", "flow"]
    assert all(config.spacing_scale == 100 and not config.clip_mr for config in found.values())
    assert MODALITY_CODES["mr-t1c"] == 17
    assert MODALITY_CODES["mr-flair-stripped"] == 31
    assert list(SEQUENCES) == [code for code in MODALITY_CODES if "-" in code]


def _ct(sections: list[tuple[int, float, float]]) -> np.ndarray:
    """A body of stacked discs: (slices, radius in voxels, share of lung inside); 0..1, air outside."""
    grid = np.hypot(*(np.indices((60, 60)) - 29.5))
    image = []
    for count, radius, lung in sections:
        section = np.where(grid < radius, 0.52, 0.0)
        section[grid < radius * lung**0.5 * 0.9] = 0.1 if lung else 0.52
        image += [section] * count
    return np.stack(image, axis=2).astype(np.float32)


@pytest.mark.parametrize(
    ("sections", "regions"),
    [
        ([(20, 25, 0.4)], "chest"),
        ([(20, 25, 0), (20, 25, 0.4)], "chest-abdomen"),
        ([(80, 25, 0), (20, 25, 0.4)], "chest-pelvis"),
        ([(20, 25, 0.4), (30, 12, 0)], "head-chest"),
        ([(30, 25, 0)], "abdomen"),
        ([(90, 25, 0)], "abdomen-pelvis"),
    ],
)
def test_body_regions_are_found(sections: list[tuple[int, float, float]], regions: str) -> None:
    assert find_regions(_ct(sections), (6.0, 6.0, 4.0)) == parse_regions(regions)


def test_a_skull_is_a_head_and_air_is_nothing() -> None:
    head = _ct([(40, 22, 0)])
    grid = np.hypot(*(np.indices((60, 60)) - 29.5))
    head[(grid < 22) & (grid > 18)] = 0.9
    assert find_regions(head, (4.0, 4.0, 4.0)) == parse_regions("head")
    assert find_regions(np.zeros((8, 8, 8), np.float32), (1.0, 1.0, 1.0)) == (1, 2)
    for text, sentence in (("foot", "must be one of"), ("abdomen-chest", "from the top down")):
        with pytest.raises(InputError, match=sentence):
            parse_regions(text)


# --- memory -----------------------------------------------------------------------------------------------


def test_live_bytes_counts_what_lives_at_once() -> None:
    def run() -> Tensor:
        a = torch.empty(1000, device="meta")
        b = a + 1  # 8,000 bytes live
        del a
        c = b + 1
        del b
        return c.view(10, 100)

    assert live_bytes(run) == 8000


def test_a_convolution_holds_a_copy_of_its_input_too() -> None:
    layer = torch.nn.Conv3d(2, 1, 1, bias=False)
    image = torch.zeros(1, 2, 5, 5, 5)
    assert live_bytes(lambda: layer(image)) == 4 * 125 + 4 * 250


def test_costs_grow_with_voxels_and_features_are_as_encoded(flow: LatentDiffusion) -> None:
    found = costs(flow.config)
    encoding = flow.encode(torch.rand(1, 1, 64, 32, 32), CT)
    size = sum(part.numel() * 4 for part in (encoding.latent, *encoding.stages))
    assert found.features * encoding.latent[0, 0].numel() == pytest.approx(size)
    assert found.encode > found.features
    assert found.decode > found.unet > 0


def test_slabs_are_for_gpus_that_are_tight(flow: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for device, free in (("cpu", 1e-6), ("cuda", 1e-6), ("cuda", 1e3)):
        monkeypatch.setattr("diffugts.backbone.memory.free_gb", lambda where, free=free: free)
        chosen.append(wanted_splits(flow.config, torch.device(device)))
    assert chosen == [1, 4, 1]


# --- boxes ------------------------------------------------------------------------------------------------


def _covered(mask: np.ndarray, cover: Cover) -> tuple[list[list], np.ndarray]:
    groups = clusters(mask, cover)
    inside = np.zeros_like(mask)
    for box in (box for group in groups for box in group):
        inside[box] = True
    return groups, inside


def test_an_l_shaped_candidate_costs_less_than_its_bounding_box() -> None:
    mask = np.zeros((64, 64, 64), bool)
    mask[4:60, 8:12, 30:34] = mask[4:8, 8:60, 30:34] = True
    groups, inside = _covered(mask, Cover(4, 4))
    (group,) = groups  # the boxes overlap, so they are sampled together
    assert inside[mask].all()
    assert sum(volume(box) for box in group) < 0.5 * 64 * 64 * 12
    assert all((part.stop - part.start) % 4 == 0 for box in group for part in box)


def test_a_limit_holds_and_far_parts_stay_apart() -> None:
    mask = np.zeros((64, 64, 64), bool)
    mask[8:50, 8:50, 8:50] = True
    groups, inside = _covered(mask, Cover(4, 4, limit=32**3))
    assert inside[mask].all()
    assert max(volume(box) for group in groups for box in group) <= 32**3
    far = np.zeros((64, 64, 64), bool)
    far[2:4, 2:4, 2:4] = far[60:62, 60:62, 60:62] = True
    assert len(clusters(far, Cover(4, 4))) == 2
    assert clusters(np.zeros((8, 8, 8), bool), Cover()) == []


def test_repainting_in_several_boxes_keeps_the_known_and_is_reproducible(
    flow: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffugts.healing.box_limit", lambda model: 16**3)
    mask = torch.zeros(128, 64, 64, dtype=torch.bool)
    mask[12:116, 24:40, 24:40] = True
    z = latent(7, 32, 16, 16)
    runs = [list(heal_regions(flow, z, mask, CT, 4, Sampling(steps=2, context=2))) for _ in range(2)]
    (first,), (again,) = runs
    assert torch.equal(first.healthy, again.healthy)
    repainted = torch.nn.functional.max_pool3d(first.mask[None, None].float(), 4)[0, 0] > 0
    assert torch.equal(first.latent[:, :, ~repainted], first.healthy_latent[:, :, ~repainted])
    assert first.healthy.shape == first.mask.shape
    assert torch.isfinite(first.healthy).all()


# --- organ maps -------------------------------------------------------------------------------------------


def test_the_controlnet_is_wired_as_monais(flow: LatentDiffusion) -> None:
    labels = torch.zeros(32, 32, 32, dtype=torch.uint8)
    labels[8:20] = 132
    bits = label_bits(labels)
    assert bits[0, :, 10, 0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 1]
    z, t, codes = latent(), torch.tensor([0.5]), torch.tensor([1])
    with torch.no_grad():
        assert flow.controlnet is not None
        down, middle = flow.controlnet(x=z, timesteps=t * 1000, controlnet_cond=bits, class_labels=codes)
        wanted = _monais_unet(flow)(
            x=z, timesteps=t * 1000, spacing_tensor=torch.tensor([CT.spacing]) * 100, class_labels=codes,
            down_block_additional_residuals=down, mid_block_additional_residual=middle,
        )  # fmt: skip
        ours = flow.predict(z, t, [CT], bits)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(ours, flow.predict(z, t, [CT]))


def test_swapped_roles_push_from_the_diseased_map_to_the_healthy_one(flow: LatentDiffusion) -> None:
    labels = np.ones((32, 32, 32), np.uint8)  # liver, with a tumour that someone outlined
    labels[4:6] = 26
    candidate = np.zeros((32, 32, 32), bool)
    candidate[12:20, 12:20, 12:20] = True
    organs = OrganMap.of(labels, candidate, torch.device("cpu"))
    assert set(organs.healthy.unique().tolist()) == {1}
    assert (organs.diseased[torch.from_numpy(candidate)] == 26).all()
    assert (organs.diseased[torch.from_numpy(~candidate)] == 1).all()
    box = (slice(0, 8),) * 3
    bits = organs.crop(box, box, 4)
    z, t = latent(), torch.tensor([0.5])
    with torch.no_grad():
        healthy, diseased = (flow.predict(z, t, [CT], b) for b in (bits.healthy, bits.diseased))
        wanted = diseased + 2.5 * (healthy - diseased)
        torch.testing.assert_close(flow.guided(z, t, CT, 2.5, bits), wanted, atol=1e-5, rtol=1e-4)
        assert torch.equal(flow.guided(z, t, CT, 0.0, Organs(bits.healthy, bits.diseased)), healthy)
    without = maisi_model("maisi-mr-rflow")
    with pytest.raises(InputError, match="ControlNet"), torch.no_grad():
        without.guided(z, t, CT, 0.0, bits)


def test_labels_go_to_the_model_grid_unmixed() -> None:
    affine = np.array([[0, -2.0, 0, 40], [3.0, 0, 0, -30], [0, 0, 1.5, 5], [0, 0, 0, 1]])
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 3, 132, 200], (12, 18, 16)).astype(np.int16)
    scan = Volume(labels, affine, unit="HU", source="made")
    array, placement = place(scan, None, 4)  # no resampling: every label must arrive as it is
    assert np.array_equal(read_labels(labels, scan, placement), array.astype(np.uint8))
    _, coarse = place(scan, 4.0, 4)
    assert set(np.unique(read_labels(labels, scan, coarse))) <= {0, 3, 132, 200}
    for wrong, sentence in ((labels[:5], "shape"), (labels + 100, "0 to 255"), (labels + 0.5, "whole numbers")):
        with pytest.raises(InputError, match=sentence):
            read_labels(wrong, scan, placement)


# --- region of interest -----------------------------------------------------------------------------------


def test_a_box_or_a_mask_limits_what_is_looked_at() -> None:
    scan = Volume(np.zeros((40, 50, 60), np.int16), np.diag([2.0, 2.0, 10.0, 1.0]), unit="HU", source="made")
    assert roi_box("1:20,2:30,0:60", scan) == ((1, 20), (2, 30), (0, 60))
    mask = np.zeros(scan.shape, np.uint8)
    mask[20, 20, 20] = 1
    assert roi_box(mask, scan) == ((5, 36), (5, 36), (17, 24))
    assert narrowed(((0, 10), (5, 50), (0, 60)), ((5, 20), (0, 10), (1, 2))) == ((5, 10), (5, 10), (1, 2))
    assert narrowed(((0, 10), (0, 50), (0, 60)), ((20, 30), (0, 10), (1, 2))) == ((20, 30), (0, 10), (1, 2))
    for wrong, sentence in (
        ("1:2,3:4", "neither a box"), ("5:5,0:9,0:9", "must lie inside"), ("0:99,0:9,0:9", "must lie inside"),
        (np.zeros(scan.shape, np.uint8), "empty"), ([[0, 1]], "three pairs"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(sentence)):
            roi_box(wrong, scan)


# --- end to end -------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MAISI in miniature, imported from checkpoints in NVIDIA's format."""
    monkeypatch.setattr(weights, "MODELS", models_folder(tmp_path / "package"))
    monkeypatch.setenv("DIFFUGTS_HOME", str(tmp_path / "home"))
    _, files = nvidia_files(tmp_path / "nvidia")
    import_files(files)
    _, files = nvidia_files(tmp_path / "nvidia", "maisi-mr-rflow")
    import_files(files)
    return tmp_path / "home"


def _scan(path: Path, shape: tuple[int, int, int] = (40, 40, 30), mr: bool = False) -> np.ndarray:
    import nibabel as nib

    rng = np.random.default_rng(0)
    array = rng.normal(500 if mr else 40, 20, shape).astype(np.int16)
    if mr:
        array[5, 5, 5] = 4000
    else:
        array[:3] = -1000
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return array


def test_an_imported_checkpoint_is_verified_and_segments(home: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    from diffugts.cli import main

    array = _scan(tmp_path / "ct.nii.gz")
    region = np.zeros(array.shape, np.uint8)
    region[18:24, 18:24, 12:18] = 1
    organs = np.ones(array.shape, np.uint8)
    organs[:3] = 0
    for name, values in (("region", region), ("organs", organs)):
        import nibabel as nib

        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    assert main(["weights", "verify"]) == 0
    command = [
        "segment",
        str(tmp_path / "ct.nii.gz"),
        "-p",
        "liver tumor",
        "--model",
        "maisi-ct-rflow",
        "--modality",
        "ct",
    ]
    given = ["--region", str(tmp_path / "region.nii.gz"), "--roi", "0:40,0:40,2:30"]
    more = ["--organ-map", str(tmp_path / "organs.nii.gz"), "--guidance", "2"]
    capsys.readouterr()
    assert main([*command, *given, *more, "-o", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert capsys.readouterr().err.count("weights under NVIDIA Open Model License") == 1
    manifest = json.loads((tmp_path / "out" / "ct" / "manifest.json").read_text())
    assert (manifest["model"], manifest["guidance"]) == ("maisi-ct-rflow", 2.0)
    assert {file["licence"] for file in manifest["weights"]} == {"NVIDIA Open Model License"}
    assert manifest["request"]["roi"] == "0:40,0:40,2:30"
    assert main([*command, "-o", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert "no attention heads were fitted" in said
    assert "--region" in said


def test_mr_is_not_clipped_and_ct_is_refused_by_an_mr_model(home: Path, tmp_path: Path) -> None:
    array = _scan(tmp_path / "mr.nii.gz", (20, 20, 20), mr=True)
    segmenter = Segmenter.from_pretrained("maisi-mr-rflow", device="cpu")
    case = segmenter.encode(tmp_path / "mr.nii.gz", modality="mr-flair")
    assert case.modality == "mr"
    assert case.conditions.modality == "mr-flair"
    assert not case.intensity.clip
    assert case.intensity.forward(array).max() > 1
    assert segmenter.describe()["non_commercial"]
    with pytest.raises(InputError, match="knows MR only"):
        segmenter.encode(tmp_path / "mr.nii.gz", modality="ct")
    region = np.zeros(array.shape, bool)
    region[8:12, 8:12, 8:12] = True
    answer = case.segment("brain tumor", region=region)["brain tumor"]
    assert np.array_equal(answer.pseudo_healthy[0], array[0])
    assert answer.attention.max() == 0


def test_a_model_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFUGTS_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"`diffugts weights get maisi-ct-rflow`.*import FILE") as caught:
        Segmenter.from_pretrained("maisi-ct-rflow")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_with_a_way_out(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scan(tmp_path / "ct.nii.gz")
    segmenter = Segmenter.from_pretrained("maisi-ct-rflow", device="cpu")
    monkeypatch.setattr("diffugts.segmenter.free_gb", lambda device: 0.01)
    monkeypatch.setattr("diffugts.segmenter.resident_gb", lambda: 0.0)
    with pytest.raises(InputError, match=r"needs about .* GB of memory .*--roi"):
        segmenter.encode(tmp_path / "ct.nii.gz", modality="ct")


GROWTH = """
import sys, torch
from diffugts.backbone.conditions import Conditions
from diffugts.backbone.config import ModelConfig
from diffugts.backbone.latent_diffusion import LatentDiffusion
from pathlib import Path

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))

model = LatentDiffusion(ModelConfig.read(Path(sys.argv[1]))).frozen()
torch.nn.Conv3d(8, 8, 3)(torch.randn(1, 8, 8, 8, 8))
image, before = torch.rand(1, 1, 96, 96, 96), resident("VmRSS")
model.encode_patches(image, [Conditions((1.0, 1.0, 1.0), "ct")])
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_predicted_memory_is_what_a_process_takes() -> None:
    config = SHIPPED / "maisi-ct-rflow" / "config.json"
    done = subprocess.run([sys.executable, "-c", GROWTH, str(config)], capture_output=True, text=True, check=True)
    expected = costs(ModelConfig.read(config)).encode * 24**3
    assert float(done.stdout) == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
def test_full_size_networks_end_to_end(capsys) -> None:  # type: ignore[no-untyped-def]
    """Random weights at NVIDIA's size on a 64³ volume; prints seconds and memory by stage."""
    from diffugts.machine import peak_memory_gb

    torch.manual_seed(0)
    model = LatentDiffusion(ModelConfig.read(SHIPPED / "maisi-ct-rflow" / "config.json")).frozen()
    found, lines = costs(model.config), []

    def stage(name: str, began: float, expected: float) -> float:
        lines.append(f"{name:10s} {time.perf_counter() - began:7.1f} s  peak so far {peak_memory_gb()} GB"
                     f"  (tensors expected: {expected / 1e9:.2f} GB)")  # fmt: skip
        return time.perf_counter()

    now = time.perf_counter()
    encoding = model.encode(torch.rand(1, 1, 64, 64, 64), CT)
    now = stage("encode", now, found.encode * 16**3)
    mask = torch.zeros(64, 64, 64, dtype=torch.bool)
    mask[24:40, 24:40, 24:40] = True
    (healed,) = heal_regions(model, encoding.latent, mask, CT, 0, Sampling(steps=3))
    now = stage("3 steps", now, found.unet * 16**3)
    model.decode(encoding.latent)
    stage("decode", now, found.decode * 16**3)
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert torch.isfinite(healed.healthy).all()
    assert tuple(encoding.stages[0].shape[1:]) == (64, 32, 32, 32)


def test_configuration_of_the_miniature_round_trips() -> None:
    config = maisi_config()
    assert ModelConfig.from_json(config.to_json()) == config
