"""Frozen features and parts: neighbours of the same cloud know its parts, and the summary is what was found."""

import json

import torch

from benchmarks.studies import part_features
from datasets import build_dataset
from models import build_model
from tests.models.test_part_segmenter import SINGLE


def clouds(**keys):
    return build_dataset(
        {"NAME": "Synthetic", "clouds": 8, "N_POINTS": 300, "categories": ["mug", "table"], "sampling": "first", **keys}
    )


def test_coordinates_of_the_same_clouds_give_their_parts():
    same = part_features.evaluate(None, clouds(), clouds())
    other = part_features.evaluate(None, clouds(), clouds(subset="test"))
    assert same.accuracy > 0.85 > other.accuracy > 0.3  # five neighbours, one of them the point itself


def test_everything_is_judged_and_written(tmp_path, capsys):
    config = {**SINGLE, "num_parts": 89, "num_categories": 20}
    model = build_model(config)
    encoder = {key: value for key, value in model.state_dict().items() if not key.startswith(model.HEAD)}
    torch.save({"base_model": {f"MAE_encoder.{key}": value for key, value in encoder.items()}}, tmp_path / "pre.pth")
    sets = {part: f"{{NAME: Synthetic, clouds: 20, N_POINTS: 64, subset: {part}}}" for part in ("train", "test")}
    lines = ["model:", *(f"  {key}: {value}" for key, value in config.items())]
    lines += ["dataset:", *(f"  {part}: {entry}" for part, entry in sets.items())]
    (tmp_path / "a.yaml").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.json"
    part_features.main(["--config", str(tmp_path / "a.yaml"), "--ckpts", str(tmp_path / "pre.pth"), "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"coordinates", "random", "pretrained"}
    for row in results.values():
        assert 0 < row["instance_miou"]["mean"] <= 100 and row["accuracy"]["mean"] == row["accuracy"]["values"][0]
    assert "coordinates: instance mIoU" in capsys.readouterr().out
