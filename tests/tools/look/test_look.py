"""`tools.look`: features as colours, similarity, attention, masks and files, by their properties; bad input."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DATASETS
from datasets.formats.ply import write_ply
from models import MODELS, build_model
from models.base import MaskedAutoencoder
from models.layers.attention import Attention
from tools import look
from tools.embedder import open_embedder
from tools.launch import weights_file
from tools.look.capture import observe
from tools.look.projection import cosine, interpolate, maps, neighbours, principal_axes
from tools.look.rebuild import rebuild
from tools.look.study import Given, Query, study
from utils.config.load import load_config
from utils.errors import UserError
from utils.files import save_checkpoint

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "cfgs" / "debug").glob("*.yaml"))
TUNED = sorted((ROOT / "cfgs").glob("fine-tuning/*/debug.yaml")) + sorted(
    (ROOT / "cfgs").glob("segmentation/*/debug.yaml")
)


def shapes(count, points=256):
    """Draw boxes of different proportions, (count, points, 3), in the unit sphere."""
    draw = np.random.default_rng(0)
    made = draw.uniform(-1, 1, (count, points, 3)) * draw.uniform(0.2, 1, (count, 1, 3))
    return torch.from_numpy(made / np.linalg.norm(made, axis=2).max(1)[:, None, None]).float()


@pytest.fixture(scope="module")
def mini():
    return open_embedder(weights_file("mini", None)).model


@pytest.fixture(scope="module")
def found(mini):
    """Six clouds; the last is a copy of the first."""
    clouds = shapes(5)
    return study(mini, [Given(f"cloud {i}", cloud) for i, cloud in enumerate([*clouds, clouds[0].clone()])])


def run(*arguments):
    return look.main(["--device", "cpu", *map(str, arguments)])


CASES = [(recipe, "") for recipe in (*RECIPES, *TUNED)]
CASES += [(ROOT / "cfgs/fine-tuning/point-mae/debug.yaml", kind) for kind in ("prompt", "dapt")]
CASES += [(ROOT / "cfgs/fine-tuning/point-m2ae/debug.yaml", "prompt")]


@pytest.mark.parametrize(("recipe", "tune"), CASES, ids=lambda part: part and "/".join(Path(part).parts[-3:]))
@torch.inference_mode()
def test_every_method_is_observed(recipe, tune):
    """Tuning puts tokens that are no patches in front, `prompt` in every block, `dapt` in all but the first."""
    torch.manual_seed(1)
    overrides = [f"model.tune={{kind: {tune}}}"] if tune else []
    config = load_config(recipe, overrides=overrides, models=MODELS, datasets=DATASETS)
    model = build_model(config.model).eval()
    outputs = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: outputs.append((module, given[0], out)))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    points, scales = observe(model, shapes(1, 300)[0])
    for hook in hooks:
        hook.remove()
    expected = model.patch_tokens(points[None])[0].numpy()
    last = scales[-1]
    np.testing.assert_allclose(last.features, expected[len(expected) - len(last.index) :], atol=1e-5)
    pyramid = model.group(points[None])
    assert len(scales) == len(pyramid.centers)
    assert sum(len(scale.layers) for scale in scales) == len(outputs) > 0
    made = rebuild(model, points, 0)
    assert (made is not None) == isinstance(model, MaskedAutoencoder)
    if made is not None:
        assert [len(mask) for mask in made.masks] == [centers.shape[1] for centers in pyramid.centers]
    extra = {layer.extra for scale in scales for layer in scale.layers}
    assert {"prompt": 10, "dapt": 1}.get(tune, 0) <= max(extra) and len(extra) == (2 if tune == "dapt" else 1)
    assert all(np.allclose(scale.attention(0).sum(-1), 1, atol=1e-5) for scale in scales)
    outputs = iter(outputs)
    for scale, centers in zip(scales, pyramid.centers, strict=True):
        np.testing.assert_array_equal(scale.centers, centers[0, scale.index].numpy())
        assert (np.diff(scale.index) > 0).all() and np.isfinite(scale.features).all()
        for layer in scale.layers:
            module, x, out = next(outputs)
            weights = layer.weights()
            np.testing.assert_allclose(weights.sum(-1).numpy(), 1, atol=1e-5)
            # What the layer gave, from these weights: the same rows, maybe in another order.
            values = module.qkv(x)[0].unflatten(-1, (3, module.num_heads, -1))[:, 2]
            order = _rows(layer, module, x)
            mixed = (weights @ values[order].transpose(0, 1)).transpose(0, 1).flatten(1)
            torch.testing.assert_close(module.proj(mixed), out[0, order], atol=1e-5, rtol=1e-4)


def _rows(layer, module, x):
    """Return which row of the layer's input each of its queries is."""
    own = module.qkv(x)[0].unflatten(-1, (3, module.num_heads, -1))[:, 0].flatten(1)
    own = own * layer.query.shape[-1] ** -0.5
    return torch.cdist(layer.query.transpose(0, 1).flatten(1), own).argmin(1)


