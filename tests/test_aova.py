"""Attention maps: the equations by hand, and a map that can be empty."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffugts.aova import AttentionConfig, AttentionHead, cross_attention, sum_stages


@pytest.fixture
def head() -> AttentionHead:
    torch.manual_seed(0)
    return AttentionHead(AttentionConfig((6, 10), 12, "test", hidden=8)).eval()


def _stages() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 8, 6, 4, generator=generator), torch.randn(10, 4, 3, 2, generator=generator)]


def _text(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 12, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_cross_attention_is_a_scaled_inner_product() -> None:
    query, key = torch.randn(4, 2, 3, 5), torch.randn(3, 4)
    logits = cross_attention(query, key)
    assert logits.shape == (3, 2, 3, 5)
    assert logits[1, 0, 2, 4] == pytest.approx(float(query[:, 0, 2, 4] @ key[1]) / 2)


def test_stages_are_summed_on_the_finest_grid() -> None:
    total = sum_stages([torch.ones(2, 2, 2, 2), 3 * torch.ones(2, 4, 4, 4)])
    assert total.shape == (2, 4, 4, 4)
    assert torch.equal(total, 4 * torch.ones_like(total))


def test_map_may_be_empty_or_full(head: AttentionHead) -> None:
    """A sigmoid over summed softmaxes lies in 0.5 to 0.95, so its mask is never empty; ours is free."""
    with torch.no_grad():
        head.offset.fill_(-40.0)
        assert float(head(_stages(), _text(1, 2), _text(1, 3)).probability.max()) < 0.01
        head.offset.fill_(40.0)
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
        alone = head(_stages(), abnormal[1:2], normal[1:2])
    torch.testing.assert_close(together.logits[1], alone.logits[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.score[1], alone.score[0], atol=1e-5, rtol=1e-4)


def test_adapter_mixes_the_normalised_feature(head: AttentionHead) -> None:
    stage = _stages()
    head.get_buffer("mean_0").fill_(2.0)
    head.get_buffer("deviation_0").fill_(4.0)
    plain = head.normalise(stage)[0]
    torch.testing.assert_close(plain[1, 2, 3], (stage[0][:, 1, 2, 3] - 2) / 4)
    with torch.no_grad():
        expected = 0.5 * head.adapters[0](head.normalise(stage), plain.shape[:3]) + 0.5 * plain
        torch.testing.assert_close(head.adapt(stage)[0], expected)


def test_any_depth_of_volume(head: AttentionHead) -> None:
    """Nothing learnt is tied to one volume size."""
    for depth in (4, 8, 12):
        stages = [torch.randn(6, depth, 4, 4), torch.randn(10, depth // 2, 2, 2)]
        with torch.no_grad():
            assert head(stages, _text(1, 2), _text(1, 3)).logits.shape == (1, depth, 4, 4)


def test_adapter_is_the_layer_on_its_own_and_coarser_stages(head: AttentionHead) -> None:
    """Resampling after the first linear layer must equal resampling before it."""
    fine, coarse = head.normalise(_stages())
    up = F.interpolate(coarse.movedim(-1, 0)[None], size=(8, 6, 4), mode="trilinear")[0].movedim(0, -1)
    adapter = head.adapters[0]
    with torch.no_grad():
        expected = adapter.second(F.silu(adapter.first[0](fine) + adapter.first[1](up)))
        torch.testing.assert_close(adapter([fine, coarse], (8, 6, 4)), expected, atol=1e-5, rtol=1e-4)
        coarse_only = head.adapters[1]
        expected = coarse_only.second(F.silu(coarse_only.first[1](coarse)))
        torch.testing.assert_close(coarse_only([fine, coarse], (4, 3, 2)), expected, atol=1e-5, rtol=1e-4)
