"""Orders of tokens: visible groups in index order, tight on the CPU, `room` rows elsewhere; near tokens together."""

import pytest
import torch

from extensions import gather, near_first, visible_first
from extensions.m2ae_ops.ordering import along_a_curve
from extensions.m2ae_ops.private import choice

VISIBLE = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()


def test_lists_visible_groups_in_index_order():
    order, valid = visible_first(VISIBLE, 4)
    assert order.tolist() == [[1, 3, 4], [0, 4, 1], [0, 1, 2]]
    assert valid.tolist() == [[True, True, True], [True, True, False], [False, False, False]]


def test_length_is_the_room_off_the_cpu_and_under_the_compiler():
    order, valid = visible_first(VISIBLE.to("meta"), 4)
    assert order.shape == valid.shape == (3, 4)
    compiled = torch.compile(lambda mask: visible_first(mask, 4), backend="eager", fullgraph=True)
    order, valid = compiled(VISIBLE)
    assert order[:, :3].tolist() == visible_first(VISIBLE, 4)[0].tolist() and order.shape == (3, 4)
    assert valid.sum(1).tolist() == [3, 2, 0]


def test_no_sample_and_nothing_visible():
    assert [part.shape for part in visible_first(VISIBLE[:0], 4)] == [(0, 4), (0, 4)]
    assert visible_first(VISIBLE[2:], 4)[0].shape == (1, 0)


@pytest.mark.parametrize(
    ("visible", "room", "words"),
    [
        (VISIBLE, 2, "3 visible groups, more than room=2"),
        (VISIBLE, 6, "room=6 must be between 0 and the 5 groups"),
        (VISIBLE.float(), 4, "must be bool"),
        (VISIBLE[0], 4, "must be bool"),
    ],
)
def test_wrong_arguments_are_named(visible, room, words):
    with pytest.raises(ValueError, match=words):
        visible_first(visible, room)


def test_near_centers_stand_together():
    centers = torch.randn(2, 300, 3)
    order = along_a_curve(centers)
    assert torch.equal(order.sort(1).values, torch.arange(300).expand(2, 300))
    step = lambda chosen: (chosen[:, 1:] - chosen[:, :-1]).norm(dim=-1).mean()  # noqa: E731
    assert step(gather(centers, order)) < 0.5 * step(centers)
    corners = torch.tensor([[x, y, z] for z in (0.0, 1.0) for y in (0.0, 1.0) for x in (0.0, 1.0)])
    assert along_a_curve(corners[torch.arange(7, -1, -1)].unsqueeze(0)).tolist() == [list(range(7, -1, -1))]
    assert along_a_curve(torch.ones(1, 3, 3)).sort(1).values.tolist() == [[0, 1, 2]]


def test_near_tokens_come_together_where_that_pays(monkeypatch):
    centers = torch.randn(2, 200, 3)
    for serves in (True, False):
        monkeypatch.setattr("extensions.m2ae_ops.ordering.own_attention", lambda *given, serves=serves: serves)
        expected = along_a_curve(centers) if serves else torch.arange(200).expand(2, 200)
        assert torch.equal(near_first(centers), expected)
        assert torch.equal(near_first(centers[:, :127]), torch.arange(127).expand(2, 127))
    monkeypatch.undo()
    assert near_first(centers.to("meta")).shape == (2, 200) and choice.own_attention(centers, torch.float16) is False
    with pytest.raises(ValueError, match=r"near_first: centers must have shape \(B, N, 3\)"):
        near_first(centers[0])
