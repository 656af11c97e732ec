"""The frozen learner: parity with MONAI's own classes, windows without seams, conditions that count."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from diffugts.backbone.conditions import Conditions
from diffugts.backbone.config import ModelConfig
from diffugts.backbone.convolutions import QuickConv3d, laid_out
from diffugts.backbone.image_stage import contrast_stage, image_stage
from diffugts.backbone.latent_diffusion import Encoding, LatentDiffusion, windows
from diffugts.backbone.networks import LinearCode, cpu_safe, depth_to_space, space_to_depth, stage_taps
from diffugts.backbone.weights import load_backbone, load_strictly, verify
from diffugts.errors import WeightsError
from tiny import tiny_config, tiny_folder, tiny_model

CT = Conditions((2.0, 2.0, 2.0), "ct")


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model()


def _image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))


def test_space_to_depth_and_back() -> None:
    x = _image(8, 12, 4)
    assert torch.equal(depth_to_space(space_to_depth(x, 4), 4), x)
    assert torch.equal(space_to_depth(x, 2)[0, :, 1, 2, 0], x[0, 0, 2:4, 4:6, 0:2].flatten())


def test_linear_code_is_exact_on_its_span_and_white() -> None:
    torch.manual_seed(0)
    blocks = torch.randn(4000, 3) @ torch.randn(3, 64) + 0.5
    code = LinearCode(3, 4)
    code.fit(blocks)
    image = depth_to_space(blocks[:27].T.reshape(1, 64, 3, 3, 3), 4)
    torch.testing.assert_close(code.decode(code.encode(image)), image, atol=1e-3, rtol=1e-3)
    whole = code.encode(depth_to_space(blocks[:3375].T.reshape(1, 64, 15, 15, 15), 4))
    torch.testing.assert_close(whole.flatten(2).std(2), torch.ones(1, 3), atol=0.05, rtol=0)


def test_plain_configuration_is_monais_network_and_nothing_else() -> None:
    """With space-to-depth and linear code off, weights, latent and decode are those of MONAI's own class."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    arguments = {
        **tiny_config().autoencoder,
        "in_channels": 1,
        "out_channels": 1,
        "num_channels": [8, 8, 16],
        "num_res_blocks": [1, 1, 1],
        "attention_levels": [False] * 3,
    }
    model = tiny_model(autoencoder=arguments, space_to_depth=1, linear_shortcut=False)
    monai = AutoencoderKlMaisi(**{**arguments, "norm_float16": False, "num_splits": 1}).eval()
    load_strictly(monai, model.autoencoder.net.state_dict(), "autoencoder")
    x = _image(16, 16, 16)
    with torch.no_grad():
        mu, _sigma = monai.encode(x)
        encoded = model.encode(x, CT)
        torch.testing.assert_close(encoded.latent, mu * model.config.scale_factor, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.decode(encoded.latent), monai.decode(mu), atol=1e-5, rtol=1e-4)
    assert model.config.stride == 4


def test_encoding_is_the_mean_not_a_sample(model: LatentDiffusion) -> None:
    x = _image(32, 32, 32)
    assert torch.equal(model.encode(x, CT).latent, model.encode(x, CT).latent)


