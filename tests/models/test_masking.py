"""Masks: exact counts and the carrying down of the coarsest mask."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.group import group_pyramid
from models.masking import back_project, random_mask


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
