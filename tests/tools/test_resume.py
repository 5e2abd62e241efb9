"""What may differ between a run and the command that resumes it."""

import pytest

from tools.resume import check_resumed
from utils.errors import UserError

BEFORE = {
    "model": {"NAME": "Net", "mask_ratio": 0.6, "guidance": {"teacher_sha256": "ab"}, "retired": 1},
    "optimizer": {"kwargs": {"lr": 0.001}},
    "dataset": {"train": {"NAME": "Clouds", "npoints": 64, "DATA_PATH": "data/a"}, "val": None},
    "max_epoch": 3,
    "class_names": ["a"],
    "grad_norm_clip": 10,
    "seed": 0,
}


def changed(path, value):
    tree = {key: dict(part) if isinstance(part, dict) else part for key, part in BEFORE.items()}
    node, keys = tree, path.split(".")
    for key in keys[:-1]:
        node[key] = dict(node[key])
        node = node[key]
    node[keys[-1]] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("max_epoch", 9, "max_epoch 3, now 9"),
        ("max_epoch", 1, "max_epoch 3, now 1"),
        ("dataset.train.DATA_PATH", "data/b", "dataset.train.DATA_PATH data/a, now data/b"),
    ],
)
def test_what_may_differ_is_listed(path, value, line):
    assert check_resumed(BEFORE, changed(path, value), "a.pth", allowed=False) == [line]


@pytest.mark.parametrize("path", ["class_names", "model.guidance.teacher_sha256", "seed", "model.retired"])
def test_what_a_run_fills_in_and_checks_itself_is_no_change(path):
    now = changed(path, None)
    if path == "model.retired":
        del now["model"]["retired"]
    assert check_resumed(BEFORE, now, "a.pth", allowed=False) == []
    assert check_resumed(None, now, "a.pth", allowed=False) == []


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("model.mask_ratio", 0.8, "model.mask_ratio 0.6, now 0.8"),
        ("optimizer.kwargs.lr", 0.01, "optimizer.kwargs.lr 0.001, now 0.01"),
        ("grad_norm_clip", None, "grad_norm_clip 10, now empty"),
        ("dataset.train.npoints", 32, "dataset.train.npoints 64, now 32"),
        ("dataset.val", {"NAME": "Clouds"}, "dataset.val empty, now {'NAME': 'Clouds'}"),
    ],
)
def test_what_changes_results_is_refused_unless_told(path, value, line):
    with pytest.raises(
        UserError, match=f"--resume: a.pth was trained with another configuration: {line}. .*--allow_changes"
    ):
        check_resumed(BEFORE, changed(path, value), "a.pth", allowed=False)
    assert check_resumed(BEFORE, changed(path, value), "a.pth", allowed=True) == [line]
