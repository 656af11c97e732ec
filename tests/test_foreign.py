"""Foreign patches: pieces of other scans that a head learns to find where it must see no tumour."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from diffugts.training.bank import INDEX, KNOWN, TUMOUR, UNKNOWN, Bank, Item, Patch, augment, write_item
from diffugts.training.fit import HOME_WEIGHT, admitted, alteration, questions
from diffugts.training.foreign import LEAST_VOXELS, VISIBLE, _tissue, home_of, with_foreign
from diffugts.training.loop import RunOptions

SIDE = 32


def patch_of(value: float, modality: str = "ct", name: str = "synthetic_a", flags: int = KNOWN) -> Patch:
    item = Item(name, modality, "torso", "test", (2.0,) * 3, labelled=True)
    return Patch(np.full((SIDE,) * 3, value, np.float32), np.full((SIDE,) * 3, flags, np.uint8), item)


@pytest.fixture
def pieces_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffugts.training.foreign.MASSES", 0.0)


@pytest.fixture
def masses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffugts.training.foreign.MASSES", 1.0)


@pytest.mark.usefixtures("pieces_alone")
@pytest.mark.parametrize("seed", range(5))
def test_a_piece_of_the_donor_is_flagged_where_it_lies(seed: int) -> None:
    patch, donor = patch_of(0.5), patch_of(0.6)
    out = with_foreign(patch, lambda: donor, np.random.default_rng(seed))
    assert out.item.lesions == ("",)
    inside = out.flags == TUMOUR
    assert inside.sum() >= LEAST_VOXELS
    assert out.image[inside].mean() > 0.54
    assert out.image[~inside].mean() < 0.52
    assert (patch.image == 0.5).all()


@pytest.mark.usefixtures("pieces_alone")
def test_what_cannot_be_told_apart_is_not_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffugts.training.foreign.UNEVEN", {"ct": 0.0})
    patch = patch_of(0.5)
    assert with_foreign(patch, lambda: patch_of(0.505), np.random.default_rng(0)) is patch


@pytest.mark.usefixtures("pieces_alone")
def test_a_donor_of_another_modality_gives_nothing() -> None:
    patch = patch_of(0.5)
    assert with_foreign(patch, lambda: patch_of(0.9, "mr-t1"), np.random.default_rng(0)) is patch


def never() -> Patch:
    raise AssertionError("a mass asks for no donor")


@pytest.mark.usefixtures("masses_alone")
@pytest.mark.parametrize(("value", "modality"), [(0.5, "ct"), (0.1, "ct"), (0.4, "mr-t1")])
def test_a_mass_stands_out_from_where_it_grows_and_nowhere_else(value: float, modality: str) -> None:
    for seed in range(6):
        patch = patch_of(value, modality)
        out = with_foreign(patch, never, np.random.default_rng(seed))
        assert out.item.lesions == ("",)
        inside = out.flags == TUMOUR
        apart = np.abs(out.image - value)
        assert apart[inside].mean() > VISIBLE[modality[:2]] / 2
        assert apart[inside].mean() > 4 * apart[~inside].mean()
        if value == 0.1:  # in lungs most are dense
            assert out.image[inside].mean() > 0.1


@pytest.mark.usefixtures("masses_alone")
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_mass_may_have_the_tone_of_another_tissue_of_its_scan(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr("diffugts.training.foreign.FAINT", {"mr": (0.001, 0.002)})
    monkeypatch.setattr("diffugts.training.foreign.UNEVEN", {"mr": 0.0})
    monkeypatch.setattr("diffugts.training.foreign.OWN_TONES", share)
    patch = patch_of(0.3, "mr-t1")
    patch.image[: SIDE // 3], patch.flags[: SIDE // 2] = 0.7, UNKNOWN
    found = [out for seed in range(10) if (out := with_foreign(patch, never, np.random.default_rng(seed))).item.lesions]
    assert bool(found) == bool(share)  # of its own tone it could not be seen
    for out in found:
        inside = out.flags == TUMOUR
        assert np.abs(out.image - patch.image)[inside].mean() > VISIBLE["mr"] / 2


def test_a_mass_shows_no_trace_of_what_lay_there_before() -> None:
    patch = patch_of(0.5)
    streaks = np.where(np.arange(SIDE) % 4 < 2, 0.45, 0.55).astype(np.float32)
    patch = replace(patch, image=np.broadcast_to(streaks, (SIDE,) * 3).copy())
    before = patch.image - ndimage.gaussian_filter(patch.image, 1.5)
    for seed in range(6):
        tissue = _tissue(patch, 0.5, np.random.default_rng(seed))
        fine = tissue - ndimage.gaussian_filter(tissue, 1.5)
        assert fine.std() > 0.2 * before.std()  # yet as noisy as a scan is
        assert abs(np.corrcoef(fine.ravel(), before.ravel())[0, 1]) < 0.1


@pytest.mark.usefixtures("masses_alone")
def test_a_mass_pushes_what_lies_around_it_outward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffugts.training.foreign.PUSHES", 1.0)
    ramp = np.broadcast_to(np.linspace(0.3, 0.7, SIDE, dtype=np.float32), (SIDE,) * 3)
    patch = replace(patch_of(0.5), image=ramp.copy())
    moved, sides = [], []
    for seed in range(40):
        out = with_foreign(patch, never, np.random.default_rng(seed))
        if not 400 < (out.flags == TUMOUR).sum() < 3000:
            continue
        outside = (out.flags != TUMOUR) & (np.abs(out.image - ramp) > 1e-3)
        moved.append((out.image - ramp)[outside])
        sides.append(np.argwhere(outside)[:, 2] - np.argwhere(out.flags == TUMOUR).mean(0)[2])
    # what is brighter on one side now lies further out on it
    assert np.corrcoef(np.concatenate(moved), np.concatenate(sides))[0, 1] < -0.3


@pytest.mark.usefixtures("masses_alone")
def test_nothing_is_pushed_where_a_tumour_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffugts.training.foreign.PUSHES", 1.0)
    monkeypatch.setattr("diffugts.training.foreign._pushed", lambda *_: pytest.fail("pushed"))
    out = with_foreign(patch_of(0.5), never, np.random.default_rng(0), own=False)
    assert out.item.lesions == ("",)


@pytest.mark.parametrize("patch", [patch_of(0.0), patch_of(0.5, flags=UNKNOWN)], ids=["air", "unknown"])
def test_nothing_is_pasted_into_air_or_the_unknown(patch: Patch) -> None:
    assert with_foreign(patch, lambda: patch_of(0.7), np.random.default_rng(0)) is patch


def test_a_foreign_patch_belongs_to_no_organ() -> None:
    out = with_foreign(patch_of(0.5), lambda: patch_of(0.6), np.random.default_rng(0))
    asked = questions(out, np.random.default_rng(0))
    meant = [q.prompt for q in asked if q.lesions]
    assert meant
    assert all(len(prompt.split()) == 1 for prompt in meant)
    assert not any("lung" in q.prompt or "liver" in q.prompt for q in asked)  # it may lie there


def test_scans_of_an_excluded_organ_count_with_foreign_patches_alone() -> None:
    head = Item("labelmap_a", "mr", "head", "test", (2.0,) * 3, labelled=True)
    assert admitted(head, ["brain"]) is None
    with_pieces = admitted(head, ["brain"], foreign=True)
    assert with_pieces is not None
    assert with_pieces.weight == HOME_WEIGHT["head"] * head.weight


def chest() -> tuple[Item, np.ndarray, np.ndarray]:
    """A scan with two lungs, bowel gas and air around the patient, who ends at the scan's upper and lower faces."""
    item = Item("scan_chest", "ct", "torso", "test", (4.0,) * 3)
    image = np.zeros((60, 48, 40), np.float32)
    image[6:54, 6:42] = 0.52
    lungs = np.zeros(image.shape, bool)
    lungs[10:26, 12:36, 12:] = lungs[34:50, 12:36, 12:] = True
    image[lungs] = 0.1
    image[26:34, 20:26, :8] = 0.0
    return item, image, lungs


