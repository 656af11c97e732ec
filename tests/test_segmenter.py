"""The public interface on a tiny random model: geometry, reproducibility, encode once, and empty answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffugts.anatomy import Organs
from diffugts.case import Case, upsampled
from diffugts.errors import InputError, WeightsError
from diffugts.heads import Settings
from diffugts.healing import Sampling
from diffugts.likelihood import Odds
from diffugts.prompts import parse_all
from diffugts.refine import Evidence, convincing, heal_candidate
from diffugts.residual import Fusion
from diffugts.search import Search
from diffugts.search.liver import Liver
from diffugts.search.lung import Lungs
from diffugts.search.soft_tissue import Muscle
from diffugts.segmenter import Segmenter
from tiny import tiny_folder

AFFINE = np.array([[0, -2.5, 0, 40.0], [2.0, 0, 0, -30.0], [0, 0, 3.0, 5.0], [0, 0, 0, 1]])
SHAPE = (34, 26, 20)
EAGER = Settings(threshold=0.0, score_threshold=0.0, fusion=Fusion(contrast=0.0, floor=0.0))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter.from_pretrained(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(40, 20, SHAPE) - 900 * (np.indices(SHAPE)[0] < 4)).astype(np.int16)


@pytest.fixture(scope="module")
def case(segmenter: Segmenter, scan: np.ndarray) -> Case:
    return segmenter.encode(scan, affine=AFFINE, modality="ct")


@pytest.fixture(scope="module")
def region() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[12:20, 8:15, 6:12] = True
    return mask


def with_settings(case: Case, settings: Settings) -> Case:
    """The same encoded scan, refined with other settings."""
    return replace(case, segmenter=replace(case.segmenter, settings=settings))


def test_everything_is_on_the_scans_grid(case: Case, region: np.ndarray) -> None:
    answer = case.segment("liver tumor", region=region, seeds=2)["liver tumor"]
    for name in ("mask", "probability", "attention", "pseudo_healthy", "residual", "uncertainty"):
        assert getattr(answer, name).shape == SHAPE, name
    assert answer.mask.dtype == np.uint8
    assert set(np.unique(answer.mask)) <= {0, 1}
    assert 0 <= answer.probability.min() <= answer.probability.max() <= 1


def test_same_seed_same_bits_other_seed_other_bits(case: Case, region: np.ndarray) -> None:
    first, again, other = (case.segment("tumor", region=region, seed=seed)["tumor"] for seed in (5, 5, 6))
    assert np.array_equal(first.pseudo_healthy, again.pseudo_healthy)
    assert np.array_equal(first.probability, again.probability)
    assert not np.array_equal(first.pseudo_healthy, other.pseudo_healthy)


def test_answer_does_not_depend_on_the_other_prompts(case: Case) -> None:
    held = with_settings(case, EAGER)
    alone, together = (
        held.segment("lung tumor")["lung tumor"],
        held.segment(["liver tumor", "lung tumor"])["lung tumor"],
    )
    np.testing.assert_allclose(alone.attention, together.attention, atol=1e-6)
    np.testing.assert_allclose(alone.probability, together.probability, atol=1e-4)


def test_a_users_region_is_compared_without_a_seam_and_attentions_candidate_as_it_was_painted(
    case: Case, region: np.ndarray
) -> None:
    candidate = case.placement.forward(region, "max").astype(bool)
    backbone, latent = case.segmenter.backbone, case.encoding.latent
    given, found = (
        heal_candidate(backbone, latent, candidate, case.conditions, [0], Sampling(), smooth_vox=0.0, trusted=trusted)
        for trusted in (True, False)
    )
    np.testing.assert_array_equal(given.healthy, found.healthy)  # what is shown never has a seam
    np.testing.assert_allclose(given.signed[0], given.decoded - given.healthy, atol=1e-6)
    assert not given.signed[0][~candidate].any()
    assert found.signed[0][~candidate].any()  # whole latent voxels were painted
    assert not np.allclose(found.signed[0][candidate], given.signed[0][candidate], atol=1e-4)


def test_only_a_prompt_that_names_no_organ_needs_a_firm_answer_and_a_negated_one_gets_none(case: Case) -> None:
    held = with_settings(case, replace(EAGER, firm=99.0))
    prompts = parse_all(["tumor", "lung tumor", "no lung tumor"])
    attention = held.attention(prompts)
    pointed = [
        held.suspicious(prompt, held.attended(attention, prompt, index), float(attention.score[index])).any()
        for index, prompt in enumerate(prompts)
    ]
    assert pointed == [False, True, False]
    assert with_settings(case, EAGER).segment("tumor")["tumor"].residual.any()
    assert not held.segment("tumor")["tumor"].residual.any()


def test_organ_that_the_head_never_saw_is_asked_as_any_tumour_and_says_so(case: Case) -> None:
    knows = replace(case, segmenter=replace(case.segmenter, settings=EAGER, seen=frozenset({"lung"})))
    prompts = ["tumor", "lung tumor", "prostate tumor"]
    generic, lung, prostate = (knows.segment(prompts)[prompt] for prompt in prompts)
    np.testing.assert_allclose(prostate.attention, generic.attention, atol=1e-6)  # rows of one batch: not to the bit
    assert not np.allclose(lung.attention, generic.attention, atol=1e-4)
    assert (generic.warnings, lung.warnings) == ((), ())
    assert "saw no tumour of the prostate" in prostate.warnings[0]
    assert "in the whole scan; tumours of other organs count too" in prostate.warnings[0]
    unknown = with_settings(case, EAGER).segment(["tumor", "prostate tumor"])  # what this head saw is not recorded
    assert not np.allclose(unknown["prostate tumor"].attention, unknown["tumor"].attention, atol=1e-4)


def test_organ_that_the_head_never_saw_is_looked_for_where_it_lies(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    knows = replace(case, segmenter=replace(case.segmenter, settings=EAGER, seen=frozenset({"lung"})))
    region = np.zeros(knows.organs.image.shape, bool)
    region[: len(region) // 2] = True
    asked: list[str | None] = []
    monkeypatch.setattr(Organs, "search", lambda self, organ: asked.append(organ) or Search(region))
    unseen, seen = parse_all(["liver tumor", "lung tumor"])
    attention = knows.attention([unseen, seen])
    within, everywhere = (
        knows.attended(attention, p, i)[knows.placement.scanned] for i, p in enumerate((unseen, seen))
    )
    assert within[~region].max() == 0 < within[region].min()
    assert everywhere[~region].min() > 0
    assert set(asked) == {"liver"}
    assert "in the liver that was found in it." in knows.segment("liver tumor")["liver tumor"].warnings[0]
    even = Muscle(region, np.zeros(region.shape, np.float32))
    monkeypatch.setattr(Organs, "search", lambda self, organ: even)
    sarcoma = knows.segment("sarcoma of soft tissue")["sarcoma of soft tissue"]
    assert "in the soft tissue that was found in it, where it is deep and even." in sarcoma.warnings[0]


def test_the_scans_own_candidates_help_a_head_that_saw_the_organ_where_it_agrees(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = np.zeros(case.organs.image.shape, np.int32)
    parts[4:10, 4:10, 4:10] = 1
    search: Search = Liver(parts > 0, np.ones(parts.shape, np.float32), parts, (1.0,))
    monkeypatch.setattr(Organs, "search", lambda self, organ: search)
    prompts = parse_all(["liver tumor", "kidney tumor"])
    attention = case.attention(prompts)

    def attended(heard: float | None, index: int = 0) -> np.ndarray:
        settings = replace(EAGER, heard={} if heard is None else {"liver": heard})
        knows = replace(case, segmenter=replace(case.segmenter, settings=settings, seen=frozenset({"kidney", "liver"})))
        return knows.attended(attention, prompts[index], index)[knows.placement.scanned]

    own, kidney = attended(None), attended(None, 1)
    found = attended(-100.0) > 0.5
    assert not (found & (parts == 0)).any()
    assert found.sum() == 6**3 - 8  # a part is rounded: its corners go
    np.testing.assert_array_equal(attended(100.0), own)
    np.testing.assert_array_equal(attended(-100.0, 1), kidney)  # no organ that is heard
    search = Search(parts > 0)  # nothing that the scan says
    np.testing.assert_array_equal(attended(-100.0), own)
    search = Lungs(parts > 0, np.where(parts > 0, 5.0, 0.0).astype(np.float32))  # something, but no candidates
    assert (attended(100.0)[parts > 0] > own[parts > 0]).all()
    np.testing.assert_allclose(attended(100.0)[parts == 0], own[parts == 0], atol=1e-4)


def test_features_are_asked_what_tells_a_lesion_where_the_organ_is_found_and_settings_say_so(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    organ = np.zeros(case.organs.image.shape, bool)
    organ[2:-2, 2:-2, 2:-2] = True
    monkeypatch.setattr(Organs, "search", lambda self, name: Search(organ) if name == "liver" else None)
    asks = with_settings(case, replace(EAGER, margin_mm=2.0, form="likelihood", odds=Odds(features=0.5)))
    liver, kidney = parse_all(["liver tumor", "kidney tumor"])
    suspicious = np.zeros(case.placement.grid.shape, bool)
    assert asks.telling(liver, suspicious) is None
    suspicious[6:11, 6:11, 6:11] = True
    found = asks.telling(liver, suspicious)
    assert found is not None
    assert found.shape == suspicious.shape
    assert found[suspicious].mean() > found[~suspicious].mean()
    assert asks.telling(kidney, suspicious) is None
    assert with_settings(case, EAGER).telling(liver, suspicious) is None


def test_second_prompt_does_not_encode_again(
    segmenter: Segmenter, scan: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = type(segmenter.backbone).encode
    monkeypatch.setattr(type(segmenter.backbone), "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
    case = segmenter.encode(scan, affine=AFFINE, modality="ct")
    case.segment("liver tumor")
    case.segment(["kidney tumor", "lung tumor"])
    assert len(calls) == 1


def test_outside_the_dilated_mask_the_scan_keeps_its_bits(case: Case, region: np.ndarray, scan: np.ndarray) -> None:
    from scipy.ndimage import distance_transform_edt

    healed = case.heal(region)
    far = distance_transform_edt(~region, sampling=(2.0, 2.5, 3.0)) > case.segmenter.settings.margin_mm + 6
    assert np.array_equal(healed[far], scan[far])
    assert not np.array_equal(healed[region], scan[region])


def test_region_and_heal_agree(case: Case, region: np.ndarray) -> None:
    assert np.array_equal(
        case.heal(region, seed=2), case.segment("tumor", region=region, seed=2)["tumor"].pseudo_healthy
    )


def test_empty_candidate_costs_no_diffusion(case: Case, monkeypatch: pytest.MonkeyPatch, scan: np.ndarray) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked to repaint nothing")

    monkeypatch.setattr(case.segmenter.backbone, "predict", refuse)
    answer = case.segment("tumor", region=np.zeros(SHAPE, bool))["tumor"]
    assert answer.mask.sum() == 0
    assert answer.lesions == ()
    assert np.array_equal(answer.pseudo_healthy, scan)


@pytest.mark.parametrize("prompt", ["healthy liver", "no evidence of liver tumor"])
def test_negated_prompt_is_empty_whatever_the_attention(case: Case, prompt: str) -> None:
    held = with_settings(case, EAGER)
    answer = held.segment(prompt)[prompt]
    assert answer.mask.sum() == 0
    assert any("nothing is there" in sentence for sentence in answer.warnings)


def test_low_image_score_gives_an_empty_mask(case: Case) -> None:
    """Otsu always splits something; without the gates a healthy scan would have a tumour."""
    shut = replace(EAGER, score_threshold=1.1)
    held = with_settings(case, shut)
    assert held.segment("tumor")["tumor"].mask.sum() == 0


def test_small_lesions_leave_mask_and_table_alike(case: Case, region: np.ndarray) -> None:
    every = with_settings(case, EAGER).segment("tumor")["tumor"]
    sizes = sorted(lesion.volume_ml for lesion in every.lesions)
    assert len(sizes) > 1
    least = (sizes[-2] + sizes[-1]) / 2
    strict = with_settings(case, replace(EAGER, min_lesion_ml=least))
    answer = strict.segment("tumor")["tumor"]
    assert [lesion.volume_ml for lesion in answer.lesions] == sizes[-1:]
    assert np.array_equal(answer.mask > 0, answer.probability > 0.5)
    kept = answer.mask > 0
    assert np.array_equal(answer.probability[kept], every.probability[kept])
    asked = strict.segment("tumor", region=region)["tumor"]  # a user's region may be small
    assert np.array_equal(asked.mask, with_settings(case, EAGER).segment("tumor", region=region)["tumor"].mask)


def test_candidate_that_repaints_to_itself_is_no_lesion(case: Case, region: np.ndarray) -> None:
    strict = Settings(fusion=Fusion(contrast=10.0))
    held = with_settings(case, strict)
    assert held.segment("tumor", region=region)["tumor"].mask.sum() == 0


def test_parts_that_attention_still_sees_once_painted_healthy_are_dropped() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1:4, 1:4, 1:4] = mask[6:9, 6:9, 6:9] = True
    fall = np.where(np.arange(12)[:, None, None] < 5, 2.0, 0.1) * mask
    nothing = np.zeros(mask.shape, np.float32)
    evidence = Evidence(mask, nothing, nothing, (nothing,), (nothing,), fall.astype(np.float32))
    asked, spacing = Settings(fall=0.5, fall_ml=1.0), (2.0, 2.0, 2.0)
    assert np.array_equal(convincing(evidence, mask, asked, spacing).mask, mask & (fall > 1))
    assert convincing(evidence, mask, replace(asked, fall_ml=0.1), spacing).mask.sum() == 54  # both too large to ask
    assert convincing(replace(evidence, fall=None), mask, asked, spacing).mask.sum() == 54


def test_padding_is_never_suspicious(case: Case) -> None:
    prompts = parse_all(["tumor"])
    attended = case.attended(case.attention(prompts), prompts[0])
    assert attended.shape == case.placement.grid.shape
    padding = np.ones(attended.shape, bool)
    padding[case.placement.scanned] = False
    assert padding.any()
    assert attended[padding].max() == 0
    assert attended[~padding].min() > 0


def test_second_look_keeps_only_what_the_repainting_took_away(case: Case) -> None:
    found = with_settings(case, EAGER).segment("tumor")["tumor"]
    assert found.mask.any()
    held = with_settings(case, replace(EAGER, fall=100.0, fall_ml=1e6)).segment("tumor")["tumor"]
    assert not held.mask.any()
    assert np.array_equal(held.pseudo_healthy, case.volume.array)  # nothing was called a lesion: nothing is painted
    image = torch.rand(40, 32, 24)
    logits = case.second_look(parse_all(["tumor"])[0])(image)  # type: ignore[misc]
    assert logits.shape == image.shape
    whole = replace(case, wide=(), encoding=case.segmenter.backbone.encode(image[None, None], case.conditions))
    again = upsampled(whole.attention(parse_all(["tumor"])).logits[0], image.shape)
    np.testing.assert_allclose(logits.numpy(), again, atol=1e-4)


def test_mask_stays_inside_the_dilated_region(case: Case, region: np.ndarray) -> None:
    from scipy.ndimage import distance_transform_edt

    mask = case.segment("tumor", region=region)["tumor"].mask > 0
    far = distance_transform_edt(~region, sampling=(2.0, 2.5, 3.0)) > case.segmenter.settings.margin_mm + 6
    assert not mask[far].any()


def test_reconstruction_is_in_the_scans_unit(case: Case) -> None:
    again = case.reconstruction()
    assert again.shape == SHAPE
    assert abs(float(np.median(again)) - float(np.median(case.volume.array))) < 400


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"region": np.zeros((3, 3, 3), bool)}, r"\(3, 3, 3\)"),
    ],
)
def test_bad_arguments_get_a_sentence(case: Case, arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        case.segment("tumor", **arguments)


def test_bad_scans_and_devices_get_a_sentence(segmenter: Segmenter, scan: np.ndarray) -> None:
    with pytest.raises(InputError, match="affine"):
        segmenter.encode(scan)
    with pytest.raises(InputError, match="auto, ct or mr"):
        segmenter.encode(scan, affine=AFFINE, modality="pet")
    with pytest.raises(InputError, match="device must be"):
        Segmenter.from_pretrained(segmenter.folder, device="tpu9")
    with pytest.raises(WeightsError, match="no model 'nonesuch'"):
        Segmenter.from_pretrained("nonesuch")


def test_thick_slices_and_tiny_volumes_run(segmenter: Segmenter) -> None:
    rng = np.random.default_rng(0)
    for shape, spacing in (((40, 40, 8), (1.0, 1.0, 8.0)), ((9, 9, 9), (1.0, 1.0, 1.0))):
        array = rng.uniform(0, 500, shape).astype(np.float32)
        case = segmenter.encode(array, affine=np.diag([*spacing, 1.0]), modality="mr")
        assert case.segment("brain tumor")["brain tumor"].mask.shape == shape


def test_shared_cases_come_back_on_their_grid(segmenter: Segmenter, shared) -> None:  # type: ignore[no-untyped-def]
    import nibabel as nib

    path = shared / "cases" / "sarcoma_t1_025" / "t1.nii.gz"
    answer = segmenter.encode(path).segment("soft tissue sarcoma")["soft tissue sarcoma"]
    assert answer.mask.shape == nib.load(path).shape


def test_looks_on_larger_voxels_change_attention_and_nothing_of_the_grid(
    segmenter: Segmenter, scan: np.ndarray, case: Case
) -> None:
    settings = replace(segmenter.settings, wide=(1.5, 2.25))
    looked = replace(segmenter, settings=settings).encode(scan, affine=AFFINE, modality="ct")
    assert case.wide == ()
    assert [view.placement.spacing[0] for view in looked.wide] == pytest.approx([3.0, 4.5], rel=0.15)
    prompt = parse_all(["liver tumor"])
    first, second = case.attention(prompt), looked.attention(prompt)
    assert first.logits.shape == second.logits.shape
    assert not np.allclose(first.logits, second.logits)
    assert np.array_equal(case.encoding.latent, looked.encoding.latent)
