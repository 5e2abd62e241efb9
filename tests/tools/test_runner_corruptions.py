"""`--test --corruptions`: the numbers are those of the classifier, tables and files say them, gaps and misfits are told."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from datasets import DATASETS, Batches, build_dataset
from models import MODELS, build_model, load_weights
from tools.corruptions import Robustness, read_reference, text_table
from tools.sampling import farthest
from utils.config.load import load_config
from utils.config.merge import to_dict
from utils.errors import UserError
from utils.files import save_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "cfgs" / "fine-tuning" / "point-mae" / "debug.yaml"
FOLDER = Path("experiments/fine-tuning/point-mae/debug")
CLOUDS = {"NAME": "Synthetic", "subset": "test", "clouds": 40, "npoints": 256}


def half_taught(config, points, labels):
    """Build a classifier of random weights whose last layer is solved for the first 24 clouds, so that some errors are left."""
    torch.manual_seed(3)
    model = build_model(config)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(points)  # the batch statistics become those of these clouds
        hidden = model.eval().cls_head_finetune[:-1](model.features(points[:24]))
        wanted = torch.eye(config.cls_dim)[labels[:24]]
        last = model.cls_head_finetune[-1]
        last.weight.copy_(torch.linalg.lstsq(hidden, wanted, driver="gelsd").solution.T)
        last.bias.zero_()
    return model


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a folder with a classifier and four files of corrupted clouds, one with too few points."""
    folder = tmp_path_factory.mktemp("corruptions")
    clouds = build_dataset(CLOUDS)
    points = next(Batches(clouds, batch_size=40, seed=0, drop_last=False).evaluation()).points.numpy()
    config = load_config(RECIPE, models=MODELS, datasets=DATASETS)
    config.class_names = clouds.class_names
    model = half_taught(config.model, torch.from_numpy(points), torch.from_numpy(clouds.labels))
    save_checkpoint(folder / "a.pth", {"base_model": model.state_dict(), "config": to_dict(config)})
    data = folder / "modelnet40_c"
    data.mkdir()
    noise = np.random.default_rng(0).normal(size=points.shape).astype(np.float32)
    files = {
        "uniform_1": points,
        "uniform_5": points + 0.3 * noise,
        "density_3": points[:, :150],
        "cutout_2": points[:, :9],
    }
    for name, values in files.items():
        np.save(data / f"data_{name}.npy", values)
    np.save(data / "label.npy", clouds.labels)
    (data / "shape_names.txt").write_text("\n".join(clouds.class_names))
    return folder, {name: torch.from_numpy(values) for name, values in files.items()}, clouds.labels


@pytest.fixture
def beside(prepared, monkeypatch):
    monkeypatch.chdir(prepared[0])
    return prepared


def arguments(name, *flags, data="modelnet40_c"):
    clean = ["--set", "dataset.test.clouds=40"]
    return ["--config", str(RECIPE), "--exp_name", name, "--device", "cpu", "--test", "--ckpts", "a.pth", *clean,
            "--corruptions", data, *flags]  # fmt: skip


def outputs(name):
    [folder] = (FOLDER / name).glob("corruptions_*")
    return folder, json.loads((folder / "corruptions.json").read_text())


def error(points, labels):
    """Return the error rate in percent of the classifier on clouds as they are shown to it."""
    model = build_model(load_config(RECIPE, models=MODELS, datasets=DATASETS).model).eval()
    load_weights(model, "a.pth")
    with torch.inference_mode():
        return 100 * (model(points).argmax(1).numpy() != labels).mean()


def test_every_corruption_is_judged(beside, capsys):
    _, files, labels = beside
    assert main.main(arguments("first")) == 0
    log = capsys.readouterr().err
    folder, saved = outputs("first")
    wanted = {
        ("cutout", "2"): error(farthest(files["cutout_2"], 9)[:, np.arange(16) % 9], labels),  # 16 groups of 16 points
        ("density", "3"): error(farthest(files["density_3"], 150), labels),
        ("uniform", "1"): error(farthest(files["uniform_1"], 200), labels),
        ("uniform", "5"): error(farthest(files["uniform_5"], 200), labels),
    }
    found = {(name, severity): value for name, row in saved["errors"].items() for severity, value in row.items()}
    assert found == pytest.approx(wanted) and len(set(wanted.values())) == 4, wanted
    clean = error(farthest(files["uniform_1"], 200), labels)
    results = saved["results"]
    assert results["error rate, clean"] == pytest.approx(clean) and results["accuracy"] == pytest.approx(100 - clean)
    uniform = (wanted["uniform", "1"] + wanted["uniform", "5"]) / 2
    density = (wanted["cutout", "2"] + wanted["density", "3"]) / 2
    assert results["error rate, mean over corruptions"] == pytest.approx((uniform + 2 * density) / 3)
    assert results["error rate, density family"] == pytest.approx(density)
    assert results["error rate, noise family"] == pytest.approx(uniform)
    assert "error rate, transformation family" not in results
    assert (
        len(saved["missing"]) == 71 and "lacks 71 of 75 files: data_occlusion_1.npy" in log and "Expected there" in log
    )
    with open(folder / "corruptions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["corruption"], row["points"], row["points_seen"]) for row in rows] == [
        ("density", "150", "150"), ("cutout", "9", "16"), ("uniform", "256", "200"), ("uniform", "256", "200"),
    ]  # fmt: skip
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Corruptions" in page and "<td>cutout</td>" in page and "Confusion" in page
    assert "corruption error" not in log and "mean corruption error" not in page


