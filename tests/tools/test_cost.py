"""What models cost: parameters as published, FLOPs as PyTorch counts them, the table."""

import json
from pathlib import Path

import pytest
import torch

from models import build_model
from tools import cost
from tools.launch import load_recipe
from tools.published.cost import PARAMETERS

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("key", "count"),
    PARAMETERS.items(),
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_parameters_are_exactly_those_published(key, count):
    name, variant = key
    keys = (
        {"guidance": {"mode": variant}}
        if variant in ("feature", "usual")
        else {"cls_dim": int(variant)}
        if variant
        else {}
    )
    with torch.device("meta"):
        model = build_model({"NAME": name, **keys})
    assert sum(p.numel() for p in model.parameters()) == count


def test_flops_of_point_m2ae_are_those_known():
    """10.06 G forward at 1,024 points, two a multiply-add, as the plain layers have them."""
    torch.manual_seed(0)
    model = build_model({"NAME": "Point_M2AE_ModelNet40"})
    inputs = cost._inputs(model, 1024, cost.COUNTED, CPU)
    assert cost._flops(lambda: cost._evaluate(model, inputs)) == pytest.approx(10.06, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("3DETR", 42.6), ("3DETR_M", 42.9)])
def test_flops_of_detectors_are_those_measured_on_the_published_code(name, expected):
    torch.manual_seed(0)
    model = build_model({"NAME": name})
    inputs = cost._inputs(model, 40_000, cost.COUNTED, CPU)
    assert cost._flops(lambda: cost._evaluate(model, inputs)) == pytest.approx(expected, abs=0.1)


def test_flops_by_hand():
    layer = torch.nn.Linear(8, 4)
    rows = torch.randn(cost.COUNTED, 8)
    assert cost._flops(lambda: layer(rows)) == 2 * 8 * 4 / 1e9


def test_a_step_costs_three_forward_passes():
    """All but the first layer have as much again for each of the two gradients."""
    config = load_recipe(ROOT / "cfgs" / "debug" / "point-mae.yaml")
    found = cost.cost(config, CPU, timed=(2, 1))
    assert 2.4 < found.step / found.forward < 3.2 and found.features > found.forward / 3
    assert sum(found.parts.values()) == found.parameters and found.published_parameters == PARAMETERS[("Point_MAE", "")]
    assert found.samples_per_second > 0 and found.memory_mb > 0


@pytest.mark.parametrize(
    "recipe",
    ["fine-tuning/point-m2ae/debug.yaml", "segmentation/point-mae/debug.yaml", "detection/point-m2ae/debug.yaml"],
)
def test_other_tasks_are_counted_too(recipe):
    found = cost.cost(load_recipe(ROOT / "cfgs" / recipe), CPU)
    assert found.features is None and found.step > 2 * found.forward > 0


def test_command(tmp_path, capsys):
    out = tmp_path / "cost.json"
    flags = [
        "--config",
        str(ROOT / "cfgs" / "debug" / "point-mae.yaml"),
        "--no_time",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert cost.main([*flags, "--format", "csv"]) == 0
    text = capsys.readouterr().out
    assert "GMACs forward" in text and "MAE_encoder" in text
    [row] = json.loads(out.read_text())["recipes"].values()
    assert row["parameters"] == sum(row["parts"].values()) and row["samples_per_second"] is None
    assert cost.main([*flags, "--batch", "1"]) == 2 and "2 clouds" in capsys.readouterr().err
    assert len(cost.all_recipes()) > 20


def test_the_table_of_all_goes_on(tmp_path, monkeypatch, capsys):
    """What the file has is not computed again, unless other clouds were timed."""
    counted = []
    row = {"model": "A", "points": 1, "parameters": 1, "parts": {}, "published_parameters": None, "forward": 1.0}
    row |= {"step": 3.0, "features": None, "published_forward": None, "batch": None}

    def of_recipe(recipe, overrides, device, timed):
        counted.append(Path(recipe).name)
        if counted == ["a.yaml", "b.yaml"]:
            raise ValueError("no memory")
        return cost.Cost(**row)

    monkeypatch.setattr(cost, "all_recipes", lambda: ["a.yaml", "b.yaml"])
    monkeypatch.setattr(cost, "_of_recipe", of_recipe)
    flags = ["--all", "--no_time", "--device", "cpu", "--out", str(tmp_path / "cost.json")]
    assert cost.main(flags) == 2 and cost.main(flags) == 0 and counted == ["a.yaml", "b.yaml", "b.yaml"]
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert list(cost._known(tmp_path / "cost.json", [], 2)) == []
    capsys.readouterr()
    assert cost.main([*flags, "--set", "model.num_heads=2"]) == 2
    assert "cost.json: holds numbers of other settings (without --set); give another file" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "no JSON", '{"recipes": {"a.yaml": {"other": 1}}}'])
def test_another_file_is_not_overwritten(tmp_path, capsys, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    assert cost.main(["--all", "--no_time", "--device", "cpu", "--out", str(path)]) == 2
    assert str(path) in capsys.readouterr().err and path.read_text() == content


@pytest.mark.slow
def test_each_recipe_of_the_table_has_a_process(tmp_path, monkeypatch):
    recipes = ["fine-tuning/point-m2ae/debug.yaml", "debug/point-mae.yaml"]
    monkeypatch.setattr(cost, "all_recipes", lambda: recipes)
    flags = ["--all", "--batch", "2", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "cost.json")]
    assert cost.main(flags) == 0
    rows = json.loads((tmp_path / "cost.json").read_text())["recipes"]
    assert list(rows) == recipes and all(
        row["samples_per_second"] > 0 and row["memory_mb"] > 100 for row in rows.values()
    )
