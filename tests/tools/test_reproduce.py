"""Published numbers and ours: what each takes, run end to end on fixtures, the verdict."""

import json
from pathlib import Path

import pytest
import torch

import main as program
from datasets.preparing.fixtures import Size, write_fixture
from datasets.preparing.layouts import find
from models import build_model
from tools import reproduce
from tools.launch import load_recipe
from tools.published.numbers import TASKS, Number, numbers
from utils.config.merge import to_dict
from utils.files import save_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "max_epoch": 0,
    "total_bs": 20,
    "model.num_group": 8,
    "model.group_size": 8,
    "model.transformer_config.trans_dim": 24,
    "model.transformer_config.encoder_dims": 24,
    "model.transformer_config.depth": 1,
    "model.transformer_config.num_heads": 3,
    "model.transformer_config.decoder_depth": 1,
    "model.transformer_config.decoder_num_heads": 3,
    "model.transformer_config.embed_widths": "[8, 8, 16]",
}
FLAGS = ["--", "--device", "cpu", *(part for key, value in SMALL.items() for part in ("--set", f"{key}={value}"))]


@pytest.mark.parametrize("number", numbers(), ids=lambda number: number.name)
def test_recipes_and_data_of_every_number_are_known(number):
    assert (ROOT / number.recipe).is_file() and (ROOT / number.pre_training).is_file()
    assert 50 < number.published < 100 and all(find(name) for name in number.data(pre_trained=False))


@pytest.fixture
def inside(monkeypatch):
    """Run the main program in this process; returns the recipes that were run."""
    started = []

    def run(command):
        started.append(command[command.index("--config") + 1])
        return program.main(command[2:])

    monkeypatch.setattr(reproduce, "run_program", run)
    return started


