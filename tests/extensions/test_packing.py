"""`visible_first`: visible groups in index order, tight on the CPU, `room` rows elsewhere."""

import pytest
import torch

from extensions import visible_first

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
