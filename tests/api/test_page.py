"""The snippets of docs/package.md run as they stand."""

import re
import sys
from pathlib import Path

import pytest
import torch

import api
from models import build_model
from tools.launch import load_recipe
from utils.config.merge import to_dict
from utils.files import save_tensors

PAGE = (Path(__file__).parent.parent.parent / "docs" / "package.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^## ([^\n]+)$|^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
NAMED = []
for heading, code in SNIPPETS:
    if heading:
        latest = heading
    else:
        NAMED.append((latest, code))


@pytest.fixture
def small_weights(tmp_path, monkeypatch):
    """Put a tiny model in the place of the small weights, so that the snippets take seconds."""
    torch.manual_seed(0)
    config = load_recipe("cfgs/debug/point-m2ae.yaml")
    weights = build_model(config.model).state_dict()
    save_tensors(tmp_path / "mini-point-m2ae.safetensors", weights, {"config": to_dict(config)})
    monkeypatch.setattr("tools.weights.names.PACKAGED", tmp_path)
    monkeypatch.setitem(sys.modules, "m2ae", api)
    monkeypatch.chdir(tmp_path)


def test_every_section_has_its_snippet():
    assert [heading for heading, _ in NAMED] == [
        "Models", "Clouds", "A frozen encoder in another project", "In a Lightning module", "Parts of clouds",
        "With the library `peft`",
    ]  # fmt: skip


@pytest.mark.parametrize(("heading", "code"), NAMED, ids=[heading for heading, _ in NAMED])
def test_snippet(heading, code, small_weights):
    for library in ("lightning", "peft"):
        if re.search(rf"^(import|from) {library}\b", code, flags=re.MULTILINE):
            pytest.importorskip(library, reason=f"needs {library}, which nothing here uses: pip install {library}")
    space: dict = {"__name__": "snippet"}
    exec(compile(code, f"docs/package.md, {heading}", "exec"), space)
    if heading.startswith("A frozen"):
        assert all(parameter.grad is None for parameter in space["model"].encoder.parameters())
        assert torch.isfinite(space["loss"])
    if heading == "In a Lightning module":
        assert all(module.training for module in space["trainer"].lightning_module.model.modules())
    if heading.startswith("With the library"):
        assert all(
            "lora_" in key or "cls_head" in key for key, p in space["tuned"].named_parameters() if p.requires_grad
        )
        states = [space[name].eval()(space["points"]) for name in ("tuned", "again")]
        torch.testing.assert_close(*states)
    if heading == "Parts of clouds":
        assert space["parts"][0].max() <= 1 and space["parts"][1].min() >= 2
    if heading == "Models":
        assert space["features"].shape[0] == len(space["rebuilt"].clouds) == 2
