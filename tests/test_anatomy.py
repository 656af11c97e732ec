"""The locator: what it learns from, what it finds, and where a prompt is searched for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffugts.anatomy import CLASSES, LOCATOR, Locator, Organs, channels, load_locator, locator_file
from diffugts.backbone.weights import MODELS, save_tensors
from diffugts.synth import sample_patient
from diffugts.synth.labels import L
from diffugts.training import anatomy as training
from diffugts.training.anatomy import NOBODY, Picture, drawn, judged, locator_loss, make_pictures, train_locator

LUNG, LIVER = 1 + CLASSES.index("lung"), 1 + CLASSES.index("liver")


@pytest.fixture(scope="module")
def torso() -> tuple[np.ndarray, np.ndarray]:
    """A synthetic torso with its tumours at 4 mm, in 0..1, and its tissue labels; its seed trained nothing."""
    patient = sample_patient(700_001, kind="torso", lesions=1, organ="lung")
    low, high = patient.extent
    origin = low + 2.0
    size = ((high - low) / 4).astype(int)
    sample = patient.render(tuple(size), (4.0,) * 3, tuple(origin), "ct", seed=3)
    return np.clip((sample.image + 1000) / 2000, 0, 1).astype(np.float32), sample.labels


def test_shipped_locator_finds_lungs_and_liver_of_a_patient_it_never_saw(
    torso: tuple[np.ndarray, np.ndarray],
) -> None:
    image, labels = torso
    organs = Organs.find(load_locator(locator_file(MODELS / "compact")), image, (4.0, 4.0, 4.0), "ct")
    for organ, number in (("lung", LUNG), ("liver", LIVER)):
        truth = labels[::2, ::2, ::2][tuple(slice(n) for n in organs.classes.shape)] == L[organ]
        said = organs.classes[tuple(slice(n) for n in truth.shape)] == number
        assert 2 * (said & truth).sum() / (said.sum() + truth.sum()) > 0.7, organ
        search = organs.search(organ)
        assert search is not None
        assert search is organs.search(organ)
        assert search.region.shape == image.shape
        assert search.region.mean() < 0.35
    in_liver, in_lungs = organs.search("liver"), organs.search("lung")
    assert in_liver is not None
    assert in_lungs is not None
    assert in_liver.region[labels == L["liver"]].mean() > 0.7
    assert in_lungs.region[labels == L["lung"]].mean() < 0.1  # air is no tumour


def found(classes: np.ndarray, image: np.ndarray | None = None) -> Organs:
    """As if the locator had said so, of a scan with twice as many voxels a side."""
    shape = tuple(2 * side for side in classes.shape)
    return Organs(classes, (8.0,) * 3, np.zeros(shape, np.float32) if image is None else image, (4.0,) * 3, "ct")


def test_an_organ_that_is_not_there_or_not_found_well_is_searched_for_everywhere() -> None:
    nothing = found(np.zeros((8, 8, 8), np.uint8))
    assert nothing.search("lung") is None
    assert nothing.search(None) is None
    full = found(np.full((8, 8, 8), 1 + CLASSES.index("pancreas"), np.uint8))
    assert full.search("pancreas") is None
    assert full.search("heart") is None


def test_masses_hide_an_organ_from_sight_and_not_from_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WINDOW", (10, 12))
    image = np.full((12, 12, 12), 0.1, np.float16)
    classes = np.full((12, 12, 12), LUNG, np.uint8)
    rng = np.random.default_rng(0)
    dense = 0
    for _ in range(20):
        seen, target = drawn(Picture(image, classes, "ct"), rng)
        assert seen.shape == target.shape == (16, 16, 16)
        assert set(np.unique(target)) == {LUNG, NOBODY}
        dense += int((seen > 0.35).any())
    assert 8 < dense < 20


def test_loss_knows_the_answer_and_leaves_the_padding_alone() -> None:
    classes = torch.full((1, 8, 8, 8), NOBODY, dtype=torch.uint8)
    classes[:, :4], classes[:, 4:6] = 0, LIVER
    right = torch.zeros(1, 1 + len(CLASSES), 8, 8, 8)
    right[:, 0, :4] = right[:, LIVER, 4:6] = 20.0
    wrong = right.clone()
    wrong[:, LUNG, 6:] = 50.0
    assert locator_loss(right, classes).item() < 1e-3
    assert locator_loss(wrong, classes).item() == pytest.approx(locator_loss(right, classes).item())
    assert locator_loss(right.flip(2), classes).item() > 1


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PLAN", (("limb", "ct", 0.01),))
    monkeypatch.setattr(training, "WINDOW", (8, 9))
    paths = make_pictures(tmp_path / "pictures", 2)
    assert paths == make_pictures(tmp_path / "pictures", 2)
    with np.load(paths[0]) as kept:
        assert kept["image"].shape == kept["classes"].shape
        assert {0, 1 + CLASSES.index("soft tissue"), 1 + CLASSES.index("bone")} <= set(np.unique(kept["classes"]))
    whole = train_locator(paths, 4, 0, tmp_path / "whole")
    real, calls = torch.optim.AdamW.step, []

    def stops(self: torch.optim.AdamW, *args: object) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        real(self, *args)

    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    monkeypatch.setattr(torch.optim.AdamW, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        train_locator(paths, 4, 0, tmp_path / "parts")
    monkeypatch.setattr(torch.optim.AdamW, "step", real)
    again = train_locator(paths, 4, 0, tmp_path / "parts")
    for key, value in whole.state_dict().items():
        assert torch.allclose(value, again.state_dict()[key], atol=1e-5), key
    assert set(judged(whole, paths)) >= {"bone", "soft tissue"}


def test_locator_reads_the_narrow_range_too() -> None:
    image = torch.tensor([[[0.0, 0.42, 0.52, 0.62, 1.0]]])
    assert torch.allclose(channels(image)[1, 0, 0], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-5)
    assert Locator()(torch.zeros(1, 2, 8, 16, 8)).shape == (1, 1 + len(CLASSES), 8, 16, 8)


def test_a_model_folder_may_bring_its_own_locator(tmp_path: Path) -> None:
    assert locator_file(tmp_path) == MODELS / "compact" / LOCATOR
    own = Locator()
    save_tensors(tmp_path / LOCATOR, own.state_dict(), half=False)
    loaded = load_locator(locator_file(tmp_path))
    assert not loaded.training
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in loaded.state_dict().items())