def test_a_run_is_the_reference_of_another(beside, capsys):
    if not (FOLDER / "first").exists():
        assert main.main(arguments("first")) == 0
    [folder] = (FOLDER / "first").glob("corruptions_*")
    assert main.main(arguments("second", "--reference", str(folder / "corruptions.json"))) == 0
    _, saved = outputs("second")
    assert saved["results"]["mean corruption error (100 = the reference)"] == pytest.approx(100)
    assert "corruption error" in capsys.readouterr().err


def test_mean_corruption_error_by_hand():
    errors = {"uniform": {1: 10.0, 5: 30.0}, "lidar": {2: 50.0}}
    outcome = Robustness(8.0, errors, {"uniform": {1: 40.0, 2: 1.0, 5: 10.0}, "lidar": {None: 25.0}})
    assert outcome.mean("uniform") == 20 and outcome.mean_error() == 35
    assert outcome.corruption_error("uniform") == pytest.approx(80) and outcome.corruption_error(
        "lidar"
    ) == pytest.approx(200)
    assert outcome.mean_corruption_error() == pytest.approx(140)
    head, first, second = outcome.rows()
    assert head == ["corruption", "1", "2", "3", "4", "5", "mean", "corruption error"]
    assert first == ["uniform", "10.00", "-", "-", "-", "30.00", "20.00", "80.00"]
    lines = text_table([head, first, second]).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[2].startswith("lidar  ") and lines[2].endswith("  200.00")
    plain = Robustness(8.0, errors)
    assert plain.mean_corruption_error() is None and plain.rows()[0][-1] == "mean"
    assert plain.results()["accuracy"] == 92 and len(plain.results()) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read .JSONDecodeError"),
        ("{}", "cannot be read .KeyError"),
        ('{"errors": [1]}', "cannot be read"),
        ('{"errors": {"uniform": [1, 2]}}', "cannot be read"),
        ('{"errors": {"uniform": {"1": 3}}}', "has no error rate of uniform at severity 5; add it"),
        ('{"errors": {"lidar": 3}}', "has no error rate of uniform at severity 1"),
        ('{"errors": {"uniform": 0}}', "the error rate of uniform is 0.0; it must be a percentage above 0"),
        ('{"errors": {"uniform": [1, 2, 3, 4, 101]}}', "is 101.0"),
        ('{"errors": {"uniform": NaN}}', "is nan"),
    ],
)
def test_bad_references(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_reference(path, [("uniform", 1), ("uniform", 5)])


def test_references_as_lists_and_means(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"errors": {"uniform": [1, 2, 3, 4, 5], "lidar": 7}}')
    read = read_reference(path, [("uniform", 5), ("lidar", 1)])
    assert read == {"uniform": {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}, "lidar": {None: 7}}


def test_bad_input(beside, tmp_path, capsys):
    def refused(argv, *words):
        assert main.main(argv) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: ") and all(word in message for word in words), message

    refused(arguments("b", data="none"), "none: folder does not exist", "label.npy")
    refused(arguments("b", data=str(tmp_path)), "data_occlusion_1.npy: file does not exist", "distortion_rbf_inv")
    refused(arguments("b", "--reference", "none.json"), "--reference none.json: cannot be read (UserError: none.json: does not exist")
    other = tmp_path / "other"
    shutil.copytree("modelnet40_c", other)
    (other / "shape_names.txt").unlink()
    refused(arguments("b", data=str(other)), "its 40 classes are not the 20 of a.pth", "'bookshelf' here")
    refused([*arguments("b"), "--set", "dataset.test=null", "--set", "dataset.val=null"], "dataset.test: is missing")
