"""Inter-MAE from end to end: pictures in a step, frozen and fresh encoders, the report, resuming, and what is refused."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import main
import main_vis
from tests.commands import run_in_processes
from tools.guides.inter_mae import FreshBranch, PictureGuide
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "cfgs" / "debug" / "inter-mae.yaml"
FOLDER = Path("experiments/debug/inter-mae")
TINY = [
    "dataset.train.clouds=64", "dataset.svm.train.clouds=40", "dataset.svm.test.clouds=40", "total_bs=16", "log_every=2",
    "svm.random_weights=false", "svm.cross_validate=false", "scheduler.lag=0", "model.image_branch.size=16", "max_epoch=1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Run everything in one folder, with one cache; returns it."""
    path, before = tmp_path_factory.mktemp("inter"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M2AE_CACHE", os.environ.get("M2AE_CACHE", str(path / "cache")))
        os.chdir(path)
        yield path
        os.chdir(before)


def go(name, *flags, settings=()):
    sets = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
    return main.main(["--config", str(RECIPE), "--exp_name", name, "--device", "cpu", *flags, *sets])


def rows(name, kind="epoch"):
    lines = (FOLDER / name / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def trained(folder):
    """Return the name of a run whose image encoder trained with it."""
    assert go("trained") == 0
    return "trained"


def test_a_trained_encoder_is_in_the_model_and_its_optimizer(trained):
    checkpoint = read_checkpoint(FOLDER / trained / "ckpt-last.pth")
    image_side = [key for key in checkpoint["base_model"] if key.startswith("image_branch.")]
    assert any(".vit." in key for key in image_side) and any(".inv_head." in key for key in image_side)
    parameters = [key for key in checkpoint["base_model"] if "running" not in key and "num_batches" not in key]
    assert len(checkpoint["optimizer"]["state"]) == len(parameters)
    first, last = rows(trained)
    assert last["loss_pc"] < first["loss_pc"] and {"loss", "loss_fea"} <= set(last)
    assert last["loss"] == pytest.approx(last["loss_pc"] + last["loss_fea"])


def test_the_report_shows_pairs_similarities_and_retrieval(trained):
    page = (FOLDER / trained / "report.html").read_text()
    for text in ("Clouds and their pictures", "Similarity of images and clouds", "Retrieval"):
        assert f"<h2>{text}</h2>" in page
    assert "40 clouds of Synthetic (test), held out" in page
    assert "<td>image to cloud: top 1</td>" in page and "<td>cloud to other cloud: same class</td>" in page
    assert '<td class="num">2.5 %</td>' in page  # guessing, of 40
    assert page.count('src="data:image/png;base64,') == 6 + 6 + 1 + 6  # pairs, the matrix, queries of the gallery
    rows = json.loads(re.search(r'id="gallery-data">(.*?)</script>', page)[1])["items"][-12:]
    assert [len(row["clouds"]) for row in rows] == 6 * [5] + 6 * [
        6
    ]  # the nearest of a picture; a cloud and its nearest
    titles = re.findall(r"<h3>((?:picture|cloud): [^<]+)</h3>", page)
    assert [title.split(":")[0] for title in titles] == 6 * ["picture"] + 6 * ["cloud"]
    assert (FOLDER / trained / "retrieval.png").exists()


def test_resume_is_exact(trained):
    assert go("stopped", settings=["max_epoch=0", "scheduler.kwargs.epochs=3"]) == 0
    assert go("stopped", "--resume") == 0
    whole, resumed = (read_checkpoint(FOLDER / name / "ckpt-last.pth")["base_model"] for name in (trained, "stopped"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_frozen_encoder_stands_outside_and_sees_each_picture_once(monkeypatch, capsys):
    from models.images.branch import ImageBranch

    seen, original = [], ImageBranch.encode
    monkeypatch.setattr(ImageBranch, "encode", lambda self, images: seen.append(len(images)) or original(self, images))
    frozen = [
        "model.image_branch.mode=frozen",
        f"dataset.train.seed={int.from_bytes(os.urandom(3))}",
    ]  # no cache has these
    frozen += ["dataset.svm.test.seed=" + frozen[1].partition("=")[2]]
    assert go("frozen", settings=frozen) == 0
    assert sum(seen) == 64 * 4 + 40 * 4  # of the training set, and for the report of the test set
    assert "vit (random weights, not pre-trained), frozen, 256 pictures of 64 clouds" in capsys.readouterr().err
    weights = read_checkpoint(FOLDER / "frozen" / "ckpt-last.pth")["base_model"]
    assert {key.split(".")[1] for key in weights if key.startswith("image_branch.")} == {"inv_head"}
    seen.clear()
    assert go("frozen", "--overwrite", settings=frozen) == 0
    # The encoder is drawn anew from the same seed: its features are those of the cache.
    assert not seen
    again = read_checkpoint(FOLDER / "frozen" / "ckpt-last.pth")["base_model"]
    assert all(weights[key].equal(value) for key, value in again.items())


def test_the_published_branch_is_new_at_every_step(monkeypatch):
    drawn, original = [], FreshBranch.__call__
    monkeypatch.setattr(FreshBranch, "__call__", lambda *args: drawn.append(original(*args)) or drawn[-1])
    assert go("fresh", settings=["model.legacy=[fresh_image_branch]", "max_epoch=0"]) == 0
    assert all(features.shape == (16, 256) and not features.requires_grad for features in drawn[:4])
    assert not torch.allclose(drawn[0].mean(0), drawn[1].mean(0), atol=0.05)
    weights = read_checkpoint(FOLDER / "fresh" / "ckpt-last.pth")["base_model"]
    assert not any(key.startswith("image_branch.") for key in weights)
    once = [features.clone() for features in drawn[:4]]
    drawn.clear()
    assert go("fresh", "--overwrite", settings=["model.legacy=[fresh_image_branch]", "max_epoch=0"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(once, drawn, strict=False))


def test_steps_see_other_views_of_their_own_clouds(monkeypatch):
    given, original = [], PictureGuide.prepare

    def prepare(self, points, batch, **keywords):
        out = original(self, points, batch, **keywords)
        pool = [self.views.load(range(4 * row, 4 * row + 4)) for row in batch.indices.tolist()]
        for picture, own in zip(out["targets"][:, 0], pool, strict=True):
            given.append((batch.indices, [bool((picture == view).all()) for view in own]))
        return out

    monkeypatch.setattr(PictureGuide, "prepare", prepare)
    assert go("views", settings=["max_epoch=0"]) == 0
    assert len(given) == 64 and all(any(found) for _, found in given)
    assert {found.index(True) for _, found in given} == {0, 1, 2, 3}


def test_vis_and_svm_of_a_checkpoint(trained):
    """The image branch is of no use there; the validation set is taken, as published."""
    checkpoint = str(FOLDER / trained / "ckpt-best.pth")
    sets = ["--set", "dataset.val.NAME=Synthetic", "--set", "dataset.val.subset=test", "--set", "dataset.val.clouds=20"]
    flags = ["--config", str(RECIPE), "--device", "cpu", "--ckpts", checkpoint]
    assert main_vis.main(["--test", *flags, "--exp_name", "vis", "--count", "2", *sets]) == 0
    [made] = (FOLDER / "vis").glob("vis_*")
    assert {"000", "001"} == {entry.name[:3] for entry in made.iterdir() if entry.is_dir()}
    assert next(made.glob("000_test_*/gt.txt")).stat().st_size > 0
    assert go("svm", "--test_svm", "synthetic", "--ckpts", checkpoint) == 0


def test_fine_tuning_takes_the_encoder(trained, capsys):
    recipe = str(ROOT / "cfgs" / "fine-tuning" / "inter-mae" / "debug.yaml")
    sets = ["--set", "max_epoch=0", "--set", "dataset.train.clouds=64", "--set", "dataset.val.clouds=40"]
    flags = ["--config", recipe, "--finetune_model", "--exp_name", "tuned", "--device", "cpu"]
    assert main.main([*flags, "--ckpts", str(FOLDER / trained / "ckpt-last.pth"), *sets]) == 0
    assert "image_branch" in capsys.readouterr().err  # among what the report of loading says was ignored


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs gloo")
def test_two_processes_equal_one():
    """With shared batch statistics they see the same pictures and negatives: losses agree until rounding grows."""
    settings = ["dataset.train.clouds=160", "log_every=1", "model.transformer_config.drop_path_rate=0"]
    assert go("one", "--val_freq", "9", settings=settings) == 0
    sets = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
    flags = ["--config", str(RECIPE), "--exp_name", "two", "--device", "cpu", "--val_freq", "9", *sets]
    run_in_processes([*flags, "--sync_bn"])
    one, two = (rows(name, "step") for name in ("one", "two"))
    assert len(one) == len(two) == 20
    for part in ("loss_pc", "loss_fea"):
        assert [row[part] for row in two] == pytest.approx([row[part] for row in one], rel=1e-4)
        assert [row[part] for row in two[:5]] == pytest.approx([row[part] for row in one[:5]], rel=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        (["total_bs=1"], "total_bs: 1 leaves the contrastive loss without negatives; raise it to at least 2"),
        (["model.image_branch.n_imgs=9"], "n_imgs: 9 pictures a step are asked, but a shape has 4"),
        (["model.image_branch.weights=nowhere.pth"], "nowhere.pth does not exist; give a file of weights"),
        (["model.image_branch.encoder=resnet5"], "has no model 'resnet5'"),
        (["model.legacy=[fresh]"], "fresh is unknown here; choose from fresh_image_branch"),
    ],
)
def test_refused(settings, message, capsys):
    assert go("refused", settings=settings) == 2
    assert message in capsys.readouterr().err
