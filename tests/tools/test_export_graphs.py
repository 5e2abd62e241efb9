"""`tools.export` to ONNX and torch.export: the graph gives what the model gives, for every method."""

import importlib.util
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DATASETS
from models import MODELS, build_model
from tests.models.debug_models import METHODS, RECIPES, clouds, small
from tools import export
from tools.embedder import Embedder, open_embedder
from tools.export.graph import Graph, input_names, inputs_of, pack_program, trace
from tools.export.onnx_file import pack_onnx, run_onnx
from utils.config.load import load_config
from utils.config.merge import to_dict
from utils.errors import UserError
from utils.files import save_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parent.parent.parent
AGREE = 1e-4
QUICK = {("point-m2ae", "encoder", False)}  # each takes some ten seconds, most of it in the exporters of PyTorch
CASES = [
    pytest.param(method, part, inside, marks=[] if (method, part, inside) in QUICK else pytest.mark.slow)
    for method in METHODS
    for part in RECIPES
    for inside in (False, True)
]


def expected(model, part, points):
    with torch.no_grad():
        points = model.transform(points)
        if part == "classifier":
            return [model(points)]
        tokens = model.patch_tokens(points)
        return [model.encode(points) if hasattr(model, "encode") else model.features(points), tokens]


def agree(model, part, found, points):
    wanted = expected(model, part, points)
    assert [tuple(got.shape) for got in found] == [tuple(want.shape) for want in wanted]
    assert all(np.abs(got - want.numpy()).max() < AGREE for got, want in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("method", "part", "inside"), CASES)
def test_onnxruntime_agrees_with_the_model(method, part, inside):
    embedder = small(method, part)
    model = embedder.model
    data = pack_onnx(trace(embedder, part, with_grouping=inside, npoints=256, onnx=True))
    for count in (1, 3):
        points = clouds(count, seed=count)
        inputs = [points] if inside else inputs_of(model.group(model.transform(points)))
        agree(model, part, run_onnx(data, inputs), points)
    made = onnx.load_model_from_string(data)
    assert {node.domain for node in made.graph.node} <= {"", "pkg.onnxscript.torch_lib.common"}
    about = json.loads(next(entry.value for entry in made.metadata_props if entry.key == "m2ae"))
    assert about["inputs"] == [entry.name for entry in made.graph.input]
    assert about["outputs"] == [entry.name for entry in made.graph.output]


@pytest.mark.parametrize(
    ("method", "inside"),
    [
        ("point-mae", True),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in METHODS if name != "point-mae"),
    ],
)
def test_torch_export_agrees_with_the_model(method, inside):
    embedder = small(method)
    data = pack_program(trace(embedder, "encoder", with_grouping=inside, npoints=256, onnx=False))
    files = {"m2ae.json": ""}
    program = torch.export.load(BytesIO(data), extra_files=files)
    assert json.loads(files["m2ae.json"])["with_grouping"] is inside
    assert not [node for node in program.graph.nodes if "m2ae" in str(node.target)]
    for count in (1, 3):
        with torch.no_grad():
            found = program.module()(clouds(count, seed=count))
        agree(embedder.model, "encoder", [output.numpy() for output in found], clouds(count, seed=count))


@pytest.mark.slow
def test_the_published_size():
    """The published Point-M2AE with points inside: 832 steps of sampling are three loops."""
    config = load_config(ROOT / "cfgs/pre-training/point-m2ae.yaml", models=MODELS, datasets=DATASETS)
    torch.manual_seed(0)
    embedder = Embedder(build_model(config.model).eval(), config, torch.device("cpu"))
    data = pack_onnx(trace(embedder, "encoder", with_grouping=True, npoints=2048, onnx=True))
    points = torch.randn(2, 2048, 3, generator=torch.Generator().manual_seed(1)) * 0.3
    agree(embedder.model, "encoder", run_onnx(data, [points]), points)
    assert sum(node.op_type == "Loop" for node in onnx.load_model_from_string(data).graph.node) == 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    embedder, path = small("point-mae"), tmp_path_factory.mktemp("export") / "a.pth"
    save_checkpoint(path, {"base_model": embedder.model.state_dict(), "config": to_dict(embedder.config)})
    return path


def test_the_command_and_the_example_of_numpy(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export.main(["--ckpts", str(checkpoint), "--out", "a.onnx"]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("a.onnx: encoder of Point_MAE, ")
        and "takes neighborhoods, centers; gives features, tokens" in said
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    spec = importlib.util.spec_from_file_location("onnx_numpy", ROOT / "examples" / "onnx_numpy.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    embedder = open_embedder(checkpoint)
    for count in (embedder.npoints, 3 * embedder.npoints):  # more are thinned
        points = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32) * 3 + 1
        with torch.no_grad():
            wanted = embedder.model.encode(embedder.fit(points)[None])[0].numpy()
        assert np.abs(example.encode("a.onnx", points) - wanted).max() < AGREE
    assert "torch" not in (ROOT / "examples" / "onnx_numpy.py").read_text()


def test_inputs_are_named_and_ordered():
    model = small("point-m2ae").model
    assert input_names(model) == ["neighborhoods", "centers_0", "centers_1", "centers_2", "members_1", "members_2"]
    inputs = inputs_of(model.group(clouds(2)))
    assert [tuple(tensor.shape) for tensor in inputs] == [
        (2, 32, 8, 3), (2, 32, 3), (2, 16, 3), (2, 8, 3), (2, 16, 4), (2, 8, 4)
    ]  # fmt: skip
    with torch.no_grad():
        agree(
            model,
            "encoder",
            [part.numpy() for part in Graph(model, "encoder", with_grouping=False)(*inputs)],
            clouds(2),
        )


def test_what_cannot_be_exported_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    """With this published bug, how many tokens there are depends on the batch."""
    monkeypatch.chdir(tmp_path)
    embedder = small("point-m2ae", "encoder", "model.legacy=[near_padding]")
    save_checkpoint(Path("a.pth"), {"base_model": embedder.model.state_dict(), "config": to_dict(embedder.config)})
    assert export.main(["--ckpts", "a.pth", "--out", "a.onnx"]) == 2
    said = capsys.readouterr().err
    assert "PointM2AE: its encoder cannot be exported: with legacy near_padding, shapes follow the data" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_messages(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for flags, remedy in (
        (["--out", "a.onnx", "--part", "classifier"], "PointMAE has no classes; give a fine-tuned checkpoint"),
        (["--out", "a.onnx", "--half"], "--half: is for safetensors, not for onnx"),
        (["--out", "a.pth", "--with-grouping"], "--with-grouping: is for onnx and pt2, not for pth"),
        (["--out", "a.onnx", "--points", "64"], "--points 64: must be at least 1, and belongs to --with-grouping"),
        (["--out", "a.onnx", "--with-grouping", "--points", "8"], "--points 8: PointMAE groups at least 16 points"),
    ):
        assert export.main(["--ckpts", str(checkpoint), *flags]) == 2
        assert remedy in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing(checkpoint, monkeypatch, capsys, tmp_path):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"--to onnx needs the package onnxscript: pip install onnx onnxscript"):
        pack_onnx(None)
