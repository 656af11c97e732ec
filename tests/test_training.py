"""Training: recipe to bank, runs that go on bit for bit, and losses that know what right is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffugts.aova import Attention, AttentionConfig, AttentionHead
from diffugts.backbone.conditions import Conditions
from diffugts.backbone.weights import AUTOENCODER, MODELS, load_tensors
from diffugts.cli import main
from diffugts.errors import InputError
from diffugts.text import CachedEncoder
from diffugts.training.bank import INDEX, KNOWN, TUMOUR, UNKNOWN, Bank, Item, Patch, augment, scanned, write_item
from diffugts.training.fit import (
    UNTRUSTED,
    admitted,
    attention_loss,
    blended,
    continued,
    contrastive,
    focal_loss,
    questions,
    soft_dice,
    train_heads,
    voxel_weights,
)
from diffugts.training.loop import Batch, RunOptions, averaged_state
from diffugts.training.pretrain import _hole, checkerboard, save_model, train_autoencoder, train_flow
from diffugts.training.recipe import PORTION, Job, _portions, build
from tiny import tiny_config, tiny_folder, tiny_model

RECIPE = {
    "scans": [{"images": ["nothing/*.nii.gz"], "modality": "ct", "anatomy": "torso", "source": "none"}],
    "synthetic": [
        {"kind": "limb", "modality": "ct", "count": 2, "lesions": 1.0, "window": 32},
        {"kind": "limb", "modality": "mr", "count": 1, "lesions": 0.0, "window": 32},
    ],
}


@pytest.fixture(scope="module")
def bank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    assert build(folder / "recipe.json", folder, folder / "bank", 4.0) == 3
    return folder / "bank"


def test_a_build_goes_on_where_it_stopped(bank_folder: Path) -> None:
    recipe = bank_folder.parent / "recipe.json"
    assert build(recipe, bank_folder.parent, bank_folder, 4.0) == 0


def test_processes_build_the_same_bank(bank_folder: Path, tmp_path: Path) -> None:
    recipe = bank_folder.parent / "recipe.json"
    assert build(recipe, bank_folder.parent, tmp_path, 4.0, processes=2) == 3
    one, two = ({item.name: item for item in Bank(root).items} for root in (bank_folder, tmp_path))
    assert one == two
    for name in one:
        for kind in ("image", "flags"):
            assert (bank_folder / f"{name}.{kind}.npy").read_bytes() == (tmp_path / f"{name}.{kind}.npy").read_bytes()


def test_one_process_makes_what_comes_of_one_scan_and_every_scan_comes_soon() -> None:
    todo = [Job(f"{scan}{i}", lambda: pytest.fail("made"), scan) for scan in "ab" for i in range(PORTION + 2)]
    todo += [Job("c", lambda: pytest.fail("made"))]
    portions = [[job.name for job in portion] for portion in _portions(todo)]
    assert [len(portion) for portion in portions] == [PORTION, PORTION, 1, 2, 2]
    assert [{name[0] for name in portion} for portion in portions] == [{"a"}, {"b"}, {"c"}, {"a"}, {"b"}]


def test_a_scanner_blurs_and_adds_noise_to_all_of_a_patch() -> None:
    image = np.zeros((24,) * 3, np.float32)
    image[12:] = 0.5
    item = Item("scan_a", "ct", "torso", "test", (2.0,) * 3)
    patch = Patch(image, np.full(image.shape, KNOWN, np.uint8), item)
    seen = [scanned(patch, np.random.default_rng(seed)) for seed in range(20)]
    steps = [float(out.image[12].mean() - out.image[11].mean()) for out in seen]
    noise = [float(out.image[16:].std()) for out in seen]
    assert min(steps) < 0.35
    assert max(steps) > 0.49
    assert min(noise) < 1e-3 < 0.012 < max(noise)
    assert all(out.image.min() >= 0 and out.image.max() <= 1 and out.flags is patch.flags for out in seen)


def test_a_wide_crop_shows_more_on_larger_voxels(bank_folder: Path) -> None:
    bank, rng = Bank(bank_folder), np.random.default_rng(0)
    patches = [bank.sample(rng, 16, widest=2.0) for _ in range(30)]
    spacings = np.array([patch.item.spacing[0] for patch in patches]) / 4
    assert {patch.image.shape for patch in patches} == {patch.flags.shape for patch in patches} == {(16, 16, 16)}
    assert 0.9 <= spacings.min() < 1.15
    assert 1.5 < spacings.max() <= 2.2
    assert {patch.image.dtype for patch in patches} == {np.dtype(np.float32)}


def test_bank_says_what_is_in_it(bank_folder: Path) -> None:
    bank = Bank(bank_folder)
    assert {item.modality for item in bank.items} == {"ct", "mr"}
    for item in bank.items:
        image, flags = bank.arrays(item)
        assert image.min() >= 0
        assert image.max() <= 1
        assert set(np.unique(flags)) <= {KNOWN, *(TUMOUR + i for i in range(len(item.lesions)))}
        assert item.labelled


def test_crops_aim_at_tumours_and_pad_as_unknown(tmp_path: Path) -> None:
    (tmp_path / INDEX).touch()
    flags = np.full((40, 40, 10), KNOWN, np.uint8)
    flags[3, 30, 5] = TUMOUR
    write_item(
        tmp_path,
        Item("a", "ct", "torso", "test", (2.0,) * 3, ("liver",)),
        np.ones((40, 40, 10), np.float32),
        flags,
    )
    bank = Bank(tmp_path)
    for seed in range(20):
        patch = bank.sample(np.random.default_rng(seed), 16, on_tumour=1.0)
        assert patch.image.shape == (16, 16, 16)
        assert (patch.flags == TUMOUR).sum() == 1
        assert (patch.flags[:, :, 10:] == UNKNOWN).all()


def test_augmentation_keeps_flags_with_their_voxels() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((8, 8, 8), np.float32)
    image[1, 2, 3] = 1
    item = Item("a", "mr", "head", "test", (2.0,) * 3)
    for _ in range(10):
        out = augment(Patch(image, (image > 0).astype(np.uint8), item), rng)
        assert np.unravel_index(out.image.argmax(), out.image.shape) == tuple(np.argwhere(out.flags)[0])


def test_pretrain_and_fit_run_resume_and_save(bank_folder: Path, tmp_path: Path) -> None:
    bank, config = Bank(bank_folder), tiny_config()
    whole = RunOptions(steps=4, batch=2, size=32, save_every=2, warmup=1)
    model = train_autoencoder(config, bank, whole, tmp_path / "whole")
    train_autoencoder(config, bank, RunOptions(**{**whole.__dict__, "steps": 2}), tmp_path / "parts")
    assert model.config.scale_factor != config.scale_factor
    resumed = train_autoencoder(config, bank, RunOptions(**{**whole.__dict__, "steps": 4}), tmp_path / "parts")
    assert (tmp_path / "parts" / "curve.csv").exists()
    assert set(resumed.autoencoder.state_dict()) == set(model.autoencoder.state_dict())
    model = train_flow(model, bank, whole, tmp_path / "flow")
    save_model(model, tmp_path / "model", "test")
    head = train_heads(model, CachedEncoder(), bank, whole, tmp_path / "heads")
    assert torch.isfinite(head.offset)
    assert "head" in averaged_state(tmp_path / "heads" / "state.pt")


def test_a_run_that_keeps_features_trains_the_decoder_and_little_else(bank_folder: Path, tmp_path: Path) -> None:
    """Latents stay bit for bit, and what heads read of the UNet moves less than without."""
    bank, options = Bank(bank_folder), RunOptions(steps=8, batch=2, size=32, save_every=8, warmup=1, ema=0.0)
    image, conditions = torch.rand(1, 1, 32, 32, 32), [Conditions((2.0, 2.0, 2.0), "ct")]
    start = tiny_model(clean_context=True)
    z, before = start.encode_patches(image, conditions).latent, start.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    wanted = [stage.clone() for stage in start.unet_features(z, conditions)]
    model = train_autoencoder(start.config, bank, options, tmp_path / "ae", start, keep_features=True).frozen()
    assert torch.equal(model.encode_patches(image, conditions).latent, z)
    changed = {key.split(".")[2] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"decoder", "post_quant_conv"}
    moved = []
    for keep in (True, False):
        model.load_state_dict(before)
        model.unet.requires_grad_(True)
        train_flow(model, bank, options, tmp_path / f"flow {keep}", keep_features=keep)
        found = model.unet_features(z, conditions)
        moved.append(sum(float((a - b).detach().square().mean()) for a, b in zip(found, wanted, strict=True)))
    assert 0 < moved[0] < moved[1]


def test_holes_are_of_any_size_and_some_patches_are_painted_whole() -> None:
    holes = torch.stack([_hole((8, 8, 8), torch.Generator().manual_seed(seed)) for seed in range(200)]).flatten(1)
    shares = holes.float().mean(1)
    assert holes.any(1).all()
    assert 0.15 < float((shares == 1).float().mean()) < 0.45  # a quarter, and the largest ellipsoids
    assert float(shares.min()) < 0.02
    assert 0.1 < float(shares.median()) < 0.9


def test_a_checkerboard_is_power_at_the_stride() -> None:
    error = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    board = torch.zeros_like(error)
    board[:, :, ::4] = 3.0
    assert float(checkerboard(error, 4).log().clamp_min(0).mean()) < 0.1
    assert float(checkerboard(error + board, 4).log().clamp_min(0).mean()) > 0.5


@pytest.mark.parametrize("option", [["--keep-features"], ["--keep", "0.5"]])
def test_pretrain_keeps_something_of_a_model(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "-o", str(tmp_path), *option]) == 1
    assert "keep something of the model that --from names" in capsys.readouterr().err


def test_pretrain_can_take_the_mean_of_two_decoders(bank_folder: Path, tmp_path: Path) -> None:
    start = tiny_folder(tmp_path / "start")
    arguments = ["--bank", str(bank_folder), "--from", str(start), "--keep-features", "--size", "32"]
    steps = ["--autoencoder-steps", "2", "--flow-steps", "0"]
    weights = [load_tensors(start / AUTOENCODER)]
    for name, keep in (("whole", []), ("half", ["--keep", "0.5"])):
        assert main(["pretrain", "-o", str(tmp_path / name), *arguments, *steps, *keep]) == 0
        weights.append(load_tensors(tmp_path / name / "model" / AUTOENCODER))
    for key, before in weights[0].items():
        wanted = (before.float() + weights[1][key].float()) / 2
        torch.testing.assert_close(weights[2][key].float(), wanted, atol=2e-3, rtol=2e-3)  # kept in half precision
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_fit_takes_a_bank_as_it_is_and_its_cache_knows_that_bank(
    bank_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, out = tmp_path / "bank", tmp_path / "fit"
    fit = [
        "fit", "--bank", str(bank), "-o", str(out), "--from", str(MODELS / "compact"), "--exclude", "spleen",
        "--steps", "1", "--batch", "1", "--size", "32",
        "--cache", str(tmp_path / "cache"), "--distinct", "2",
    ]  # fmt: skip
    assert main(fit) == 1
    assert "there is no bank" in capsys.readouterr().err
    shutil.copytree(bank_folder, bank)
    assert main(fit) == 0
    made = {path.name for path in (out / "model" / "held_out" / "spleen").iterdir()}
    assert made == {"heads.json", "attention.safetensors"}
    with open(bank / INDEX, "a", encoding="utf-8") as index:  # a bank that grew: the same number is another patch now
        index.write((bank / INDEX).read_text(encoding="utf-8").splitlines()[0] + "\n")
    assert main([*fit, "--steps", "2"]) == 1
    assert "other patches" in capsys.readouterr().err


def test_fit_says_how_wide_patches_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--bank", str(tmp_path), "-o", str(tmp_path / "fit"), "--widest", "0.5"]) == 1
    assert "--widest takes a factor of 1 or more, not 0.5" in capsys.readouterr().err


def test_a_head_that_reads_a_further_stage_answers_as_before() -> None:
    torch.manual_seed(0)
    start = AttentionHead(AttentionConfig((6, 10), (2, 4), 12, "test", widths=(8, 16, 16), hidden=8)).eval()
    more = continued(start, replace(start.config, channels=(6, 10, 3), strides=(2, 4, 2))).eval()
    stages = [torch.randn(1, 6, 8, 8, 8), torch.randn(1, 10, 4, 4, 4), torch.randn(1, 3, 8, 8, 8)]
    abnormal, normal = torch.randn(2, 1, 2, 12)
    before, after = start(stages[:2], abnormal, normal), more(stages, abnormal, normal)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.score_logits, before.score_logits)
    after.logits.sum().backward()
    assert float(more.adapters.read[2].weight.grad.abs().sum()) > 0  # and learns to read it
    with pytest.raises(InputError, match="stages that this model lacks"):
        continued(more, start.config)


def test_a_blend_lies_between_a_head_and_what_it_went_on_from() -> None:
    start = AttentionHead(AttentionConfig((6, 10), (2, 4), 12, "test", widths=(8, 16, 16), hidden=8))
    head = continued(start, replace(start.config, channels=(6, 10, 3), strides=(2, 4, 2)))
    with torch.no_grad():
        head.offset += 1
        head.queries[2].weight += 1
    mean = blended(head, start, 0.25)
    torch.testing.assert_close(mean.offset, start.offset + 0.75)
    torch.testing.assert_close(mean.queries[2].weight, torch.full_like(mean.queries[2].weight, 0.75))  # was not there
    torch.testing.assert_close(mean.judge[0].weight, start.judge[0].weight)


def test_a_resumed_run_gives_the_same_bits(bank_folder: Path, tmp_path: Path) -> None:
    """The cosine depends on the total, so both runs are told the same total and one is interrupted."""
    bank, config = Bank(bank_folder), tiny_config()
    options = RunOptions(steps=4, batch=1, size=32, save_every=2, warmup=1)
    straight = train_autoencoder(config, bank, options, tmp_path / "a").autoencoder.state_dict()

    class Stop(Exception):
        pass

    class Interrupted(Bank):
        def refresh(self) -> None:  # called after a checkpoint
            super().refresh()
            if getattr(self, "armed", False):
                raise Stop

    cut = Interrupted(bank_folder)
    cut.armed = True  # type: ignore[attr-defined]
    with pytest.raises(Stop):
        train_autoencoder(config, cut, options, tmp_path / "b")
    again = train_autoencoder(config, bank, options, tmp_path / "b").autoencoder.state_dict()
    assert all(torch.equal(straight[key], again[key]) for key in straight)


def test_questions_name_what_is_there_and_what_is_not() -> None:
    item = Item("a", "ct", "torso", "test", (2.0,) * 3, ("adrenal", "liver", "liver"))
    patch = Patch(np.zeros((2, 2, 2), np.float32), np.ones((2, 2, 2), np.uint8), item)
    asked = questions(patch, np.random.default_rng(0))
    assert len(asked) == 4
    assert asked[0].lesions == (2, 3, 4)
    assert asked[1].prompt.startswith("adrenal gland ")
    assert asked[1].lesions == (2,)
    assert asked[2].lesions == (3, 4)
    assert asked[3].lesions == ()
    assert not asked[3].prompt.startswith(("liver", "adrenal"))


def test_unknown_organ_is_asked_for_any_tumour_and_for_what_is_far() -> None:
    item = Item("a", "ct", "torso", "test", (2.0,) * 3, ("",))
    patch = Patch(np.zeros((2, 2, 2), np.float32), np.ones((2, 2, 2), np.uint8), item)
    asked = questions(patch, np.random.default_rng(0))
    assert len(asked) == 4
    assert all(q.lesions == (() if q.prompt.startswith("brain") else (TUMOUR,)) for q in asked)
    assert sum(q.prompt.startswith("brain") for q in asked) == 1


def test_excluded_organs_are_neither_shown_nor_named() -> None:
    def item(*lesions: str) -> Item:
        return Item("a", "ct", "torso", "test", (2.0,) * 3, lesions, labelled=True)

    assert admitted(item("kidney", "liver"))
    assert not admitted(item("kidney", "liver"), ["liver"])
    assert not admitted(item(""), ["liver"])  # planted in soft tissue that may be the liver
    assert admitted(item(""), ["lung"])
    patch = Patch(np.zeros((2, 2, 2), np.float32), np.ones((2, 2, 2), np.uint8), item("kidney"))
    rng = np.random.default_rng(0)
    named = {q.prompt for _ in range(200) for q in questions(patch, rng, excluded=["liver"])}
    assert not any("liver" in prompt for prompt in named)
    assert any("spleen" in prompt for prompt in named)


def test_scans_of_an_excluded_organ_alone_are_not_shown_healthy() -> None:
    def item(anatomy: str, *lesions: str) -> Item:
        return Item("a", "mr", anatomy, "test", (2.0,) * 3, lesions, labelled=True)

    assert admitted(item("head"))
    assert not admitted(item("head"), ["brain", "lung"])
    assert admitted(item("head", "bone"), ["brain", "lung"])
    assert admitted(item("torso"), ["brain", "lung"])  # most of it is other organs
    assert not admitted(item("limb"), ["soft tissue"])


def test_losses_by_hand() -> None:
    y = torch.zeros(1, 1, 2, 2, 2)
    y[0, 0, 0] = 1
    ones = torch.ones_like(y)
    assert float(soft_dice(y, y, ones)) == pytest.approx(0)
    assert float(soft_dice(1 - y, y, ones)) == pytest.approx(1 - 1 / 9)
    assert float(focal_loss(torch.tensor(0.0), torch.tensor(1.0))) == pytest.approx(0.25 * np.log(2), rel=1e-5)


def test_contrastive_prefers_the_right_pairing() -> None:
    torch.manual_seed(0)
    head = AttentionHead(AttentionConfig((4,), (2,), 8, "test", widths=(8, 8), hidden=8))
    with torch.no_grad():
        head.align.weight.copy_(torch.eye(8))
    text, there = torch.eye(8)[None, :3], torch.ones(1, 3, dtype=torch.bool)
    right = contrastive(text, text, there, head)
    wrong = contrastive(text.roll(1, 1), text, there, head)
    assert right.item() < 0.01 < wrong.item()


def test_untrusted_tissue_weighs_less_than_its_planted_tumour() -> None:
    flags = torch.tensor([UNKNOWN, KNOWN, TUMOUR], dtype=torch.uint8).view(1, 1, 3, 1, 1).repeat(2, 1, 1, 1, 1)
    items = [Item("a", "ct", "torso", "test", (2.0,) * 3, trusted=trusted) for trusted in (True, False)]
    patches = tuple(Patch(np.zeros((3, 1, 1), np.float32), flags[0, 0].numpy(), item) for item in items)
    weights = voxel_weights(Batch(flags.float(), flags, patches, (0, 1), (0, 1))).flatten(1)
    assert weights[0].tolist() == [0, 1, 1]
    assert weights[1].tolist() == [0, pytest.approx(UNTRUSTED), 1]


def test_attention_loss_counts_only_what_is_known() -> None:
    """A map that is right where the tumour is known costs nothing more where nothing is known."""
    target = torch.zeros(1, 1, 4, 4, 4)
    target[..., :2] = 1
    weight = torch.ones(1, 1, 4, 4, 4)
    weight[0, 0, 3] = 0
    right = torch.where(target > 0, 20.0, -20.0)
    wrong_outside = right.clone()
    wrong_outside[0, 0, 3] *= -1
    score = torch.full((1, 1), 20.0)
    losses = [
        attention_loss(Attention(x, torch.zeros(1, 1, 8), score), target, weight)[0] for x in (right, wrong_outside)
    ]
    assert losses[0].item() == pytest.approx(0, abs=1e-4)
    assert losses[1].item() == pytest.approx(0, abs=1e-4)
    assert attention_loss(Attention(-right, torch.zeros(1, 1, 8), score), target, weight)[0].item() > 1


def test_grafts_of_unknown_organ_train_no_head_that_must_not_have_seen_where_they_may_lie() -> None:
    graft = Item("g", "ct", "torso", "", (2.0,) * 3, ("",), labelled=True)
    assert admitted(graft, ["lung", "brain"])
    assert not admitted(graft, ["soft tissue"])
    assert not admitted(graft, ["kidney", "lung"])