def test_copies_have_equal_colours_and_are_nearest(found):
    for scale in range(3):
        np.testing.assert_allclose(found.patch_colors(0, scale), found.patch_colors(5, scale), atol=1e-5)
        colors = np.concatenate([found.patch_colors(number, scale) for number in range(6)])
        assert colors.min() >= 0 and colors.max() <= 1 and (colors.std(0) > 0.05).all()
    assert found.near[0, 0] == 5 and found.near[5, 0] == 0
    assert found.near_cosine[0, 0] == pytest.approx(1, abs=1e-5)


def test_a_patch_is_most_similar_to_itself(found):
    for scale in range(3):
        query = Query(2, 3)
        similar, row = found.similarity(query, scale), found.row(query, scale)
        assert similar[2][row] == pytest.approx(1, abs=1e-5)
        assert max(part.max() for part in similar) <= 1 and min(part.min() for part in similar) >= -1
        assert similar[0] == pytest.approx(similar[5], abs=1e-4)
    with pytest.raises(UserError, match="patch 99 is none of 0 to 15"):
        found.row(Query(0, 99), 0)
    with pytest.raises(UserError, match="cloud 6 is none of 0 to 5"):
        found.row(Query(6, 0), 0)


def test_interpolation_is_exact_at_centers():
    draw = np.random.default_rng(0)
    centers, values = draw.normal(size=(9, 3)).astype(np.float32), draw.normal(size=(9, 4)).astype(np.float32)
    np.testing.assert_array_equal(interpolate(centers, centers, values), values)
    middle = (centers[:1] + centers[1:2]) / 2
    assert interpolate(middle, centers[:2], values) == pytest.approx((values[:1] + values[1:2]) / 2, abs=1e-5)
    weights = 1 / np.linalg.norm(centers[:3] - 5, axis=1)
    expected = (values[:3] * weights[:, None]).sum(0) / weights.sum()
    assert interpolate(np.full((1, 3), 5), centers[:3], values)[0] == pytest.approx(expected, abs=1e-5)


def test_axes_follow_the_spread():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(500, 5)) * [1, 9, 0, 3, 0.1] + 7
    axes = principal_axes([rows[:200], rows[200:]], count=4)
    assert axes.rows[:3, [1, 3, 0]] == pytest.approx(np.eye(3), abs=0.05)
    assert axes.share[0] == pytest.approx(81 / 91.01, abs=0.03) and axes.rows.shape == (4, 5)
    assert axes.reduce(rows).mean(0) == pytest.approx(0, abs=1e-5)
    same = principal_axes([np.ones((4, 5))])
    assert (same.colors(np.ones((4, 5))) == 0.5).all()
    assert (cosine(np.zeros(3), np.ones((2, 3))) == 0).all()


def test_neighbours_and_maps():
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0], [-1, 0.2]])
    order, near = neighbours(features, 2)
    assert order[:, 0].tolist() == [1, 0, 3, 2, 5, 4] and (np.diff(near, axis=1) <= 0).all()
    assert neighbours(features[:1], 2)[0].shape == (1, 0) and maps(features[:4], 0) == {}
    first, second = maps(features, 3)["tsne"], maps(features, 3)["tsne"]
    assert first.shape == (6, 2) and np.array_equal(first, second)


@pytest.mark.slow
def test_maps_of_the_optional_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "umap")
    pytest.importorskip("umap", reason="needs umap-learn")
    found = maps(np.random.default_rng(0).normal(size=(12, 5)), 3)
    assert set(found) == {"tsne", "umap"} and found["umap"].shape == (12, 2) and np.isfinite(found["umap"]).all()