def test_from_nothing_to_a_verdict_on_fixtures(tmp_path, monkeypatch, capsys, inside):
    monkeypatch.chdir(tmp_path)
    size = Size(clouds=40)
    for name in ("ShapeNet", "ModelNet40_SVM"):
        write_fixture(find(name)[0], tmp_path / "data", size)
    flags = ["point-mae/svm-modelnet40", "--data_root", str(tmp_path / "data"), "--any_count"]
    assert reproduce.main([*flags, *FLAGS]) == 0
    assert inside == ["cfgs/pre-training/point-mae.yaml", "cfgs/linear-svm/point-mae/modelnet40.yaml"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert (
        line.startswith("point-mae/svm-modelnet40  91.00") and "one run: no verdict" in line and "1 of 1 seeds" in line
    )
    kept = json.loads((tmp_path / "experiments" / "reproduce" / "point-mae" / "svm-modelnet40.json").read_text())
    assert kept["published"] == "91.00" and len(kept["values"]) == 1 and 0 <= kept["values"][0] <= 100
    inside.clear()
    assert reproduce.main([*flags, *FLAGS]) == 0 and not inside  # complete: nothing runs again
    assert reproduce.main([*flags, "--seeds", "0,1", "--dry_run", *FLAGS]) == 0
    commands = [text for text in capsys.readouterr().out.splitlines() if text.startswith("python main.py")]
    assert len(commands) == 2 and all("reproduce/seed1" in text for text in commands)
    assert reproduce.main([*flags, "--list", *FLAGS]) == 0
    assert "pre-trained, 1 of 1 seeds" in capsys.readouterr().out
    assert reproduce.main([*flags, "--ckpts", str(ROOT / "README.md"), *FLAGS]) == 2 and not inside
    message = capsys.readouterr().err
    assert "seed0/ckpt-last.pth, not from" in message and "README.md; give --ckpts of that run" in message


def test_nothing_runs_without_data(tmp_path, monkeypatch, capsys, inside):
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(["point-m2ae/scan-pb"]) == 2
    message = capsys.readouterr().err
    assert "nothing was run" in message and "Scan_PB" in message and "ShapeNet" in message and not inside
    assert not (tmp_path / "experiments").exists()


def test_list_shows_all_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(["--list", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(list(numbers())) and any("gm3d/scan-pb,88.30,,0" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which number"),
        (["point-mae/svm"], "did you mean"),
        (["point-mae/modelnet40", "--seeds", "0,x"], "expected whole numbers"),
    ],
)
def test_names_that_are_none(arguments, message, capsys):
    assert reproduce.main(arguments) == 2 and message in capsys.readouterr().err


def test_verdicts():
    plain, spread = Number("point-mae", "modelnet40", 93.0, None), Number("point-mae", "5way-10shot", 96.0, 2.0)
    assert reproduce.verdict(plain, []) == "" and reproduce.verdict(plain, [92.0]) == "one run: no verdict"
    assert reproduce.verdict(spread, [92.5]).startswith("within") and reproduce.verdict(spread, [91.5]).startswith(
        "outside"
    )
    assert reproduce.verdict(plain, [92.8, 93.0, 93.3]).startswith("agrees")
    assert reproduce.verdict(plain, [90.0, 90.1, 90.2]) == "lower than published"
    assert reproduce.verdict(plain, [95.0, 95.1, 95.2]) == "higher than published"


SHORT = ["max_epoch=1", "max_epoch_inclusive=true", "total_bs=8", "log_every=1"]
CLOUDS = [f"dataset.{entry}.N_POINTS=1024" for entry in ("train", "val", "test")]
PARTS = [f"dataset.{entry}.npoints=256" for entry in ("train", "val", "test")]
HEAD = ["model.prop_widths=[64, 32]", "model.head_widths=[32, 16]"]
# Number -> its data, clouds and points of the fixture, and what makes its run a small one.
FROM_WEIGHTS = {
    "modelnet40": ("ModelNet", (20, 1024), ["npoints=256", *CLOUDS]),
    "5way-10shot": ("ModelNetFewShot", (20, 0), []),
    "parts-instance": ("ShapeNetPart", (16, 512), [*PARTS, *HEAD, "total_bs=4"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", FROM_WEIGHTS)
def test_numbers_from_weights_of_our_own(tmp_path, monkeypatch, capsys, inside, task):
    """Fine-tuning, ten folds of few-shot classification and part segmentation, each to a number next to the published one."""
    monkeypatch.chdir(tmp_path)
    config = load_recipe(str(ROOT / "cfgs" / "debug" / "point-mae.yaml"))
    torch.manual_seed(0)
    save_checkpoint("own.pth", {"base_model": build_model(config.model).state_dict(), "config": to_dict(config)})
    name, size, settings = FROM_WEIGHTS[task]
    write_fixture(find(name)[0], tmp_path / "data", Size(*size))
    flags = [f"point-mae/{task}", "--ckpts", "own.pth", "--data_root", "data", "--any_count"]
    sets = ["--", "--device", "cpu", *(part for text in [*SHORT, *settings] for part in ("--set", text))]
    assert reproduce.main([*flags, *sets]) == 0, capsys.readouterr().err
    assert len(inside) == 1 and inside[0].endswith(f"{Path(TASKS[task].recipe).name}")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"point-mae/{task} ") and "1 of 1 seeds" in line
    kept = json.loads(Path("experiments", "reproduce", "point-mae", f"{task}.json").read_text())
    assert len(kept["values"]) == 1 and 0 <= kept["values"][0] <= 100 and kept["ours"] == f"{kept['values'][0]:.2f}"
    if task == "5way-10shot":
        [summary] = Path("experiments").rglob("summary.json")
        assert len(json.loads(summary.read_text())["runs"]) == 10
        assert "twice the published spread" in kept["verdict"]
    else:
        assert kept["verdict"] == "one run: no verdict"
    inside.clear()
    assert reproduce.main([*flags, *sets]) == 0 and not inside  # complete: nothing runs again
