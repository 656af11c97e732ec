"""The likelihood form of the refinement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffugts.heads import Settings
from diffugts.likelihood import Odds, depth_prior, posterior
from diffugts.refine import Evidence, Part, refine, with_odds, without_leaks

SIDE = 24


def _scene() -> tuple[torch.Tensor, ...]:
    """A bright cube of 10³ in darker noise; attention knows its middle 6³ and half believes a rim around the cube."""
    torch.manual_seed(0)
    truth, prior = torch.zeros(SIDE, SIDE, SIDE, dtype=torch.bool), torch.full((SIDE,) * 3, 0.02)
    truth[7:17, 7:17, 7:17] = True
    inside = torch.zeros_like(truth)
    inside[4:20, 4:20, 4:20] = True
    prior[4:20, 4:20, 4:20] = 0.3
    prior[9:15, 9:15, 9:15] = 0.8
    healthy = 0.3 + 0.02 * torch.randn(SIDE, SIDE, SIDE)
    decoded = healthy + 0.3 * truth
    return truth, prior, inside, decoded, decoded - healthy


def test_the_mask_grows_to_the_edge_that_the_scan_shows() -> None:
    truth, prior, inside, decoded, signed = _scene()
    found = posterior(prior, 0.5, decoded, signed, inside, Odds()) > 0.5
    overlap = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    core = prior > 0.5
    assert overlap > 0.9 > 0.5 > 2 * (core & truth).sum() / (core.sum() + truth.sum())


def test_nothing_outside_the_part_and_nothing_invented_without_a_core() -> None:
    _, prior, inside, decoded, signed = _scene()
    assert not posterior(prior, 0.5, decoded, signed, inside, Odds())[~inside].any()
    unsure = posterior(prior, 0.9, decoded, signed, inside, Odds())
    torch.testing.assert_close(unsure[inside], prior[inside])


def test_without_weights_the_prior_alone_decides() -> None:
    _, prior, inside, decoded, signed = _scene()
    found = posterior(prior, 0.5, decoded, signed, inside, Odds(0.0, 0.0)) > 0.5
    assert torch.equal(found, inside & (prior > 0.5))


def test_what_looks_like_the_healthy_tissue_painted_there_is_no_lesion() -> None:
    _, prior, inside, _, _ = _scene()
    torch.manual_seed(1)
    flat, healthy = (0.3 + 0.02 * torch.randn(SIDE, SIDE, SIDE) for _ in range(2))
    assert not posterior(prior, 0.5, flat, flat - healthy, inside, Odds()).any()
    lenient = posterior(prior, 0.5, flat, flat - healthy, inside, Odds(least=0.0)) > 0.5
    core = prior > 0.5
    assert (lenient ^ core).sum() < 0.1 * core.sum()  # and where it is kept, attention's own edge stays


@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_scanner_gain_changes_nothing(gain: float) -> None:
    _, prior, inside, decoded, signed = _scene()
    first = posterior(prior, 0.5, decoded, signed, inside, Odds())
    other = posterior(prior, 0.5, gain * decoded, gain * signed, inside, Odds())
    np.testing.assert_array_equal((first > 0.5).numpy(), (other > 0.5).numpy())


def test_a_generous_region_shrinks_to_what_is_in_it() -> None:
    truth, _, inside, decoded, signed = _scene()
    prior, cut = depth_prior(inside, Odds().core)
    assert 0 < (inside & (prior > cut)).sum() <= Odds().core * inside.sum()
    found = posterior(prior, cut, decoded, signed, inside, Odds()) > 0.5
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


def test_depth_is_under_the_surface_even_where_the_box_is_tight() -> None:
    """The parts that are refined come in their own boxes; a user's region may fill its box."""
    prior, cut = depth_prior(torch.ones(9, 9, 9, dtype=torch.bool), 0.15)
    assert prior[4, 4, 4] == 1
    torch.testing.assert_close(prior[0, 4, 4], torch.tensor(0.2))
    loose = torch.zeros(13, 13, 13, dtype=torch.bool)
    loose[2:11, 2:11, 2:11] = True
    same, limit = depth_prior(loose, 0.15)
    torch.testing.assert_close(same[2:11, 2:11, 2:11], prior)
    assert limit == cut


def test_a_region_of_one_voxel_has_a_prior_too() -> None:
    inside = torch.zeros(3, 3, 3, dtype=torch.bool)
    inside[1, 1, 1] = True
    prior, cut = depth_prior(inside, 0.15)
    found = posterior(prior, cut, torch.rand(3, 3, 3), torch.zeros(3, 3, 3), inside, Odds())
    assert torch.isfinite(found).all()
    assert not found[~inside].any()


@pytest.mark.parametrize("apart", [0.0, 0.3], ids=["beside one that looks healthy", "beside one that stands out"])
@pytest.mark.parametrize("main", [0, 1])
def test_of_parts_that_look_healthy_the_one_that_attention_means_is_spared(main: int, apart: float) -> None:
    """A tumour as dark as its surroundings stays where it is the main thing that attention found."""
    _, prior, inside, _, _ = _scene()
    torch.manual_seed(1)
    flat, healthy = (0.3 + 0.02 * torch.randn(SIDE, SIDE, SIDE) for _ in range(2))
    faint = torch.where(prior > 0.5, 0.55, prior)
    priors, other = ([prior, faint] if main == 0 else [faint, prior]), torch.where(prior > 0.5, apart, 0.0)
    scans = [flat, flat]
    scans[1 - main] = flat + other
    mask = torch.cat([inside, torch.zeros_like(inside[:2]), inside]).numpy()
    attended = torch.cat([priors[0], torch.zeros_like(prior[:2]), priors[1]]).numpy()
    scan = torch.cat([scans[0], flat[:2], scans[1]]).numpy()
    painted = torch.cat([healthy, flat[:2], healthy]).numpy()
    evidence = Evidence(mask, scan, painted, (scan - painted,), (np.zeros_like(scan),))
    settings = Settings(threshold=0.5, form="likelihood", region_form="likelihood")
    found = refine(evidence, attended, settings).probability > 0.5
    kept = [bool(found[:SIDE].any()), bool(found[SIDE + 2 :].any())]
    assert kept[main]
    assert kept[1 - main] == bool(apart)
    region = refine(evidence, attended, settings, trusted=True).probability
    assert not (region[:SIDE] if main == 0 else region[SIDE + 2 :]).any()  # a user's may be healthy