def test_lungs_are_known_in_a_whole_ct() -> None:
    item, image, lungs = chest()
    found = home_of(item, image, ["brain", "lung"])
    assert found is not None
    assert 2 * (found & lungs).sum() / (found.sum() + lungs.sum()) > 0.85
    assert home_of(item, image, ["liver"]) is None
    assert home_of(replace(item, name="synthetic_chest"), image, ["lung"]) is None  # a window, cut anywhere
    assert home_of(item, np.where(lungs, 0.52, image), ["lung"]) is None


def test_crops_of_a_healthy_scan_show_the_organ_that_the_head_must_not_know(tmp_path: Path) -> None:
    item, image, _ = chest()
    (tmp_path / INDEX).touch()
    write_item(tmp_path, item, image, np.full(image.shape, KNOWN, np.uint8))
    bank = Bank(tmp_path, partial(admitted, excluded=["lung"], foreign=True), partial(home_of, organs=["lung"]))
    assert bank.items[0].weight == HOME_WEIGHT["torso"] * item.weight
    for seed in range(8):
        rng = np.random.default_rng(seed)
        patch = augment(bank.sample(rng, SIDE, on_tumour=1.0, widest=1.5), rng)
        assert patch.home is not None
        assert patch.home.any()
        assert (patch.image[patch.home] < 0.2).mean() > 0.7  # flipped and shrunk with the image


