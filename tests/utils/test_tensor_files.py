"""Checkpoints as safetensors files: what is written is read, and damage is named."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from utils.errors import UserError
from utils.files import read_checkpoint, save_tensors

CONFIG = {"model": {"NAME": "Point_MAE", "group_sizes": [8, 4], "legacy": False}, "class_names": None, "lr": 1e-3}
WEIGHTS = {
    "a.weight": torch.arange(12.0).reshape(3, 4).t() / 7,  # not contiguous
    "a.bias": torch.arange(3.0) / 7,
    "norm.num_batches_tracked": torch.tensor(5),
}


@pytest.fixture
def path(tmp_path):
    save_tensors(tmp_path / "a.safetensors", WEIGHTS, {"config": CONFIG, "epoch": 3, "optimizer": {}})
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read(path):
    saved = read_checkpoint(path)
    assert {key: value for key, value in saved.items() if key != "base_model"} == {"config": CONFIG, "epoch": 3}
    assert saved["base_model"].keys() == WEIGHTS.keys()
    assert all(torch.equal(saved["base_model"][key], value) for key, value in WEIGHTS.items())
    with safe_open(path, framework="pt") as file:  # the layout that other programs meet
        assert file.metadata()["format"] == "m2ae" and json.loads(file.metadata()["config"]) == CONFIG
    assert load_file(path)["a.bias"].tolist() == WEIGHTS["a.bias"].tolist()


def test_the_same_weights_are_the_same_bytes(path):
    before = path.read_bytes()
    for _ in range(3):
        save_tensors(path, dict(reversed(WEIGHTS.items())), {"epoch": 3, "config": CONFIG})
        assert path.read_bytes() == before
    assert (8 + int.from_bytes(before[:8], "little")) % 8 == 0


def test_half_precision_comes_back_as_float32(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, WEIGHTS, {}, half=True)
    assert load_file(path)["a.weight"].dtype == torch.float16
    saved = read_checkpoint(path)["base_model"]
    assert saved["a.weight"].dtype == torch.float32
    assert torch.equal(saved["a.weight"], WEIGHTS["a.weight"].half().float())
    assert torch.equal(saved["a.bias"], WEIGHTS["a.bias"]) and saved["norm.num_batches_tracked"] == 5


def test_too_large_for_half_precision(tmp_path):
    with pytest.raises(UserError, match=r"a\.safetensors: the tensor w has values above 65504.*leave out --half"):
        save_tensors(tmp_path / "a.safetensors", {"w": torch.full((2, 2), 1e5)}, {}, half=True)
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory_are_written_each(tmp_path):
    shared = torch.arange(4.0)
    save_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared, "c": shared[1:]}, {})
    assert read_checkpoint(tmp_path / "a.safetensors")["base_model"]["c"].tolist() == [1, 2, 3]


def test_files_of_other_programs_are_state_dicts(tmp_path):
    save_file({"a": torch.ones(2, 2).half()}, tmp_path / "a.safetensors", {"format": "pt", "config": "no JSON"})
    saved = read_checkpoint(tmp_path / "a.safetensors")
    assert list(saved) == ["a"] and saved["a"].dtype == torch.float16


def test_each_cut_and_each_changed_byte_is_named(path):
    whole = path.read_bytes()
    for size in (1, 7, 9, 60, 300, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.safetensors: .*(copy or download it again|give a \.pth file)"):
            read_checkpoint(path)
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in (begin, begin + 21, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"a\.safetensors: is damaged: the checksum of its tensors differs"):
            read_checkpoint(path)


def test_a_missing_file_lists_those_that_are_there(path):
    with pytest.raises(UserError, match=r"checkpoints there: a\.safetensors"):
        read_checkpoint(path.with_name("b.pth"))
