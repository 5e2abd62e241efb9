"""`tools.embed`: features and predictions of files, as the model and `--test` compute them; sizes, placing, bad input."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DATASETS, Batches, build_dataset
from models import MODELS, build_model, load_weights
from tools import embed
from tools.embedder import embed_files, open_embedder
from tools.sampling import farthest, points_needed, points_taken, repeat_points
from utils.config.load import load_config
from utils.config.merge import to_dict
from utils.files import read_checkpoint, save_checkpoint

ROOT = Path(__file__).parent.parent.parent
PRETRAINING = ROOT / "cfgs" / "debug" / "point-mae.yaml"
FINETUNING = ROOT / "cfgs" / "fine-tuning" / "point-mae" / "debug.yaml"
NAMES = [f"kind {label}" for label in range(20)]


def load(path, *overrides):
    return load_config(path, overrides=overrides, models=MODELS, datasets=DATASETS)


def write_checkpoint(path, config, *, own=True):
    """Write a model of random weights, with its configuration as ours have it, or without as published ones."""
    torch.manual_seed(3)
    weights = build_model(config.model).state_dict()
    save_checkpoint(path, {"base_model": weights, **({"config": to_dict(config)} if own else {})})
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    classifier = load(FINETUNING)
    classifier.class_names = NAMES
    return {
        "pre": write_checkpoint(folder / "pre.pth", load(PRETRAINING)),
        "published": write_checkpoint(folder / "published.pth", load(PRETRAINING), own=False),
        "classifier": write_checkpoint(folder / "classifier.pth", classifier),
    }


@pytest.fixture
def clouds(tmp_path, monkeypatch):
    """Run in a folder with six clouds of the built-in test set, in a folder tree, in files of two formats."""
    monkeypatch.chdir(tmp_path)
    made = build_dataset({"NAME": "Synthetic", "subset": "test", "clouds": 20, "npoints": 256})
    points = next(Batches(made, batch_size=6, seed=0, drop_last=False).evaluation()).points.numpy()
    for folder in ("in/sub", "in/.hidden"):
        Path(folder).mkdir(parents=True)
    for index, cloud in enumerate(points[:5]):
        np.save(f"in/{index}.npy", cloud)
    np.savetxt("in/sub/5.xyz", points[5])
    np.save("in/.hidden/6.npy", points[0])
    return points


def run(*arguments):
    return embed.main(["--device", "cpu", *map(str, arguments)])


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected_model(path, config):
    model = build_model(config.model).eval()
    load_weights(model, path)
    return model


def in_sphere(points):
    points = points.astype(np.float64) - points.mean(axis=-2, keepdims=True, dtype=np.float64)
    return torch.from_numpy(points / np.linalg.norm(points, axis=-1).max(-1)[..., None, None]).float()


def test_features_of_a_pretrained_model(checkpoints, clouds):
    assert run("--ckpts", checkpoints["pre"], "--input", "in") == 0
    with np.load("embeddings.npz") as saved:
        assert saved["names"].tolist() == ["0.npy", "1.npy", "2.npy", "3.npy", "4.npy", "sub/5.xyz"]
        assert saved["method"] == "point-mae" and saved["features"].dtype == np.float32
        assert saved["checkpoint_sha256"] == hashlib.sha256(checkpoints["pre"].read_bytes()).hexdigest()
        features = saved["features"]
    model = expected_model(checkpoints["pre"], load(PRETRAINING))
    with torch.inference_mode():
        wanted = model.encode(in_sphere(clouds)).numpy()
    np.testing.assert_allclose(features, wanted, atol=2e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-2 and not Path("embeddings.csv").exists()
    # The same encoder from a checkpoint that says nothing about itself, for one file.
    recipe = ("--config", PRETRAINING, "--out", "one.npz")
    assert run("--ckpts", checkpoints["published"], "--input", "in/sub/5.xyz", *recipe) == 0
    with np.load("one.npz") as saved:
        assert saved["names"].tolist() == ["5.xyz"]
        np.testing.assert_allclose(saved["features"], features[5:], atol=2e-5)


def test_the_method_of_a_published_checkpoint_is_found_by_its_keys(clouds, caplog):
    caplog.set_level("INFO", logger="m2ae")
    config = load(ROOT / "cfgs" / "pre-training" / "point-m2ae.yaml")
    path = write_checkpoint(Path("point-m2ae.pth"), config, own=False)
    cloud = np.random.default_rng(0).normal(size=(1, 600, 3)).astype(np.float32)
    np.save("cloud.npy", cloud[0])
    assert run("--ckpts", path, "--input", "cloud.npy") == 0
    assert "point-m2ae, by its keys; taking cfgs/pre-training/point-m2ae.yaml" in caplog.text
    with np.load("embeddings.npz") as saved, torch.inference_mode():
        wanted = expected_model(path, config).encode(in_sphere(cloud)).numpy()
        np.testing.assert_allclose(saved["features"], wanted, atol=2e-5)


def test_predictions_of_a_classifier(checkpoints, clouds):
    assert run("--ckpts", checkpoints["classifier"], "--input", "in", "--out", "new/a.npz", "--batch_size", "4") == 0
    model = expected_model(checkpoints["classifier"], load(FINETUNING))
    with torch.inference_mode():
        features = model.features(farthest(in_sphere(clouds), 200))  # npoints of the recipe
        probabilities = model.cls_head_finetune(features).softmax(1).numpy()
    with np.load("new/a.npz") as saved:
        np.testing.assert_allclose(saved["features"], features.numpy(), atol=2e-5)
    rows = table("new/a.csv")
    assert [row["file"] for row in rows][-1] == "sub/5.xyz"
    for row, values in zip(rows, probabilities, strict=True):
        order = np.argsort(-values)[:3]
        found = [int(row[key]) for key in ("class", "class_2", "class_3")]
        assert found == order.tolist() and [row[key] for key in ("name", "name_3")] == [
            NAMES[order[0]],
            NAMES[order[2]],
        ]
        np.testing.assert_allclose(
            [float(row[key]) for key in ("probability", "probability_2")], values[order[:2]], atol=1e-5
        )


def test_any_number_of_points(checkpoints, clouds, capsys):
    """Too many are thinned, few are taken as they are, too few for the groups are repeated, which is said once."""
    whole = in_sphere(clouds[0])
    Path("sizes").mkdir()
    for count in (8, 12, 40, 256):
        np.save(f"sizes/{count:03d}.npy", clouds[0][:count])
    np.save("sizes/large.npy", np.concatenate([clouds[0], clouds[1]]))
    (Path("sizes") / "box.off").write_text(
        "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n", encoding="utf-8"
    )
    assert run("--ckpts", checkpoints["pre"], "--input", "sizes") == 0
    log = capsys.readouterr().err
    assert (
        log.count("their points were repeated") == 1
        and "2 clouds have fewer points than the 16" in log
        and "008.npy" in log
    )
    model = expected_model(checkpoints["pre"], load(PRETRAINING))
    with np.load("embeddings.npz") as saved:
        features = dict(zip(saved["names"].tolist(), saved["features"], strict=True))
    eight = in_sphere(clouds[0][:8])
    both = in_sphere(np.concatenate([clouds[0], clouds[1]]))
    with torch.inference_mode():
        for name, points in {
            "256.npy": whole,
            "040.npy": in_sphere(clouds[0][:40]),
            "008.npy": torch.cat([eight, eight]),
            "large.npy": farthest(both[None], 256)[0],
        }.items():
            np.testing.assert_allclose(features[name], model.encode(points[None])[0].numpy(), atol=2e-5, err_msg=name)
    assert np.isfinite(features["box.off"]).all()


def test_batches_do_not_change_features(checkpoints, clouds):
    embedder = open_embedder(checkpoints["pre"])
    files = [Path("in") / f"{index}.npy" for index in range(5)]
    names = [file.name for file in files]
    one, four = (embed_files(embedder, files, names, batch_size=size) for size in (1, 4))
    np.testing.assert_allclose(one.features, four.features, atol=1e-5)
    assert one.probabilities is None and one.names == names and one.repeated == []


@pytest.mark.parametrize(
    ("train", "placing"),
    [
        (["dataset.train.normalize=false"], "sphere"),  # stored in the unit sphere
        (["dataset.train={NAME: ScanObjectNN}"], "stored"),
        (["dataset.train={NAME: ScanObjectNN, normalize: true}"], "sphere"),
        (["dataset.train={NAME: Folder}"], "sphere"),
        (["dataset.train={NAME: Folder, normalize: false}"], "centre"),
        (["dataset.train=null"], "sphere"),
    ],
)
def test_clouds_are_placed_as_those_of_the_training_set(checkpoints, train, placing):
    embedder = open_embedder(checkpoints["pre"], overrides=[*train, "npoints=64"])
    assert embedder.placing == placing
    points = np.random.default_rng(0).normal(size=(50, 3)) * 7 + 1e6
    wanted = {"stored": points, "centre": points - points.mean(0), "sphere": in_sphere(points).numpy()}[placing]
    np.testing.assert_allclose(embedder.fit(points).numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_placing_on_request(checkpoints, clouds):
    for index in range(5):
        np.save(f"in/{index}.npy", in_sphere(clouds[index]).numpy() * 3)
    features = {}
    for flag in ("--normalize", "--no_normalize"):
        assert run("--ckpts", checkpoints["pre"], "--input", "in/0.npy", flag, "--out", f"{flag[2:]}.npz") == 0
        with np.load(f"{flag[2:]}.npz") as saved:
            features[flag] = saved["features"]
    model = expected_model(checkpoints["pre"], load(PRETRAINING))
    with torch.inference_mode():
        for flag, scale in (("--normalize", 1), ("--no_normalize", 3)):
            wanted = model.encode(in_sphere(clouds[0])[None] * scale).numpy()
            np.testing.assert_allclose(features[flag], wanted, atol=1e-4, err_msg=flag)
    assert np.abs(features["--normalize"] - features["--no_normalize"]).max() > 1e-2


def test_a_classifier_is_shown_what_test_shows_it(checkpoints):
    """--test samples also where all points are asked, and that skips points at the origin; pre-training models see them."""
    points = np.random.default_rng(0).normal(size=(40, 3)) + 2
    points[7] = 0.01
    kept = {name: open_embedder(checkpoints[name], normalize=False).fit(points) for name in ("classifier", "pre")}
    assert torch.equal(kept["classifier"], farthest(torch.from_numpy(points).float()[None], 40)[0])
    assert not (kept["classifier"].norm(dim=1) < 0.1).any() and (kept["pre"][7].norm() < 0.1)


def test_how_many_points():
    assert points_taken(load(FINETUNING)) == 200 and points_taken(load(PRETRAINING)) == 256
    probe = ROOT / "cfgs" / "linear-svm" / "point-mae" / "modelnet40.yaml"
    assert points_taken(load(probe)) == 1024
    assert points_needed(load(probe).model) == 64
    assert points_needed(load(ROOT / "cfgs" / "pre-training" / "point-m2ae.yaml").model) == 512
    points = np.arange(6.0).reshape(2, 3)
    assert repeat_points(points, 5)[:, 0].tolist() == [0, 3, 0, 3, 0]
    assert torch.equal(repeat_points(torch.from_numpy(points)[None], 4)[0, 2:], torch.from_numpy(points))


def refused(capsys, *arguments, words):
    assert run(*arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and all(word in message for word in words), message


def test_bad_input(checkpoints, clouds, capsys):
    pre = ("--ckpts", checkpoints["pre"], "--input", "in")
    Path("empty").mkdir()
    Path("there.npz").touch()
    np.save("in/3.npy", np.full((300, 3), np.nan))
    refused(capsys, *pre, words=["3.npy", "none of its 300 points"])
    assert not Path("embeddings.npz").exists()
    refused(capsys, "--ckpts", checkpoints["pre"], "--input", "empty", words=["--input empty", "holds no cloud"])
    refused(capsys, *pre, "--out", "a.txt", words=["--out a.txt", ".npz"])
    refused(capsys, *pre, "--out", "there.npz", words=["there.npz: exists", "--overwrite"])
    refused(capsys, *pre, "--batch_size", 0, words=["--batch_size 0"])
    refused(capsys, *pre, "--set", "model.nam=3", words=["pre.pth: config", "unknown key 'nam'"])
    published = ("--ckpts", checkpoints["published"], "--input", "in")
    refused(capsys, *published, words=["cfgs/pre-training/point-mae.yaml was taken by its keys", "--config"])
    save_checkpoint("classifier.pth", {"base_model": read_checkpoint(checkpoints["classifier"])["base_model"]})
    classifier = ("--ckpts", "classifier.pth", "--input", "in")
    refused(capsys, *classifier, words=["its data set", "--config cfgs/fine-tuning/point-mae/modelnet40.yaml"])
    save_checkpoint("other.pth", {"base_model": {"a": torch.zeros(1)}})
    refused(
        capsys, "--ckpts", "other.pth", "--input", "in", words=["says nothing about its model", "--config cfgs/pre-"]
    )
    refused(capsys, *published, "--config", FINETUNING, words=["lacks", "tensors of the classifier PointTransformer"])
