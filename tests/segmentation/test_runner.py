"""Part segmentation from end to end: trained, resumed, judged, voted, own clouds; what it leaves behind; bad input."""

import contextlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from datasets import build_dataset
from datasets.formats.cloud_files import read_cloud
from datasets.formats.ply import write_ply
from models.segmenter import restricted_argmax
from segmentation import runner
from segmentation.evaluate import load_segmenter
from segmentation.predict import segment_cloud
from tests.commands import check_exact_resume, check_late_evaluation, pretrained, rows
from tools.launch import open_run
from utils.config.cli import parse_args
from utils.files import read_checkpoint

ROOT = Path(__file__).parents[2]
FOLDER = Path("experiments/segmentation/point-mae/debug")
SMALLER = ["dataset.train.clouds=64", "dataset.train.N_POINTS=256", "log_every=2"]
SMALLER += [f"dataset.{entry}.{key}" for entry in ("val", "test") for key in ("clouds=20", "N_POINTS=256")]


def arguments(name, *flags, method="point-mae", settings=SMALLER):
    sets = [part for setting in settings for part in ("--set", setting)]
    recipe = ROOT / "cfgs" / "segmentation" / method / "debug.yaml"
    return ["--config", str(recipe), "--exp_name", name, "--device", "cpu", *flags, *sets]


