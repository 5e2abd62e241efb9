"""Masks: exact counts and the carrying down of the coarsest mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.group import group_pyramid
from models.masking import back_project, image_guided_mask, random_mask


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 64), st.floats(0, 0.99), st.integers(0, 2**31))
def test_random_mask_hides_exactly_the_ratio(batch, groups, ratio, seed):
    masked = random_mask(batch, groups, ratio, generator=torch.Generator().manual_seed(seed))
    assert masked.shape == (batch, groups)
    assert (masked.sum(1) == int(ratio * groups)).all()
    assert torch.equal(masked, random_mask(batch, groups, ratio, generator=torch.Generator().manual_seed(seed)))


def test_random_mask_hides_each_group_equally_often():
    masked = random_mask(4000, 10, 0.6, generator=torch.Generator().manual_seed(0))
    assert (masked.float().mean(0) - 0.6).abs().max() < 0.04


def test_back_projection_follows_the_definition():
    generator = torch.Generator().manual_seed(1)
    counts = [64, 24, 8]
    pyramid = group_pyramid(torch.randn(3, 150, 3, generator=generator), counts, [8, 6, 5])
    scales = back_project(random_mask(3, 8, 0.75, generator=generator), pyramid.idx, counts)
    for scale in (1, 2):
        for sample in range(3):
            held = {
                int(i) for group in (~scales[scale][sample]).nonzero() for i in pyramid.idx[scale][sample, group[0]]
            }
            assert held == set((~scales[scale - 1][sample]).nonzero()[:, 0].tolist())


def test_flat_token_shows_group_zero_of_sample_zero_only():
    generator = torch.Generator().manual_seed(1)
    counts = [64, 24, 8]
    pyramid = group_pyramid(torch.randn(3, 150, 3, generator=generator), counts, [8, 6, 5])
    masked = torch.ones(3, 8, dtype=torch.bool)
    masked[:, -1] = False
    clean = back_project(masked, pyramid.idx, counts)
    published = back_project(masked, pyramid.idx, counts, flat_token=True)
    assert not published[1][0, 0] and not published[0][0, 0]
    assert torch.equal(clean[1][1:], published[1][1:])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 64), st.floats(0, 0.99), st.floats(1e-6, 10), st.integers(0, 2**31))
def test_guided_mask_hides_exactly_the_ratio(batch, groups, ratio, temperature, seed):
    def draw():
        generator = torch.Generator().manual_seed(seed)
        saliency = torch.rand(batch, groups, generator=generator)
        return image_guided_mask(saliency, ratio, temperature=temperature, generator=generator)

    masked = draw()
    assert (masked.sum(1) == int(ratio * groups)).all() and torch.equal(masked, draw())


def test_guided_mask_keeps_the_salient_as_often_as_their_share():
    """One of four groups stays: each as often as the softmax says, and at a low temperature the most salient one alone."""
    saliency = torch.tensor([[0.0, 1.0, 2.0, 0.5]]).repeat(20000, 1)
    kept = ~image_guided_mask(saliency, 0.75, generator=torch.Generator().manual_seed(0))
    assert (kept.float().mean(0) - saliency[0].softmax(0)).abs().max() < 0.015
    cold = ~image_guided_mask(saliency, 0.75, temperature=1e-3, generator=torch.Generator().manual_seed(0))
    assert cold[:, 2].all()


def test_guided_mask_survives_what_underflows():
    """Where all shares but one are zero in fp32, the others are drawn uniformly after it."""
    saliency = torch.tensor([[0.0, 0.0, 1.0, 0.0]]).repeat(9000, 1)
    kept = (
        (~image_guided_mask(saliency, 0.5, temperature=1e-4, generator=torch.Generator().manual_seed(0)))
        .float()
        .mean(0)
    )
    assert kept[2] == 1 and (kept[[0, 1, 3]] - 1 / 3).abs().max() < 0.02
    with pytest.raises(ValueError, match="temperature is 0; it must be above 0"):
        image_guided_mask(saliency, 0.5, temperature=0)


def test_processes_draw_guided_masks_for_the_global_batch(monkeypatch):
    saliency = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))

    def draw(part):
        return image_guided_mask(part, 0.75, temperature=0.1, generator=torch.Generator().manual_seed(1))

    whole, parts = draw(saliency), []
    monkeypatch.setattr("models.masking.world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("models.masking.rank", lambda rank=rank: rank)
        parts.append(draw(saliency[3 * rank : 3 * rank + 3]))
    assert torch.equal(torch.cat(parts), whole)
