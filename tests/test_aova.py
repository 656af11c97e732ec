"""Attention maps: the equations by hand, a map that can be empty, and windows that leave no seam."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffugts.aova import Attention, AttentionConfig, AttentionHead, attend, cross_attention, mean_of_looks, sum_stages


@pytest.fixture
def head() -> AttentionHead:
    torch.manual_seed(0)
    head = AttentionHead(AttentionConfig((6, 10), (2, 4), 12, "test", widths=(8, 16, 16), hidden=8)).eval()
    for parameter in head.adapters.parameters():  # residual blocks start as the identity: every path must count
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return head


def _stages(*shape: int, count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    d, h, w = shape or (8, 8, 4)
    return [
        torch.randn(count, 6, d, h, w, generator=generator),
        torch.randn(count, 10, d // 2, h // 2, w // 2, generator=generator),
    ]


def _text(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(1, count, 12, generator=torch.Generator().manual_seed(seed)), dim=2)


def test_cross_attention_is_a_scaled_inner_product() -> None:
    query, key = torch.randn(2, 4, 2, 3, 5), torch.randn(2, 3, 4)
    logits = cross_attention(query, key)
    assert logits.shape == (2, 3, 2, 3, 5)
    assert logits[1, 2, 0, 2, 4] == pytest.approx(float(query[1, :, 0, 2, 4] @ key[1, 2]) / 2)


def test_stages_are_summed_on_the_finest_grid() -> None:
    total = sum_stages([torch.ones(1, 2, 2, 2, 2), 3 * torch.ones(1, 2, 4, 4, 4)])
    assert total.shape == (1, 2, 4, 4, 4)
    assert torch.equal(total, 4 * torch.ones_like(total))


def test_map_may_be_empty_or_full(head: AttentionHead) -> None:
    """A sigmoid over summed softmaxes lies in 0.5 to 0.95, so its mask is never empty; ours is free."""
    with torch.no_grad():
        head.offset.fill_(-400.0)
        assert float(head(_stages(), _text(1, 2), _text(1, 3)).probability.max()) < 0.01
        head.offset.fill_(400.0)
        assert float(head(_stages(), _text(1, 2), _text(1, 3)).probability.min()) > 0.99


def test_swapping_the_pair_swaps_the_sign(head: AttentionHead) -> None:
    abnormal, normal = _text(2, 2), _text(2, 3)
    with torch.no_grad():
        head.offset.zero_()
        there, back = head(_stages(), abnormal, normal), head(_stages(), normal, abnormal)
    torch.testing.assert_close(there.logits, -back.logits)


def test_prompts_do_not_see_each_other(head: AttentionHead) -> None:
    abnormal, normal = _text(3, 2), _text(3, 3)
    with torch.no_grad():
        together = head(_stages(), abnormal, normal)
        alone = head(_stages(), abnormal[:, 1:2], normal[:, 1:2])
    torch.testing.assert_close(together.logits[0, 1], alone.logits[0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.score[0, 1], alone.score[0, 0], atol=1e-5, rtol=1e-4)


def test_patches_of_a_batch_do_not_see_each_other(head: AttentionHead) -> None:
    stages, abnormal, normal = _stages(count=2), _text(2, 2).repeat(2, 1, 1), _text(2, 3).repeat(2, 1, 1)
    with torch.no_grad():
        together = head(stages, abnormal, normal)
        alone = head([stage[1:] for stage in stages], abnormal[1:], normal[1:])
    torch.testing.assert_close(together.logits[1], alone.logits[0], atol=1e-5, rtol=1e-4)


def test_adapters_mix_with_the_normalised_feature(head: AttentionHead) -> None:
    stages = _stages()
    head.get_buffer("mean_0").fill_(2.0)
    head.get_buffer("deviation_0").fill_(4.0)
    normal = head.normalise(stages)
    torch.testing.assert_close(normal[0], (stages[0] - 2) / 4)
    with torch.no_grad():
        for answer, plain, adapted in zip(head.adapters(normal), normal, head.adapt(stages), strict=True):
            torch.testing.assert_close(adapted, 0.5 * answer + 0.5 * plain)


def test_every_stage_reaches_every_map(head: AttentionHead) -> None:
    """The fine map depends on the coarse stage and the other way round: adapters see all of them."""
    for index in range(2):
        stages = _stages()
        changed = [stage + (i == index) for i, stage in enumerate(stages)]
        with torch.no_grad():
            pairs = zip(head.adapters(stages), head.adapters(changed), strict=True)
            assert all(not torch.allclose(before, after) for before, after in pairs)


def test_any_depth_of_volume(head: AttentionHead) -> None:
    """Nothing learnt is tied to one volume size."""
    for depth in (4, 8, 12):
        with torch.no_grad():
            assert head(_stages(depth, 4, 4), _text(1, 2), _text(1, 3)).logits.shape == (1, 1, depth, 4, 4)


def test_a_scan_of_one_window_is_that_window(head: AttentionHead) -> None:
    stages, abnormal, normal = _stages(), _text(2, 2), _text(2, 3)
    with torch.no_grad():
        whole = head(stages, abnormal, normal)
        scan = attend(head, stages, abnormal[0], normal[0], window=16, overlap=4)
    torch.testing.assert_close(scan.logits, whole.logits[0])
    torch.testing.assert_close(scan.score, whole.score[0])


def test_a_large_scan_is_covered_and_its_highest_window_counts(head: AttentionHead) -> None:
    stages, abnormal, normal = _stages(20, 12, 8), _text(2, 2), _text(2, 3)
    with torch.no_grad():
        scan = attend(head, stages, abnormal[0], normal[0], window=16, overlap=8)
        corner = head([stages[0][:, :, :8, :8, :8], stages[1][:, :, :4, :4, :4]], abnormal, normal)
    assert scan.logits.shape == (2, 20, 12, 8)
    assert torch.isfinite(scan.logits).all()
    assert (scan.score >= corner.score[0] - 1e-6).all()


def test_all_looks_meet_at_the_same_place() -> None:
    """A ramp along the second axis, in mm from the common corner, is the same ramp on every grid."""
    small, large = (2.0, 2.0, 2.0), (2.5, 3.0, 4.0)

    def ramp(shape: tuple[int, int, int], step: float, sign: float) -> Attention:
        line = sign * step * (torch.arange(shape[1]) + 0.5)
        return Attention(line[None, None, :, None].expand(1, *shape), torch.zeros(1, 3), torch.tensor([sign]))

    fine, wide = ramp((12, 12, 12), small[1], 1.0), ramp((10, 8, 6), large[1], 1.0)
    ratios = [a / b for a, b in zip(small, large, strict=True)]
    both = mean_of_looks(fine, [wide], [ratios])
    inside = slice(1, 11)  # outside, the wide grid's border repeats
    assert torch.allclose(both.logits[..., inside, :], fine.logits[..., inside, :], atol=1e-4)
    opposite = mean_of_looks(fine, [ramp((10, 8, 6), large[1], -1.0)], [ratios])
    assert opposite.logits[..., inside, :].abs().max() < 1e-4
    assert opposite.score_logits.item() == 0
    three = mean_of_looks(fine, [wide, ramp((10, 8, 6), large[1], -1.0)], [ratios, ratios])
    assert torch.allclose(three.logits[..., inside, :], fine.logits[..., inside, :] / 3, atol=1e-4)
    doubled = ramp((6, 6, 6), 4.0, -1.0)  # voxels twice as large weigh twice as much to the power of 1
    weighed = mean_of_looks(fine, [doubled], [[0.5] * 3], coarse=1.0)
    assert torch.allclose(weighed.logits[..., inside, :], -fine.logits[..., inside, :] / 3, atol=1e-4)
    assert weighed.score_logits.item() == pytest.approx(-1 / 3)
    assert mean_of_looks(fine, [], []) is fine