def test_masks_and_errors(mini):
    points = shapes(1)[0]
    made = rebuild(mini, points, 4)
    assert [len(mask) for mask in made.masks] == [64, 32, 16] and made.masks[-1].sum() == 12
    distance = torch.cdist(points, torch.from_numpy(made.cloud))
    assert made.error == pytest.approx(distance.amin(1).numpy(), abs=1e-3)
    assert made.cloud_error == pytest.approx(distance.amin(0).numpy(), abs=1e-3)
    # Points of visible patches are kept as they are.
    assert made.cloud_error[~made.made].max() < 1e-6 and made.error[~made.hidden].max() < 1e-6
    assert (~made.made).sum() == (~made.hidden).sum() and made.made.any() and made.hidden.any()
    again, other = rebuild(mini, points, 4), rebuild(mini, points, 5)
    assert np.array_equal(again.masks[-1], made.masks[-1]) and not np.array_equal(other.masks[-1], made.masks[-1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, cloud in enumerate(shapes(3, 80).numpy()):
        colors = np.random.default_rng(number).integers(0, 256, cloud.shape)
        write_ply(f"in/{number}.ply", cloud, normals=cloud, colors=colors)
    np.save("in/plain.npy", shapes(3, 80).numpy()[0])
    return tmp_path


def test_files_of_own_clouds(folder):
    assert run("--ckpts", "mini-point-mae", "--input", "in", "--out", "a/b", "--query", "1,4") == 0
    with np.load("a/b/look.npz") as whole:
        assert whole["names"].tolist() == ["0.ply", "1.ply", "2.ply", "plain.npy"]
        assert whole["method"] == "point-mae" and len(whole["checkpoint_sha256"].item()) == 64
        # Colours and normals of a file change nothing.
        assert whole["features"][0] == pytest.approx(whole["features"][3], abs=1e-5) and whole["neighbours"][0, 0] == 3
    with np.load("a/b/clouds/001_1.ply.npz") as one:
        assert one["scale0_attention"].shape == (3, 3, 32) and one["scale0_query"] == 4
        assert one["scale0_attention"].sum(-1) == pytest.approx(1, abs=1e-5)
        assert one["scale0_similarity"][4] == pytest.approx(1, abs=1e-5)
        assert one["rebuilt_error"].shape == (80,) and one["scale0_masked"].sum() == 19
        colors = one["scale0_point_colors"]
    with np.load("a/b/clouds/000_0.ply.npz") as one:
        assert "scale0_attention" not in one
    import trimesh

    written = trimesh.load("a/b/clouds/001_1.ply_scale0.ply")
    assert np.abs(np.asarray(written.colors)[:, :3] / 255 - colors).max() < 1 / 255
    from PIL import Image

    for name in ("features", "similarity", "attention", "neighbours", "rebuilt"):
        with Image.open(f"a/b/{name}.png") as sheet:
            assert sheet.mode == "RGBA" and round(sheet.info["dpi"][0]) == 300
            alpha = np.asarray(sheet)[..., 3]
            assert alpha.min() == 0 and alpha.max() == 255 and 0.02 < (alpha > 0).mean() < 0.7
    assert run("--ckpts", "mini", "--input", "in", "--out", "a/b") == 2


def test_two_points_and_a_single_cloud(folder, caplog):
    np.save("two.npy", np.array([[0, 0, 0], [1.0, 0, 0]]))
    assert run("--ckpts", "mini", "--input", "two.npy", "--out", "two", "--no_sheets") == 0
    assert "two.npy: has 2 points, fewer than the 64" in caplog.text
    with np.load("two/look.npz") as whole, np.load("two/clouds/000_two.npy.npz") as one:
        assert np.isfinite(whole["features"]).all() and whole["neighbours"].shape == (1, 0)
        assert np.isfinite(one["scale2_point_colors"]).all()


@pytest.mark.parametrize("count", [3000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_more_points_than_the_model_takes(tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", np.random.default_rng(0).normal(size=(count, 3)) + 50)
    assert run("--ckpts", "mini-point-mae", "--input", "scan.npy", "--out", "out", "--no_sheets") == 0
    with np.load("out/clouds/000_scan.npy.npz") as one:
        assert one["points"].shape == (1024, 3)
    page = Path("out/look.html").read_text(encoding="utf-8")
    assert "all points" in page and f'<span class="count">{count:,}</span>' in page
    assert len(page) < 500_000 + 8.01 * count


def test_built_in_shapes_as_documented(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "look.md").read_text(encoding="utf-8")
    command = re.search("python -m tools.look (.*)", page)[1].split()
    assert run(*command, "--count", 2, "--no_sheets") == 0
    with np.load("seen/look.npz") as whole:
        assert len(whole["names"]) == 2 and all(whole["notes"])
        listed = {key for key in whole if key[:4] != "pca1" and key[:4] != "pca2"}
    with np.load(min(Path("seen/clouds").glob("*.npz"))) as cloud:
        listed |= {key for key in cloud if not key.startswith(("scale1", "scale2"))}
    assert not {key for key in listed if f"`{key}`" not in page}
    exec(re.search("```python\n(.*?)```", page, re.DOTALL)[1], {})


def test_bad_files(folder, capsys, caplog):
    Path("in/broken.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    Path("in/text.xyz").write_text("a b c\n")
    arguments = ("--ckpts", "mini-point-mae", "--input", "in", "--out", "out", "--no_sheets")
    assert run(*arguments) == 2
    assert "in/broken.ply" in capsys.readouterr().err and not Path("out").exists()
    assert run(*arguments, "--skip_bad") == 0
    assert "in/broken.ply" in caplog.text and "in/text.xyz" in caplog.text
    with np.load("out/look.npz") as whole:
        assert whole["names"].tolist() == ["0.ply", "1.ply", "2.ply", "plain.npy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--input", "empty"), "empty"),
        (("--input", "none.ply"), "none.ply"),
        (("--query", "1"), "must be CLOUD,PATCH"),
        (("--query", "0,99"), "patch 99 is none of"),
        (("--count", "0"), "must be at least 1"),
        (("--ckpts", "bare.pth"), "bare.pth: says nothing about its"),
        (("--up", "w"), "w"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(folder, capsys, change, message):
    Path("empty").mkdir()
    save_checkpoint("bare.pth", {"base_model": {"layer.weight": torch.zeros(2, 2)}})
    flags = {"--ckpts": "mini-point-mae", "--input": "in", "--out": "out"} | dict([change])
    assert run(*(part for pair in flags.items() for part in pair), "--no_sheets") == 2
    assert message in capsys.readouterr().err and not Path("out").exists()