@pytest.mark.usefixtures("pieces_alone")
def test_pieces_lie_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    home = np.zeros((SIDE,) * 3, bool)
    home[-12:, -12:, :12] = True
    patch, hits = replace(patch_of(0.5), home=home), []
    for share in (1.0, 0.0):
        monkeypatch.setattr("diffugts.training.foreign.AT_HOME", share)
        pasted = [with_foreign(patch, lambda: patch_of(0.6), np.random.default_rng(seed)) for seed in range(8)]
        hits.append(sum(bool((out.flags == TUMOUR)[home].any()) for out in pasted))
    assert hits[0] == 8 > hits[1]


def test_a_patients_own_tumour_of_an_excluded_organ_is_never_named() -> None:
    scan = Item("scan_a", "ct", "limb", "test", (2.0,) * 3, ("soft tissue",), labelled=True)
    out = admitted(scan, ["soft tissue"], foreign=True)
    assert out is not None
    assert (out.lesions, out.labelled, out.trusted) == ((), False, True)  # outside the tumour it is healthy
    planted = replace(scan, name="graft_a")
    assert admitted(planted, ["soft tissue"], foreign=True) is None
    assert admitted(scan, foreign=True) == scan


@pytest.mark.usefixtures("pieces_alone")
def test_unnamed_lesions_are_unknown_and_scans_without_labels_always_get_a_piece(tmp_path: Path) -> None:
    (tmp_path / INDEX).touch()
    rng = np.random.default_rng(0)
    flags = np.full((SIDE,) * 3, KNOWN, np.uint8)
    flags[:4] = TUMOUR
    tumour = Item("scan_a", "ct", "limb", "test", (2.0,) * 3, ("soft tissue",), labelled=True)
    other = Item("synthetic_b", "ct", "limb", "test", (2.0,) * 3, labelled=True)
    write_item(tmp_path, tumour, np.full((SIDE,) * 3, 0.5, np.float32), flags)
    write_item(tmp_path, other, np.full((SIDE,) * 3, 0.6, np.float32), np.full((SIDE,) * 3, KNOWN, np.uint8))
    bank = Bank(tmp_path, lambda item: admitted(item, ["soft tissue"], foreign=True))
    options = RunOptions(1, size=SIDE)
    alter = alteration(bank, 1e-9, options)  # of the labelled ones, none
    for item in bank.items:
        image, kept = bank.arrays(item)
        out = alter(Patch(np.array(image, np.float32), np.array(kept), item), rng)
        if item.labelled:
            assert out.item.lesions == ()
        else:
            assert out.item.lesions == ("",)
            pasted = (out.flags == TUMOUR) & (np.abs(out.image - 0.5) > 0.01)
            assert pasted.sum() > 0.5 * (out.flags == TUMOUR).sum()
            assert (out.flags[:4] != KNOWN).mean() == 1


def test_crops_look_away_from_tumours_that_must_not_be_seen(tmp_path: Path) -> None:
    (tmp_path / INDEX).touch()
    flags = np.full((2 * SIDE,) * 3, KNOWN, np.uint8)
    flags[: SIDE // 2] = TUMOUR
    item = Item("scan_a", "ct", "limb", "test", (2.0,) * 3, ("soft tissue",), labelled=True)
    write_item(tmp_path, item, np.full(flags.shape, 0.5, np.float32), flags)
    shown = {}
    for excluded in ([], ["soft tissue"]):
        bank = Bank(tmp_path, partial(admitted, excluded=excluded, foreign=True))
        patches = [bank.sample(np.random.default_rng(seed), SIDE, on_tumour=1.0) for seed in range(12)]
        shown[bool(excluded)] = [(patch.flags == TUMOUR).mean() for patch in patches]
    assert min(shown[False]) > 0 == max(shown[True])


@pytest.mark.usefixtures("pieces_alone")
def test_a_tumour_that_must_not_be_seen_is_never_pasted(tmp_path: Path) -> None:
    (tmp_path / INDEX).touch()
    flags = np.full((SIDE,) * 3, KNOWN, np.uint8)
    flags[: SIDE // 2] = TUMOUR
    tumour = Item("scan_a", "ct", "limb", "test", (2.0,) * 3, ("soft tissue",), labelled=True)
    write_item(tmp_path, tumour, np.where(flags == TUMOUR, 0.9, 0.5).astype(np.float32), flags)
    bank = Bank(tmp_path, lambda item: admitted(item, ["soft tissue"], foreign=True))
    alter = alteration(bank, 1.0, RunOptions(1, size=SIDE))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        out = alter(bank.sample(rng, SIDE), rng)
        assert out.item.lesions == ()  # the only donor holds it, and so does the patch
        assert set(np.unique(out.flags)) == {UNKNOWN, KNOWN}
    clean = patch_of(0.6)
    seen = with_foreign(patch_of(0.5), lambda: clean, np.random.default_rng(0))
    assert seen.item.lesions == ("",)