def test_a_second_opinion_mends_what_attention_sees_askew() -> None:
    """Attention points past a tumour's edge, so its own core is impure; the middle of the candidate is not."""
    torch.manual_seed(0)
    truth, seen, inside = (np.zeros((SIDE,) * 3, bool) for _ in range(3))
    truth[6:18, 6:18, 6:18] = True
    seen[3:15, 8:16, 8:16] = True
    inside[3:21, 3:21, 3:21] = True
    healthy = 0.3 + 0.05 * torch.randn(SIDE, SIDE, SIDE).numpy()
    scan = (healthy + 0.12 * truth).astype(np.float32)
    attended = np.where(seen, 0.9, 0.1).astype(np.float32)
    evidence = Evidence(inside, scan, healthy, (scan - healthy,), (np.zeros_like(scan),))
    found = refine(evidence, attended, Settings(threshold=0.5, form="likelihood")).probability
    prior, decoded, signed, part = (torch.from_numpy(a) for a in (attended, scan, scan - healthy, inside))
    alone = posterior(prior, 0.5, decoded, signed, part, Odds(least=-9.0)).numpy()
    dice = [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in (alone > 0.5, found > 0.5)]
    assert dice[1] > dice[0] + 0.05
    assert not found[~inside].any()


def test_a_second_opinion_is_asked_only_where_the_first_found_something() -> None:
    _, prior, inside, decoded, signed = _scene()
    part = Part(signed, torch.zeros_like(signed), prior, decoded, inside)
    nowhere = replace(part, attended=torch.full_like(prior, 0.01))
    assert not (nowhere.believed(0.5, Odds(), trusted=False) > 0.5).any()
    apart = posterior(prior, 0.5, decoded, signed, inside, Odds())
    both = part.believed(0.5, Odds(), trusted=False)
    second = 2 * both - apart
    assert float(second.min()) > -1e-6
    assert float(second.max()) < 1 + 1e-6
    assert not torch.equal(both, apart)
    assert torch.equal(part.believed(0.5, Odds(pure=0.0), trusted=False), apart)


def test_a_leak_along_a_bridge_is_no_part_of_a_lesion() -> None:
    """Of each lesion the piece around its deepest place stays; what is believed of the rest falls below a half."""
    probability = torch.full((20, 20, 40), 0.2)
    probability[4:16, 4:16, 4:16] = 0.9
    probability[9:11, 9:11, 16:26] = 0.9  # a bridge
    probability[6:14, 6:14, 26:34] = 0.8  # and what it leads to
    alone = probability.clone()
    alone[9:11, 9:11, 16:26] = 0.2
    found = without_leaks(probability, 0.3)
    assert (found[7:13, 7:13, 4:16] == 0.9).all()
    assert (found[..., 20:] < 0.5).all()
    assert torch.equal(found[probability < 0.5], probability[probability < 0.5])
    both = without_leaks(alone, 0.3)  # two lesions are two
    assert (both[8:12, 8:12, 28:32] == 0.8).all()
    assert torch.equal(without_leaks(torch.zeros(4, 4, 4), 0.3), torch.zeros(4, 4, 4))


def test_what_features_say_moves_the_outline_but_makes_it_neither_larger_nor_surer() -> None:
    truth, prior, inside, _, _ = _scene()
    odds = torch.where(truth, 3.0, -3.0) + 0.1 * torch.randn(truth.shape)
    seen = torch.roll(prior, 3, 0)  # attention is beside the lesion
    found = with_odds(seen, odds, inside)
    assert int(((found > 0.5) & inside).sum()) == int(((seen > 0.5) & inside).sum())
    assert int(((found > 0.5) & truth).sum()) > int(((seen > 0.5) & truth).sum())
    assert torch.equal(found[~inside], seen[~inside])
    spread = [torch.logit(p[inside], 1e-4).std() for p in (seen, found)]
    assert spread[1] <= spread[0] * 1.01


def test_without_an_outline_there_is_nothing_to_move() -> None:
    _, prior, inside, _, _ = _scene()
    odds = torch.randn(prior.shape)
    for p in (prior / 2, prior.clamp_min(0.6)):
        assert torch.equal(with_odds(p, odds, inside), p)


@pytest.mark.parametrize(("form", "trusted"), [("likelihood", False), ("likelihood", True), ("plain", False)])
def test_only_attentions_candidates_are_judged_by_features_and_only_by_likelihoods(form: str, trusted: bool) -> None:
    truth, prior, inside, decoded, signed = (x.numpy() for x in _scene())
    seen = np.roll(prior, 3, 0)
    evidence = Evidence(inside, decoded, decoded - signed, (signed,), (np.zeros_like(signed),))
    telling = np.where(truth, 5, -5).astype(np.float32)
    settings = Settings(threshold=0.5, form=form, region_form=form, odds=Odds(features=1.0, intensity=0.0))
    both = evidence, replace(evidence, telling=telling)
    without, told = (refine(one, seen, settings, trusted).probability for one in both)
    assert np.array_equal(without, told) != (form == "likelihood" and not trusted)
