"""Procedural patients: reproducible, the same from any window, the truth where the image changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffugts.errors import InputError
from diffugts.synth import KINDS, LABELS, ORGANS, PLANTABLE, render_labelmap, sample_patient
from diffugts.synth.acquire import correlated_noise, point_spread, thick_slices
from diffugts.synth.field import noise
from diffugts.synth.labels import L, values
from diffugts.synth.palette import PHASES, SEQUENCES, ct_palette, mr_palette
from diffugts.synth.patient import draw

SHARED = Path(__file__).resolve().parents[2] / "shared"
SMALL = {"shape": (40, 40, 40), "spacing": (3.0, 3.0, 3.0)}


def around(patient, centre, shape=(40, 40, 40), spacing=3.0):
    """Origin of a window around a world position."""
    return tuple(float(c - 0.5 * (n - 1) * spacing) for c, n in zip(centre, shape, strict=True))


@pytest.fixture(scope="module")
def torso():
    return sample_patient(11, "torso", lesions=1, organ="liver")


@pytest.fixture(scope="module")
def whole():
    """A whole trunk, coarse."""
    return sample_patient(5, "torso").render(
        shape=(90, 62, 122), spacing=(6.0, 6.0, 6.0), origin=(-267.0, -183.0, -410.0), contrast="portal"
    )


# ---- reproducibility ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_the_same_seed_gives_the_same_bits(kind, modality):
    first, second = (sample_patient(3, kind, lesions=1).render(**SMALL, modality=modality, seed=4) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.lesion.tobytes() == second.lesion.tobytes()
    assert first.contrast == second.contrast


def test_seeds_differ():
    a, b = (sample_patient(s, "torso").render(**SMALL, contrast="none") for s in (1, 2))
    assert (a.labels != b.labels).mean() > 0.1
    patient = sample_patient(1, "torso")
    c, d = (patient.render(**SMALL, seed=s) for s in (1, 2))
    assert np.array_equal(c.labels, d.labels)
    assert not np.array_equal(c.image, d.image)


@pytest.mark.parametrize("kind", KINDS)
def test_overlapping_windows_show_the_same_anatomy(kind):
    patient = sample_patient(8, kind)
    palette = ct_palette(np.random.default_rng(0), "portal")
    start = (-60.0, -60.0, -90.0)
    axes = [o + 3.0 * np.arange(44) for o in start]
    shifted = [a[12:] for a in axes]
    big, part = (draw(patient.anatomy, kind, patient.seed, patient.scale, tuple(a), palette) for a in (axes, shifted))
    inner = (slice(12, None),) * 3
    assert (big.labels[inner] == part.labels).mean() > 0.9995
    close = np.abs(big.image[inner] - part.image) < 0.05
    assert close.mean() > 0.999


def test_lesions_agree_between_windows(torso):
    centre = np.array(torso.lesions[0].centre_mm)
    origin = around(torso, centre)
    a = torso.render(**SMALL, origin=origin)
    b = torso.render(**SMALL, origin=tuple(o + 15.0 for o in origin))
    assert a.lesion.any()
    assert np.array_equal(a.lesion[5:, 5:, 5:], b.lesion[:-5, :-5, :-5])


# ---- lesions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("organ", [o for o in PLANTABLE if o not in ("brain", "breast")])
def test_the_organ_asked_for_is_honoured_and_changes_only_there(organ):
    patient = sample_patient(21, "torso", lesions=1, organ=organ)
    (lesion,) = patient.lesions
    assert lesion.organ == organ
    window = {**SMALL, "spacing": (2.0, 2.0, 2.0), "origin": around(patient, lesion.centre_mm, spacing=2.0)}
    ill, well = (patient.render(**window, seed=2, contrast="portal", lesions=on) for on in (True, False))
    assert set(np.unique(ill.lesion)) == {0, 1}
    assert not well.lesion.any()
    middle = well.labels[17:23, 17:23, 17:23]
    assert np.isin(middle, values(ORGANS[organ])).any() or lesion.push > 0
    if lesion.push == 0:
        change = np.abs(ill.image - well.image)
        inside = ill.lesion > 0
        assert change[inside].mean() > 5 * change[~inside].mean() + 2
        assert np.array_equal(ill.labels, well.labels)


@pytest.mark.parametrize(("kind", "organ", "modality"), [("limb", "soft tissue", "mr"), ("head", "brain", "mr")])
def test_lesions_of_limb_and_head(kind, organ, modality):
    patient = sample_patient(2, kind, lesions=1, organ=organ)
    (lesion,) = patient.lesions
    window = {**SMALL, "origin": around(patient, lesion.centre_mm), "modality": modality, "contrast": "t2"}
    ill, well = (patient.render(**window, lesions=on) for on in (True, False))
    inside = ill.lesion > 0
    assert inside.sum() * 27 > 0.1 * 4.19 * lesion.radius_mm**3
    assert ill.image[inside].mean() > 1.1 * well.image[inside].mean()  # bright on T2


def test_several_lesions_do_not_overlap_and_are_numbered():
    patient = sample_patient(4, "torso", lesions=4, organ="lung")
    assert 2 <= len(patient.lesions) <= 4
    for i, a in enumerate(patient.lesions):
        for b in patient.lesions[i + 1 :]:
            assert np.linalg.norm(np.subtract(a.centre_mm, b.centre_mm)) > a.radius_mm + b.radius_mm
    last = patient.lesions[-1]
    sample = patient.render(**SMALL, origin=around(patient, last.centre_mm))
    assert (sample.lesion == len(patient.lesions)).any()


def test_planting_leaves_the_anatomy_alone():
    ill, well = sample_patient(9, "torso", lesions=3), sample_patient(9, "torso")
    a, b = ill.render(**SMALL, lesions=False), well.render(**SMALL)
    assert a.image.tobytes() == b.image.tobytes()


# ---- anatomy -----------------------------------------------------------------------------------


def test_the_trunk_has_its_tissues_in_sane_amounts(whole):
    litres = {name: (whole.labels == v).sum() * 216e-6 for v, name in LABELS.items()}
    for name, low, high in (
        ("lung", 2.0, 9.0),
        ("liver", 0.7, 3.2),
        ("muscle", 8, 45),
        ("fat", 3, 60),
        ("spleen", 0.05, 0.6),
        ("kidney cortex", 0.08, 0.6),
        ("myocardium", 0.1, 0.9),
        ("marrow", 0.4, 4.0),
        ("cortical bone", 0.5, 6.0),
    ):
        assert low < litres[name] < high, (name, litres[name])


def test_hounsfield_units_of_the_trunk(whole):
    def mean(name):
        return whole.image[whole.labels == L[name]].mean()

    assert mean("background") < -850
    assert -950 < mean("lung") < -600
    assert -135 < mean("fat") < -40
    assert 20 < mean("muscle") < 90
    assert mean("cortical bone") > 200
    assert mean("liver") > mean("visceral fat") + 60
    body = whole.image[whole.image > -300]
    assert 0.5 < ((body > -150) & (body < 200)).mean() < 1.0


def test_right_is_right(whole):
    at = {
        name: np.argwhere(whole.labels == L[name]).mean(0)
        for name in ("liver", "spleen", "lung", "bladder", "stomach wall")
    }
    assert at["liver"][0] > at["spleen"][0] + 10  # x grows to the patient's right
    assert at["lung"][2] > at["liver"][2] > at["bladder"][2]
    assert at["stomach wall"][1] > at["spleen"][1]  # the stomach lies in front


@pytest.mark.parametrize("kind", KINDS)
def test_every_organ_lies_near_its_centre(kind):
    patient = sample_patient(6, kind)
    assert patient.centres
    lo, hi = patient.extent
    for organ, centre in patient.centres.items():
        assert centre.shape == (3,)
        assert ((centre > lo - 40) & (centre < hi + 40)).all()
        sample = patient.render(shape=(24, 24, 24), spacing=(4.0,) * 3, origin=around(patient, centre, (24,) * 3, 4.0))
        assert np.isin(sample.labels, values(ORGANS[organ])).any(), organ


@pytest.mark.parametrize("kind", KINDS)
def test_volumes_do_not_depend_on_the_spacing(kind):
    patient = sample_patient(12, kind, lesions=1, organ="brain" if kind == "head" else "soft tissue")
    centre = np.array(patient.lesions[0].centre_mm)
    volume = []
    for spacing, n in ((2.0, 60), (4.0, 30)):
        sample = patient.render(
            shape=(n, n, n),
            spacing=(spacing,) * 3,
            origin=around(patient, centre, (n,) * 3, spacing),
            contrast="none",
        )
        body = sample.labels > 0
        volume.append((body.sum() * spacing**3, (sample.lesion > 0).sum() * spacing**3, sample.image[body].mean()))
    (body2, lesion2, mean2), (body4, lesion4, mean4) = volume
    assert body4 == pytest.approx(body2, rel=0.05)
    assert lesion4 == pytest.approx(lesion2, rel=0.2)
    assert mean4 == pytest.approx(mean2, abs=25)


# ---- contrast and acquisition ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_mr_is_finite_and_never_negative(kind, sequence):
    sample = sample_patient(7, kind, lesions=1).render(
        shape=(24, 24, 24), spacing=(5.0,) * 3, modality="mr", contrast=sequence
    )
    assert sample.image.dtype == np.float32
    assert np.isfinite(sample.image).all()
    assert sample.image.min() >= 0
    assert sample.image.max() > 0


def test_stripped_heads_are_exactly_zero_outside_the_brain():
    heads = [sample_patient(s, "head") for s in range(8)]
    assert {h.stripped for h in heads} == {True, False}
    head = next(h for h in heads if h.stripped)
    sample = head.render(shape=(32, 32, 32), spacing=(6.0,) * 3, modality="mr")
    skull = np.isin(sample.labels, values(("scalp", "cortical bone", "background")))
    assert skull.any()
    assert (sample.image[skull] == 0).all()
    assert sample.image.max() > 0


def test_contrast_agents_do_what_they_do():
    for seed in range(5):
        none, arterial, portal = (ct_palette(np.random.default_rng(seed), p) for p in ("none", "arterial", "portal"))
        assert arterial.mean[L["artery"]] > none.mean[L["artery"]] + 80
        assert portal.mean[L["liver vessel"]] > none.mean[L["liver vessel"]] + 30
        t1, t2, flair = (mr_palette(np.random.default_rng(seed), s) for s in ("t1", "t2", "flair"))
        assert t2.mean[L["csf"]] > t2.mean[L["white matter"]]
        assert t1.mean[L["white matter"]] > t1.mean[L["csf"]]
        assert flair.mean[L["white matter"]] > flair.mean[L["csf"]]
    assert set(PHASES) == {"none", "arterial", "portal", "late"}


def test_noise_is_anchored_to_the_world_and_of_unit_variance():
    a = noise(tuple(np.arange(60) * 2.0 for _ in range(3)), 6.0, 5)
    b = noise(tuple(np.arange(20, 60) * 2.0 for _ in range(3)), 6.0, 5)
    np.testing.assert_allclose(a[20:, 20:, 20:], b, atol=1e-5)
    assert a.std() == pytest.approx(1.0, abs=0.15)
    assert abs(a.mean()) < 0.15
    assert np.abs(a - noise(tuple(np.arange(60) * 2.0 for _ in range(3)), 6.0, 6)).mean() > 0.5


def test_slices_blur_one_axis_and_keep_the_mean():
    axes = tuple(np.arange(30) * 1.0 for _ in range(3))
    image = np.zeros((30, 30, 30), np.float32)
    image[15, 15, 15] = 1.0
    thick = thick_slices(image, axes, 2, 5.0)
    assert thick.shape == image.shape
    assert thick[15, 15].max() < 0.25
    assert not thick[:15].any()
    assert not thick[:, :15].any()
    flat = np.full((30, 30, 30), 7.0, np.float32)
    np.testing.assert_allclose(thick_slices(flat, axes, 2, 5.0), 7.0, rtol=1e-5)
    assert thick_slices(flat, axes, 2, 1.0) is flat
    assert point_spread(image, (1.0,) * 3, 3.0).sum() == pytest.approx(1.0, abs=1e-3)


def test_reconstruction_noise_has_a_grain():
    field = correlated_noise((40, 40, 40), (1.0, 1.0, 1.0), 1.2, np.random.default_rng(0))
    assert field.std() == pytest.approx(1.0, abs=0.02)
    assert np.corrcoef(field[1:].ravel(), field[:-1].ravel())[0, 1] > 0.4


# ---- label maps --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ball_head():
    """Nested balls with FreeSurfer-like values: skull, fluid, grey, white, ventricle."""
    g = np.indices((60, 60, 60)).astype(float) - 29.5
    r = np.sqrt((g**2).sum(0)) * 3.0
    labels = np.zeros(r.shape, np.int16)
    for radius, value in ((88, 511), (82, 515), (76, 24), (72, 3), (66, 2), (12, 4)):
        labels[r < radius] = value
    return labels


@pytest.mark.parametrize("modality", ["mr", "ct"])
def test_a_label_map_and_its_healthy_twin(ball_head, modality):
    ill, well = (
        render_labelmap(ball_head, (3.0,) * 3, modality, 5, lesions=n, out_spacing=(4.0,) * 3, contrast=None)
        for n in (1, 0)
    )
    inside = ill.lesion > 0
    assert inside.any()
    assert not well.lesion.any()
    assert np.array_equal(ill.labels, well.labels)
    brain = np.isin(ill.labels, values((*ORGANS["brain"], "csf")))
    assert brain[inside].mean() > 0.95
    change = np.abs(ill.image - well.image)
    assert change[inside].mean() > 5 * change[~inside].mean()


def test_label_maps_strip_flip_and_reject(ball_head):
    bare = render_labelmap(ball_head, (3.0,) * 3, "mr", 1, strip=True, out_spacing=(4.0,) * 3)
    assert (bare.image[bare.labels == L["cortical bone"]] == 0).all()
    full = render_labelmap(ball_head, (3.0,) * 3, "mr", 1, strip=False, out_spacing=(4.0,) * 3)
    assert (full.image[full.labels == L["scalp"]] > 0).all()
    still = render_labelmap(ball_head, (3.0,) * 3, "mr", 1, deform=False, out_spacing=(3.0,) * 3)
    assert (still.labels == L["ventricle"]).sum() == (ball_head == 4).sum()
    with pytest.raises(InputError, match="3 axes"):
        render_labelmap(ball_head[0], (3.0,) * 3)
    with pytest.raises(InputError, match="modality"):
        render_labelmap(ball_head, (3.0,) * 3, "pet")


def test_a_real_label_map():
    path = SHARED / "labelmaps" / "head_synthseg" / "training_seg_07.nii.gz"
    if not path.exists():
        pytest.skip("no label maps beside the repository")
    nib = pytest.importorskip("nibabel")
    image = nib.as_closest_canonical(nib.load(path))
    sample = render_labelmap(np.asarray(image.dataobj), (1.0, 1.0, 1.0), rng=3, lesions=1, out_spacing=(3.0,) * 3)
    assert (sample.lesion > 0).any()
    assert {"grey matter", "white matter", "csf"} <= {LABELS[int(v)] for v in np.unique(sample.labels)}
    assert (sample.labels > 0).mean() > 0.4


# ---- misuse ------------------------------------------------------------------------------------


def test_misuse_is_answered_with_a_sentence(torso):
    with pytest.raises(InputError, match="kind"):
        sample_patient(0, "wing")
    with pytest.raises(InputError, match="limb"):
        sample_patient(0, "limb", lesions=1, organ="liver")
    with pytest.raises(InputError, match="modality"):
        torso.render(**SMALL, modality="pet")
    with pytest.raises(InputError, match="phase"):
        torso.render(**SMALL, contrast="t1")
    with pytest.raises(InputError, match="positive"):
        torso.render(shape=(0, 4, 4))


def test_a_graft_changes_a_scan_only_inside_its_truth_and_keeps_off_what_is_unknown():
    from diffugts.synth.graft import graft

    patient = sample_patient(3, kind="limb")
    image = patient.render((48, 48, 48), modality="ct").image
    known = np.zeros(image.shape, bool)
    known[:, :24] = True
    planted, truth, organ = graft(image, known, (2.0, 2.0, 2.0), "ct", "limb", np.random.default_rng(1))
    assert organ == "soft tissue"
    assert truth.any()
    from scipy.ndimage import binary_dilation

    near = binary_dilation(truth, iterations=4)
    assert (np.abs(planted - image)[~near] > 5).mean() < 1e-3  # a soft rim may reach a voxel further
    assert np.abs(planted - image)[truth].mean() > 3


@pytest.mark.parametrize("contrast", ["none", "portal"])
def test_the_liver_is_found_in_a_torso_and_not_in_a_thigh(contrast):
    from diffugts.synth.graft import find_liver
    from diffugts.synth.labels import ORGANS, values

    patient = sample_patient(5, kind="torso")
    spacing, shape = (4.0, 4.0, 4.0), (100, 70, 60)
    centre = patient.centres["liver"]
    middle = (patient.extent[0] + patient.extent[1]) / 2
    origin = tuple(np.array([middle[0], middle[1], centre[2]]) - 2.0 * np.array(shape))
    sample = patient.render(shape, spacing, origin, "ct", contrast=contrast)
    found, truth = find_liver(sample.image, spacing), np.isin(sample.labels, values(ORGANS["liver"]))
    assert found.sum() * 64 / 1000 > 300
    assert (found & truth).sum() > 0.85 * found.sum()
    thigh = sample_patient(1, kind="limb").render((60, 60, 60), (3.0, 3.0, 3.0), modality="ct", contrast=contrast)
    assert find_liver(thigh.image, (3.0, 3.0, 3.0)).sum() * 27 / 1000 < 1500
