"""Sweeps: the recipes of a folder in one table, checked before anything runs, resumed, and what must be an error."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import sweep_command, sweep_recipes
from tools.launch import load_recipe
from tools.sweep import main
from tools.sweep_recipes import read_rows
from utils.config.merge import to_dict
from utils.files import write_atomic

ROOT = Path(__file__).parent.parent.parent
ABLATIONS = sorted({path.parent for path in (ROOT / "cfgs" / "ablation").rglob("*.yaml")})
DEBUG = ROOT / "cfgs" / "debug" / "point-mae.yaml"
# Published results of the last epoch by recipe and seed, of the runs that the tests pretend to have done.
SCORES = {"base": (80.0, 81.0, 82.0), "deep": (81.0, 82.5, 82.0)}


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Two recipes in a folder of their own, and a main program that writes what a run leaves."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "base.yaml").write_text(f"_base_: {DEBUG}\n")
    (folder / "deep.yaml").write_text("_base_: base.yaml\nmodel:\n  transformer_config:\n    depth: 3\n")
    return folder


@pytest.fixture
def ran(monkeypatch):
    """Stand in for the main program; returns the (recipe, seed) of each run that was started."""
    started = []

    def run(command):
        flags = dict(zip(command[2::2], command[3::2], strict=False))
        recipe, seed = Path(flags["--config"]).stem, int(flags["--seed"])
        started.append((recipe, seed))
        if SCORES[recipe][seed] is None:
            return 2
        folder = Path("experiments", "rows", recipe, flags["--exp_name"])
        write_run(folder, flags["--config"], SCORES[recipe][seed], seed)
        return 0

    monkeypatch.setattr(sweep_command, "run_program", run)
    return started


def write_run(folder, recipe, score, seed):
    folder.mkdir(parents=True)
    config = to_dict(load_recipe(recipe, overrides=[f"seed={seed}"]))
    (folder / "config.yaml").write_text(json.dumps(config))
    rows = [{"kind": "epoch", "epoch": epoch, "loss": 1.0} for epoch in range(config["max_epoch"] + 1)]
    rows.append({"kind": "svm", "epoch": config["max_epoch"], "accuracy": score / 100})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(folder / "result.json", lambda file: file.write(b"{}"))


@pytest.mark.parametrize("folder", ABLATIONS, ids=lambda path: path.relative_to(ROOT / "cfgs").as_posix())
def test_every_ablation_changes_its_base(folder, monkeypatch):
    """That each builds is tested with all other recipes."""
    monkeypatch.setattr(sweep_recipes, "build_model", lambda config: None)
    flags = ["--scratch_model"] if folder.name == "fine-tuning" else []
    base, *rows = read_rows(folder, name="sweep", flags=flags)
    assert base.name == "base" and not base.changes and rows
    assert all(row.changes for row in rows) and len({row.changes for row in rows}) == len(rows)


def test_runs_in_order_and_prints_the_differences(recipes, ran, capsys):
    assert main([str(recipes), "--seeds", "0,1,2"]) == 0
    assert ran == [(recipe, seed) for recipe in ("base", "deep") for seed in range(3)]
    out = capsys.readouterr().out
    base, deep = out.splitlines()[2:4]
    assert "81.00 ± 1.00" in base and "model.transformer_config.depth=3" in deep
    assert (
        "81.83 ± 0.76" in deep and "+0.83" in deep and "-1.06 to +2.73" in deep
    )  # 0.8333 +- 4.3027 * 0.7638 / sqrt(3)
    for ending in ("md", "csv", "tex"):
        assert "81.83" in Path("experiments", "rows", f"sweep.{ending}").read_text()
    ran.clear()
    assert main([str(recipes), "--seeds", "0,1,2"]) == 0 and not ran  # complete: nothing runs again
    assert "0 of 6 runs are to be done" in capsys.readouterr().err


def test_goes_on_after_a_failed_run(recipes, ran, monkeypatch, capsys):
    monkeypatch.setitem(SCORES, "deep", (81.0, None, 82.0))
    assert main([str(recipes), "--seeds", "0,1,2"]) == 2
    out, err = capsys.readouterr()
    assert "1 runs failed: deep seed 1" in err and "not complete, and left out: deep" in out
    monkeypatch.setitem(SCORES, "deep", (81.0, 82.5, 82.0))
    ran.clear()
    assert main([str(recipes), "--seeds", "0,1,2"]) == 0 and ran == [("deep", 1)]


def test_a_stopped_sweep_stops(recipes, monkeypatch):
    monkeypatch.setattr(sweep_command, "_command", lambda row, seed: ["sh", "-c", "exit 143"])
    assert main([str(recipes)]) == 143


def test_no_differences_before_the_base_is_complete(recipes, ran, monkeypatch, capsys):
    monkeypatch.setitem(SCORES, "base", (80.0, None, 82.0))
    assert main([str(recipes), "--seeds", "0,1,2"]) == 2
    out = capsys.readouterr().out
    assert "81.83 ± 0.76" in out and "+" not in out and "no differences before base is complete" in out


def test_runs_from_other_weights_are_not_taken(recipes, ran, capsys):
    assert main([str(recipes)]) == 0
    ran.clear()
    for row in ("base", "deep"):
        path = Path("experiments", "rows", row, "sweep", "seed0", "result.json")
        path.write_text(json.dumps({"checkpoint": "a.pth"}))
    for name in ("a.pth", "b.pth"):
        Path(name).write_bytes(b"")
    flags = [str(recipes), "--", "--finetune_model", "--ckpts"]
    assert main([*flags, "b.pth"]) == 2 and not ran
    assert "base/sweep/seed0/result.json: its run started from a.pth, not from b.pth" in capsys.readouterr().err
    assert main([str(recipes)]) == 2 and "a.pth, not from random weights" in capsys.readouterr().err
    assert main([*flags, "a.pth"]) == 0 and not ran
    assert main([*flags, "none.pth"]) == 2 and "none.pth" in capsys.readouterr().err


def test_runs_of_another_configuration_are_not_taken(recipes, ran, capsys):
    assert main([str(recipes)]) == 0
    ran.clear()
    (recipes / "deep.yaml").write_text("_base_: base.yaml\nmodel:\n  transformer_config:\n    depth: 2\n")
    assert main([str(recipes)]) == 2 and not ran
    assert "rows/deep/sweep/seed0: was run with another configuration: model.transformer_config.depth 3, now 2" in (
        capsys.readouterr().err
    )
    assert main([str(recipes), "--name", "other"]) == 0 and ran == [("base", 0), ("deep", 0)]
    ran.clear()
    flags = ["--name", "other", "--dry_run", "--", "--set", "max_epoch=5"]  # longer: all go on
    assert main([str(recipes), *flags]) == 0 and "2 of 2 runs are to be done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("_base_: base.yaml\nmodel: {skip_connections: false}\n", [], "unknown key 'skip_connections'"),
        ("_base_: base.yaml\nmodel: {loss: none}\n", [], "'none' is unknown"),
        (f"_base_: {ROOT}/cfgs/fine-tuning/point-mae/debug.yaml\n", [], "add -- --finetune_model or --scratch_model"),
        ("_base_: base.yaml\n", ["--seeds", "0,0"], "each once"),
        ("_base_: base.yaml\n", ["--slurm_set", "gpus", "--slurm"], "expected KEY=VALUE"),
        ("_base_: base.yaml\n", ["--", "--seed", "1"], "tools.sweep sets it"),
        ("_base_: base.yaml\n", ["--", "--fold", "all"], "makes ten runs of one"),
    ],
)
def test_nothing_runs_where_a_recipe_or_a_flag_is_wrong(recipes, ran, capsys, recipe, arguments, message):
    (recipes / "wrong.yaml").write_text(recipe)
    assert main([str(recipes), *arguments]) == 2
    assert message in capsys.readouterr().err and not ran and not Path("experiments").exists()


def test_folders_without_recipes(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2 and "has no recipes" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2 and "is no folder" in capsys.readouterr().err


def test_what_follows_the_dashes_goes_to_the_main_program(recipes, capsys):
    assert main([str(recipes), "--seeds", "4", "--dry_run", "--", "--val_freq", "7", "--set", "total_bs=16"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("--exp_name sweep/seed4 --val_freq 7 --set total_bs=16 --seed 4") and "deep.yaml" in second


def test_slurm_submits_one_job_a_run(recipes, monkeypatch, capsys):
    submitted = []

    class Executor:
        def __init__(self, folder):
            submitted.append(folder.as_posix())

        def update_parameters(self, **settings):
            submitted.append(settings)

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, command):
            submitted.append(command)
            return SimpleNamespace(job_id=len(submitted))

    stand_in = SimpleNamespace(AutoExecutor=Executor, helpers=SimpleNamespace(CommandFunction=list))
    monkeypatch.setitem(sys.modules, "submitit", stand_in)
    assert main([str(recipes), "--seeds", "0,1", "--slurm", "--slurm_set", "timeout_min=60"]) == 0
    assert submitted[:2] == ["experiments/slurm/rows", {"name": "rows", "timeout_min": 60}] and len(submitted) == 6
    assert submitted[2][-2:] == ["--seed", "0"]
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([str(recipes), "--slurm"]) == 2 and "pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_ablations_take_a_real_step(tmp_path, monkeypatch, capsys):
    """Two rows of the mini ablation, end to end on the built-in set."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "rows"
    folder.mkdir()
    base = ROOT / "cfgs" / "debug" / "point-m2ae.yaml"
    (folder / "base.yaml").write_text(f"_base_: {base}\nmax_epoch: 0\n")
    (folder / "no-skip.yaml").write_text("_base_: base.yaml\nmodel:\n  skip_connections: false\n")
    assert main([str(folder), "--seeds", "0,1", "--", "--device", "cpu"]) == 0
    assert "no-skip" in capsys.readouterr().out