def voting(name, *flags):
    return arguments(name, "--finetune_model", "--ckpts", "pre.pth", "--vote", *flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with a checkpoint and one uninterrupted run called `whole`, with voting."""
    folder = tmp_path_factory.mktemp("segmentation")
    with contextlib.chdir(folder):
        pretrained("pre.pth")
        assert main.main(voting("whole")) == 0
    return folder


@pytest.fixture
def beside_whole(whole, monkeypatch):
    monkeypatch.chdir(whole)


def test_a_run_leaves_everything_behind(beside_whole):
    folder = FOLDER / "whole"
    names = ("ckpt-last.pth", "ckpt-best.pth", "config.yaml", "metrics.jsonl", "report.html", "gallery.png", "ious.csv")
    for name in names:
        assert (folder / name).stat().st_size > 0, name
    epochs, judged, votes = (rows(folder, kind) for kind in ("epoch", "parts", "parts_vote"))
    assert [row["epoch"] for row in epochs] == [row["epoch"] for row in judged] == [0, 1, 2]
    assert votes[-1]["epoch"] == 2 and votes[-1]["rounds"] == 1 and 0 < votes[-1]["mean"] < 1
    best = read_checkpoint(folder / "ckpt-best.pth")
    expected = max(
        judged, key=lambda row: (row["instance_miou"], row["epoch"])
    )  # the later one of two that are as good
    assert best["epoch"] == expected["epoch"] == best["best_metrics"]["epoch"]
    assert best["best_metrics"]["instance_miou"] == expected["instance_miou"]
    last = read_checkpoint(folder / "ckpt-last.pth")
    assert last["best_metrics"]["best_accuracy"] == max(row["accuracy"] for row in judged)
    assert last["config"]["part_names"][:2] == ["airplane fuselage", "airplane wing"]
    mug = [last["config"]["part_names"][part] for part in last["config"]["category_parts"]["mug"]]
    assert mug == [f"mug {part}" for part in ("wall", "floor", "handle", "saucer", "lid")]
    page = (folder / "report.html").read_text()
    for words in (
        "Mean IoU",
        "IoU by category and part",
        "Confusion of parts",
        "instance mIoU",
        "airplane",
        "fuselage",
    ):
        assert words in page, words
    table = (folder / "ious.csv").read_text().splitlines()
    assert table[0] == 'category,part,"mean IoU, %"' and len(table) == 1 + 20 + 89
    assert table[1].startswith("airplane,,") and table[2].startswith("airplane,fuselage,")


def test_coloured_clouds_name_their_parts(beside_whole):
    files = sorted((FOLDER / "whole" / "parts").glob("*.ply"))
    assert len(files) == 40 and files[0].name.endswith("_predicted.ply") and files[1].name.endswith("_true.ply")
    head, _, body = files[1].read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    names = [line for line in lines if line.startswith("comment label ")]
    assert names[0].startswith("comment label 0 = fuselage, color 76 120 168") and len(names) == 4
    kind = np.dtype(
        [(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")] + [("label", "<i4")]
    )
    vertices = np.frombuffer(body, kind)
    assert len(vertices) == 256 and set(np.unique(vertices["label"])) <= set(range(4))
    first = vertices[vertices["label"] == 0][0]
    assert (first["red"], first["green"], first["blue"]) == (76, 120, 168)
    assert read_cloud(files[1]).shape == (256, 3)


def test_the_encoder_comes_from_the_checkpoint(beside_whole, no_pictures, capsys):
    settings = [*SMALLER, "optimizer.kwargs.lr=0", "max_epoch=1"]
    assert main.main(arguments("start", "--finetune_model", "--ckpts", "pre.pth", settings=settings)) == 0
    message = capsys.readouterr().err
    assert "missing (bns1, bns2, convs1, convs2, convs3, label_conv, propagation_0)" in message
    before = read_checkpoint(Path("pre.pth"))["base_model"]
    after = read_checkpoint(FOLDER / "start" / "ckpt-last.pth")["base_model"]
    shared = [key for key in before if key.startswith("MAE_encoder.") and key.endswith(("weight", "bias"))]
    assert len(shared) > 20
    for key in shared:  # the rate is 1e-6 in the only epoch
        torch.testing.assert_close(before[key], after[key.removeprefix("MAE_encoder.")], atol=1e-4, rtol=0)


def test_resume_is_exact(beside_whole, no_pictures, monkeypatch):
    kinds = ("epoch", "parts", "parts_vote")
    check_exact_resume(monkeypatch, runner, voting, FOLDER, at_call=6, kinds=kinds)


def test_a_judgement_that_was_interrupted_is_made_up_for(beside_whole, no_pictures, monkeypatch):
    check_late_evaluation(monkeypatch, runner.PartEvaluator, voting, FOLDER, kinds=("parts", "parts_vote"))


def test_test_agrees_with_validation(beside_whole, capsys):
    command = arguments(
        "whole", "--test", "--vote", "--vote_rounds", "2", "--ckpts", str(FOLDER / "whole" / "ckpt-last.pth")
    )
    assert main.main(command) == 0
    log = capsys.readouterr().err
    last = rows(FOLDER / "whole", "parts")[-1]
    assert f"instance mIoU {100 * last['instance_miou']:.2f} %" in log and "over 2 rounds" in log
    folder = sorted((FOLDER / "whole").glob("test_*"))[0]
    with np.load(folder / "predictions.npz") as found:
        assert found["true"].shape == found["predicted"].shape == (20, 256)
        assert (found["true"] == found["predicted"]).mean() == pytest.approx(last["accuracy"])
    for name in ("report.html", "gallery.png", "ious.csv"):
        assert (folder / name).exists()


@pytest.mark.parametrize("given", ["folder", "file"])
def test_predict_names_every_point_of_own_clouds(beside_whole, tmp_path, given):
    rng = np.random.default_rng(0)
    (tmp_path / "own" / "mug").mkdir(parents=True)
    (tmp_path / "own" / "Guitar").mkdir()
    np.save(tmp_path / "own" / "mug" / "a.npy", rng.normal(size=(700, 3)) * 5 + 1e4)  # more points than the model takes
    write_ply(tmp_path / "own" / "Guitar" / "b.ply", rng.normal(size=(90, 3)))  # and fewer
    path = tmp_path / "own" if given == "folder" else tmp_path / "own" / "mug" / "a.npy"
    extra = () if given == "folder" else ("--category", "knife")
    command = arguments(
        f"predict-{given}", "--predict", str(path), "--ckpts", str(FOLDER / "whole" / "ckpt-best.pth"), *extra
    )
    assert main.main(command) == 0
    folder = next((FOLDER / f"predict-{given}").glob("predict_*"))
    names = read_checkpoint(FOLDER / "whole" / "ckpt-best.pth")["config"]["part_names"]
    expected = (
        {"mug/a.npy": ("mug", 700), "Guitar/b.ply": ("guitar", 90)} if given == "folder" else {"a.npy": ("knife", 700)}
    )
    for name, (category, count) in expected.items():
        lines = (folder / "parts" / f"{name.replace('/', '_')}.labels.txt").read_text().splitlines()
        labels = [int(line) for line in lines if not line.startswith("#")]
        assert len(labels) == count and all(names[label].startswith(f"{category} ") for label in labels)
        assert (folder / "parts" / f"{name.replace('/', '_')}_predicted.ply").stat().st_size > count * 12
    assert (folder / "report.html").exists() and (folder / "gallery.png").exists()
    results = json.loads((folder / "result.json").read_text())["results"]
    assert (results.pop("clouds"), results.pop("points")) == (
        len(expected),
        sum(count for _, count in expected.values()),
    )
    assert sum(results.values()) == pytest.approx(100) and all("share of all points" in name for name in results)


def test_predict_passes_over_bad_files_and_keeps_rows_and_coordinates(beside_whole, tmp_path, capsys):
    """A row without a point has no part, but keeps its line; map coordinates come back as they are."""
    (tmp_path / "mug").mkdir()
    points = np.random.default_rng(0).normal(size=(90, 3)) + np.array([4_543_210.0, 512_345.0, 101.0])
    np.save(tmp_path / "mug" / "a.npy", np.insert(points, 4, np.nan, axis=0))
    (tmp_path / "mug" / "b.npy").write_bytes(b"none")
    (tmp_path / "mug" / "README.txt").write_text("Mugs.\n")
    flags = ("--predict", str(tmp_path), "--ckpts", str(FOLDER / "whole" / "ckpt-best.pth"))
    refused(capsys, arguments("predict-bad", *flags), "b.npy", "--skip_bad")
    assert main.main(arguments("predict-skip", *flags, "--skip_bad", "--up", "z")) == 0
    assert "bad file: " in capsys.readouterr().err
    folder = next((FOLDER / "predict-skip").glob("predict_*")) / "parts"
    lines = (folder / "mug_a.npy.labels.txt").read_text().splitlines()
    labels = [int(line) for line in lines if not line.startswith("#")]
    assert len(labels) == 91 and labels[4] == -1 and labels.count(-1) == 1
    np.testing.assert_array_equal(read_cloud(folder / "mug_a.npy_predicted.ply"), points)


def test_predict_agrees_with_the_judge(beside_whole):
    """A whole cloud of the test set, given as an own file in the order in which it was judged, gets the same parts."""
    args = parse_args(arguments("again", "--test", "--ckpts", str(FOLDER / "whole" / "ckpt-last.pth")))
    run = open_run(args, torch.device("cpu"))
    model = load_segmenter(run).eval()
    clouds = build_dataset(run.config.dataset.test)
    points, category = np.asarray(clouds.points[3]), clouds.class_names[clouds.labels[3]]
    parts = segment_cloud(run, model, points, category, 256)
    order = np.random.default_rng(zlib.crc32(np.ascontiguousarray(points).tobytes())).permutation(len(points))
    owned = torch.zeros(1, 89, dtype=torch.bool)
    owned[0, clouds.category_parts[category]] = True
    with torch.no_grad():
        log_probs = model(torch.from_numpy(points[order])[None], torch.from_numpy(clouds.labels[3:4]))
    found = restricted_argmax(log_probs, owned)[0]
    # Centring a cloud that is centred already moves it by rounding.
    assert (torch.from_numpy(parts[order]) == found).float().mean() > 0.97


def test_double_step_is_legacy(beside_whole, no_pictures):
    """Twice as many updates of one gradient, the second one clipped; the default is one."""
    settings = [
        *SMALLER,
        "max_epoch=1",
        "optimizer.type=SGD",
        "scheduler.type=function",
        "augmentation=none",
        "grad_norm_clip=1e-9",
    ]
    flags = ("--scratch_model", "--val_freq", "9")
    for name, legacy in (("once", "[]"), ("twice", "[double_step]")):
        assert main.main(arguments(name, *flags, settings=[*settings, f"legacy={legacy}"])) == 0
    steps = [read_checkpoint(FOLDER / name / "ckpt-last.pth") for name in ("once", "twice")]
    # The clipped step moves nothing: with one step a batch the weights stay, with two the unclipped one moves them.
    first, second = (saved["base_model"]["convs1.weight"] for saved in steps)
    assert (first - second).abs().max() > 1e-4


def test_a_segmenter_learns(beside_whole, no_pictures):
    settings = [
        *SMALLER,
        "max_epoch=12",
        "scheduler.kwargs.epochs=16",
        "augmentation=none",
        "dataset.train.categories=[mug, table]",
    ]
    settings += [
        "dataset.val.categories=[mug, table]",
        "dataset.val.clouds=16",
        "dataset.train.rotate=false",
        "dataset.val.rotate=false",
    ]
    settings = [setting for setting in settings if setting != "dataset.val.clouds=20"]
    assert main.main(arguments("learn", "--scratch_model", "--val_freq", "11", settings=settings)) == 0
    judged, epochs = rows(FOLDER / "learn", "parts"), rows(FOLDER / "learn", "epoch")
    assert judged[-1]["instance_miou"] > judged[0]["instance_miou"] + 0.1 and epochs[-1]["loss"] < epochs[0]["loss"] - 1


def test_point_m2ae_trains_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrained("pre.pth", "point-m2ae")
    settings = [*SMALLER, "max_epoch=1", "model.embed_widths=[128, 256, 512]"]
    flags = ("--ckpts", "pre.pth", "--finetune_model")
    assert main.main(arguments("m2ae", *flags, method="point-m2ae", settings=settings)) == 0
    folder = Path("experiments/segmentation/point-m2ae/debug/m2ae")
    assert rows(folder, "parts")[0]["instance_miou"] > 0


def refused(capsys, argv, *words):
    assert main.main(argv) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and "Traceback" not in message
    for word in words:
        assert word in message, message


def test_bad_input(beside_whole, capsys, tmp_path):
    start, best = ("--finetune_model",), str(FOLDER / "whole" / "ckpt-best.pth")
    refused(
        capsys,
        arguments("a", *start, settings=["model.num_parts=7"]),
        "model.num_parts: 7",
        "needs 89",
        "--set model.num_parts=89",
    )
    refused(capsys, arguments("b", *start, settings=["model.num_categories=7"]), "model.num_categories: 7", "needs 20")
    refused(capsys, arguments("c", *start, settings=["dataset.val=null"]), "dataset.val: is missing")
    other = [*SMALLER, "dataset.val.categories=[mug, table]"]
    refused(capsys, arguments("d", *start, settings=other), "have other categories or parts")
    refused(capsys, arguments("e", *start, settings=["transfer=mlp3"]), "--transfer: is not for part segmentation")
    published = ["--config", "cfgs/segmentation/shapenet_part.yaml", *start, "--transfer", "linear"]
    refused(capsys, published, "--transfer: is not for part segmentation")
    pretrained("m2ae.pth", "point-m2ae")
    refused(capsys, arguments("f", *start, "--ckpts", "m2ae.pth"), "checkpoint of point-m2ae", "model of point-mae")
    refused(capsys, arguments("g", "--test", "--ckpts", "pre.pth"), "lacks", "part segmenter, first label_conv")
    weights = read_checkpoint(Path("pre.pth"))["base_model"]
    torch.save({"base_model": {**weights, "cls_head_finetune.0.weight": torch.zeros(2, 2)}}, "classifier.pth")
    refused(capsys, arguments("h", *start, "--ckpts", "classifier.pth"), "classifier.pth", "a fine-tuned classifier")
    swapped = [*SMALLER, "dataset.test.categories=[mug, table]"]
    refused(
        capsys,
        arguments("i", "--test", "--ckpts", best, settings=swapped),
        "its class_names are not those of",
        "ckpt-best.pth",
    )
    refused(capsys, arguments("whole", *start), "holds a run already")
    plain = "dataset.train={NAME: Folder, DATA_PATH: " + str(tmp_path) + "}"
    np.save(tmp_path / "x.npy", np.zeros((300, 3)) + np.arange(300)[:, None])
    np.save(tmp_path / "y.npy", np.zeros((300, 3)) + np.arange(300)[:, None])
    refused(capsys, arguments("j", *start, settings=[plain]), "has no part labels")


def test_bad_predictions(beside_whole, capsys, tmp_path):
    best = str(FOLDER / "whole" / "ckpt-best.pth")
    np.save(tmp_path / "x.npy", np.zeros((300, 3)))

    def predict(*flags):
        return arguments("p", "--predict", *flags, "--ckpts", best)

    refused(capsys, predict(str(tmp_path / "nothing")), "--predict", "does not exist")
    refused(capsys, predict(str(tmp_path)), "folder", "is no category of", "--category")
    refused(capsys, predict(str(tmp_path), "--category", "mugg"), "--category 'mugg'", "did you mean mug")
    refused(capsys, arguments("p", "--predict", str(tmp_path)), "--predict needs --ckpts")
    refused(capsys, arguments("p", "--category", "mug"), "goes with --predict")
    refused(capsys, [*predict(str(tmp_path)), "--test"], "contradict")
    debug = ["--config", str(ROOT / "cfgs" / "debug" / "point-mae.yaml"), "--exp_name", "x", "--device", "cpu"]
    refused(
        capsys,
        [*debug, "--predict", str(tmp_path), "--ckpts", "pre.pth"],
        "Point_MAE names no parts",
        "cfgs/segmentation/",
    )