def test_scale_factor_scales_the_latent_and_leaves_the_image() -> None:
    one, three = tiny_model(scale_factor=1.0), tiny_model(scale_factor=3.0)
    x = _image(16, 16, 16)
    a, b = one.encode(x, CT).latent, three.encode(x, CT).latent
    torch.testing.assert_close(3 * a, b)
    torch.testing.assert_close(one.decode(a), three.decode(b), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("other", [Conditions((1.0, 2.0, 2.0), "ct"), Conditions((2.0, 2.0, 2.0), "mr")])
def test_unet_is_told_spacing_and_modality(model: LatentDiffusion, other: Conditions) -> None:
    z, t = torch.randn(1, 4, 8, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        assert not torch.allclose(model.predict(z, t, [CT]), model.predict(z, t, [other]))


def test_spacing_and_codes_as_maisi_gives_them() -> None:
    tensors = tiny_model(spacing_scale=100.0).condition_tensors([CT, Conditions((1.5, 1.5, 3.0), "mr-flair")])
    torch.testing.assert_close(tensors["spacing_tensor"], torch.tensor([[200.0] * 3, [150.0, 150.0, 300.0]]))
    assert tensors["class_labels"].tolist() == [1, 11]


def test_flow_time_reaches_the_network_in_its_training_steps(model: LatentDiffusion) -> None:
    seen = []
    handle = model.unet.register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    try:
        with torch.no_grad():
            model.predict(torch.zeros(1, 4, 8, 8, 8), torch.tensor([0.25]), [CT])
    finally:
        handle.remove()
    assert float(seen[0]) == 250.0


def test_features_of_every_stage_have_the_promised_channels(model: LatentDiffusion) -> None:
    stages = model.encode(_image(32, 16, 16), CT).stages
    assert tuple(stage.shape[1] for stage in stages) == model.feature_channels
    assert tuple(stages[0].shape[2:]) == (16, 8, 8)


@pytest.mark.parametrize("side", [16, 96, 112, 144, 176, 208, 240, 256, 400, 1024])
def test_windows_cover_overlap_and_are_no_larger_than_needed(side: int) -> None:
    spans = [box[0] for box in windows((side, 16, 16), 96, 16, 16)]
    assert (spans[0].start, spans[-1].stop) == (0, side)
    assert {span.stop - span.start for span in spans} == {spans[0].stop}
    assert all(span.start % 16 == 0 and span.stop % 16 == 0 for span in spans)
    assert all(after.start <= before.stop - 16 for before, after in pairwise(spans))
    assert spans[0].stop <= min(side, 96)
    narrower = spans[0].stop - 16
    assert len(spans) == 1 or len(spans) * (narrower - 16) + 16 < side  # as many of the next size would not reach


def test_windows_of_an_encoding_blend_to_the_whole(monkeypatch: pytest.MonkeyPatch, model: LatentDiffusion) -> None:
    """With stages that look at one voxel only, encoding by windows must equal encoding whole."""

    def pooled(image: torch.Tensor, conditions: list[Conditions]) -> Encoding:
        return Encoding(torch.nn.functional.avg_pool3d(image, 4), (torch.nn.functional.avg_pool3d(image, 2),))

    monkeypatch.setattr(model, "encode_patches", pooled)
    image = _image(80, 32, 48)
    found, whole = model.encode(image, CT), pooled(image, [CT])
    torch.testing.assert_close(found.latent, whole.latent)
    torch.testing.assert_close(found.stages[0], whole.stages[0])


def test_windows_blend_to_what_the_whole_would_give(monkeypatch: pytest.MonkeyPatch, model: LatentDiffusion) -> None:
    """With a decoder that looks at one voxel only, windowed decoding must equal decoding whole."""

    def nearest(latent: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(latent[:, :1], scale_factor=4.0, mode="nearest")

    monkeypatch.setattr(model, "decode", nearest)
    latent = torch.rand(1, 4, 19, 8, 11)
    torch.testing.assert_close(model.decode_windows(latent), nearest(latent))


def test_nothing_is_trainable(model: LatentDiffusion) -> None:
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_taps_end_each_stage_as_in_maisi() -> None:
    assert stage_taps([2, 2, 2]) == (2, 5, 8)


def test_cpu_safe_overrides_only_what_is_there() -> None:
    assert cpu_safe({"use_flash_attention": True, "x": 1}) == {"use_flash_attention": False, "x": 1}


def test_configuration_round_trip_and_unknown_keys() -> None:
    config = tiny_config()
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(WeightsError, match="unknown keys"):
        ModelConfig.from_json('{"colour": 1}')


def test_saved_model_loads_equal_to_half_precision(tmp_path, model: LatentDiffusion) -> None:  # type: ignore[no-untyped-def]
    folder = tiny_folder(tmp_path / "m")
    loaded = load_backbone(folder)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    assert verify(folder) == []


def test_damaged_and_foreign_weights_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = tiny_folder(tmp_path / "m")
    with open(folder / "unet.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\1\2\3")
    assert any("unet.safetensors differs" in problem for problem in verify(folder))
    (folder / "unet.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_backbone(folder)
    (folder / "autoencoder.safetensors").unlink()
    with pytest.raises(WeightsError, match="is missing"):
        load_backbone(folder)


def test_wrong_network_names_its_keys(model: LatentDiffusion) -> None:
    tensors = dict(model.unet.state_dict())
    tensors["extra.weight"] = tensors.pop("conv_in.conv.weight")
    with pytest.raises(WeightsError, match=r"conv_in.conv.weight is missing.*extra.weight is unknown"):
        load_strictly(model.unet, tensors, "unet")


def test_image_stage_spreads_the_window_and_looks_around() -> None:
    image = torch.full((1, 1, 16, 16, 16), 0.52)
    image[..., 8:, :, :] = 0.42
    stage = image_stage(image, (0.42, 0.62))
    assert stage.shape == (1, 13, 8, 8, 8)
    torch.testing.assert_close(stage[0, 8, 0], torch.full((8, 8), 0.5))
    torch.testing.assert_close(stage[0, 8, 7], torch.zeros(8, 8))
    assert 0 < float(stage[0, 9, 4, 4, 4]) < 0.5  # the mean over 3 blocks reaches across the step


@pytest.mark.parametrize("beside", [0.0, 1.0], ids=["air", "bone"])
def test_contrast_stage_shows_a_faint_lesion_beside_air_and_bone_alike(beside: float) -> None:
    image = 0.55 + 0.005 * torch.randn(1, 1, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    image[..., :12] = beside
    lesion = (0, slice(None), slice(8, 14), slice(8, 14), slice(8, 14))
    image[0, :, 16:28, 16:28, 16:28] -= 0.02  # 40 HU
    stage = contrast_stage(image)
    assert stage.shape == (1, 8, 24, 24, 24)
    assert bool((stage[..., :6] == 0)[:, :4].all())  # not this kind of tissue
    wide = stage[lesion][2:4]  # against the organ's tissue within 13 blocks
    assert float(wide.mean()) < -1.5
    assert float(stage[0, 2:4, 18:, :, :].abs().mean()) < 1


@pytest.mark.parametrize("sizes", [{}, {"stride": 2, "padding": 1}, {"padding": (1, 0, 2), "dilation": 2, "groups": 2}])
@pytest.mark.parametrize("batch", [1, 2])
def test_quick_convolutions_answer_as_usual_ones(sizes: dict[str, int], batch: int) -> None:
    torch.manual_seed(0)
    usual = torch.nn.Conv3d(8, 12, 3, **sizes)
    quick = laid_out(torch.nn.Sequential(torch.nn.Conv3d(8, 12, 3, **sizes)))
    quick[0].load_state_dict(usual.state_dict())
    assert type(quick[0]) is QuickConv3d
    x = torch.randn(batch, 8, 9, 10, 11)
    with torch.no_grad():
        torch.testing.assert_close(quick(x), usual(x), atol=1e-5, rtol=1e-5)
    quick(x).sum().backward()
    usual(x).sum().backward()
    torch.testing.assert_close(quick[0].weight.grad, usual.weight.grad, atol=1e-3, rtol=1e-4)


def test_a_small_volume_is_not_passed_over(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    ours = QuickConv3d._passed_over
    monkeypatch.setattr(QuickConv3d, "_passed_over", lambda self, x: taken.append(ours(self, x)) or taken[-1])
    model.encode(_image(16, 16, 16), CT)
    assert taken
    assert all(taken) or not torch.backends.mkldnn.is_available()
