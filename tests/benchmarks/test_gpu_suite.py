"""The suite's last page: what was measured, what failed, and what a whole pre-training would take."""

import json
import re
from types import SimpleNamespace

import pytest

from benchmarks import gpu_suite
from benchmarks.steps.cases import METHODS
from utils.provenance import ROOT


@pytest.fixture
def folder(tmp_path):
    """The folder of a part of each kind in which everything passed, but for one slow case."""
    (tmp_path / "stages-check.tsv").write_text("build\t0\t71\t150\ntests-kernels\t0\t40\t80\n")
    (tmp_path / "tests-kernels.log").write_text("...\n200 passed in 39.10s\n")
    (tmp_path / "stages-speed.tsv").write_text("steps\t0\t200\t265\n")
    row = {"task": "pre-training", "method": "point-mae", "precision": "bf16", "batch": 128}
    timed = {"samples_per_second": 6992.0, "step_ms": 18.31, "memory_mb": 5000, "utilisation": 0.25}
    report = {"size": "published", "rows": [row | timed]}
    (tmp_path / "method-steps-cuda.json").write_text(json.dumps(report))
    return tmp_path


def verdict(folder, part="check"):
    status = gpu_suite.main([str(folder), "--part", part])
    return status, gpu_suite.table(gpu_suite.summarise(folder, part)).splitlines()[-1]


def test_a_part_that_passed(folder, capsys):
    assert verdict(folder) == (0, "check: PASSED")
    text = capsys.readouterr().out
    assert "build: status 0, 71 of 150 s" in text and "tests-kernels: 200 passed" in text
    assert json.loads((folder / "summary-check.json").read_text())["failures"] == []


@pytest.mark.parametrize(
    ("stages", "log", "said"),
    [
        ("build\t1\t3\t150\n", "200 passed", "build: status 1"),
        ("tests-kernels\t124\t80\t80\n", "...", "tests-kernels: took longer than 80 s"),
        ("tests-kernels\t0\t9\t80\n", "200 skipped in 2 s", "tests-kernels: no test has run (200 skipped in 2 s)"),
        ("tests-kernels\t2\t9\t80\n", "3 failed, 9 passed", "tests-kernels: status 2"),
        ("", "", "no stage has run"),
    ],
)
def test_a_part_that_did_not(folder, stages, log, said):
    (folder / "stages-check.tsv").write_text(stages)
    (folder / "tests-kernels.log").write_text(log + "\n")
    status, last = verdict(folder)
    assert status == 1 and last.startswith(f"check: FAILED: {said}")


def test_the_summary_tells_the_time_of_a_whole_run(folder, capsys):
    assert verdict(folder, "speed") == (0, "speed: PASSED")
    said = "pre-training, point-mae, bf16, batch 128: 6992 samples/s, 18.3 ms, 5000 MB, 25% of the matrix rate, 300 epochs in 30.0 min"
    assert said in capsys.readouterr().out


def test_a_case_that_took_too_long_is_a_failure(folder):
    path = folder / "method-steps-cuda.json"
    report = json.loads(path.read_text())
    report["rows"].append({**report["rows"][0], "error": "took longer than 33 s"})
    path.write_text(json.dumps(report))
    assert verdict(folder, "speed") == (1, "speed: FAILED: point-mae: took longer than 33 s")


@pytest.mark.parametrize("part", ["check", "speed"])
def test_stages_of_a_part_fit_eight_minutes(part):
    text = (ROOT / "benchmarks" / "gpu_suite.sh").read_text()
    check, speed = text.split("\nelse\n  steps=")
    body = {"check": check, "speed": speed}[part]
    for side in body.split("\n  else\n"):
        limits = [int(limit) for limit in re.findall(r"^ +(?:stage|tests) \S+ (\d+) ", side, re.MULTILINE)]
        assert len(limits) >= 3 and sum(limits) <= 480


@pytest.mark.parametrize(("stage", "cases"), [("steps", len(METHODS)), ("others", 2)])
def test_every_case_of_a_stage_may_take_its_limit(stage, cases):
    """Methods come from cfgs/debug: where one is added, the limits of the stage are to be divided anew."""
    speed = (ROOT / "benchmarks" / "gpu_suite.sh").read_text().split("\nelse\n  steps=")[1]
    limit, each = re.search(rf"stage {stage} (\d+) .* --limit (\d+)", speed.split("\n  else\n")[0]).groups()
    assert cases * int(each) <= int(limit)


def test_what_is_missing_is_said_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(gpu_suite.importlib.util, "find_spec", lambda name: None if name == "hypothesis" else name)
    assert gpu_suite.main(["--needs", "check", "--device", "cpu"]) == 1
    assert "lacks hypothesis; install it, or fill .carry/site from benchmarks/gpu_wheels.txt" in capsys.readouterr().err
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: False)

    def nothing(files):
        raise gpu_suite.BuildError("nvcc not found; install the CUDA toolkit or set CUDA_HOME")

    monkeypatch.setattr(gpu_suite, "find_cuda", nothing)
    assert gpu_suite.main(["--needs", "check", "--device", "cuda"]) == 1
    said = capsys.readouterr().err
    assert "finds no CUDA device" in said and "nvcc not found" in said


def test_a_toolkit_without_headers_is_missing_something(monkeypatch, tmp_path):
    toolkit = SimpleNamespace(nvcc="/opt/bin/nvcc", home=tmp_path)
    monkeypatch.setattr(gpu_suite, "find_cuda", lambda files: toolkit)
    monkeypatch.setattr(gpu_suite, "torch_files", lambda folder: SimpleNamespace(nvidia=()))
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: True)
    (line,) = gpu_suite.missing("cuda")
    assert "/opt/bin/nvcc comes without headers" in line and "set CUDA_HOME" in line


def test_what_300_epochs_take_is_said_of_pre_training_alone(folder):
    path = folder / "method-steps-cuda.json"
    path.write_text(path.read_text().replace("pre-training", "fine-tuning"))
    text = gpu_suite.table(gpu_suite.summarise(folder, "speed"))
    assert "fine-tuning, point-mae, bf16, batch 128: 6992 samples/s" in text and "300 epochs" not in text


def test_tiny_models_say_nothing_of_a_whole_run(folder):
    path = folder / "method-steps-cuda.json"
    path.write_text(path.read_text().replace("published", "debug"))
    assert "300 epochs" not in gpu_suite.table(gpu_suite.summarise(folder, "speed"))


def test_embeddings_stand_beside_the_plain_layers(folder):
    row = {"title": "Point-MAE", "precision": "bf16", "batch": 128}
    timed = {"ms": {"plain": 9.0, "fused": 3.0}, "ratio": 3.0, "memory_mb": {"plain": 900.0, "fused": 300.0}}
    (folder / "embed-gpu.json").write_text(json.dumps({"rows": [row | timed, row | {"refused": "tokens differ"}]}))
    text = gpu_suite.table(gpu_suite.summarise(folder, "speed"))
    assert "patch embedding, bf16, 128 x Point-MAE: 3.00 ms against 9.00, 3.00x; 300 against 900 MB" in text
    assert "patch embedding, bf16, 128 x Point-MAE: not timed, tokens differ" in text


def test_ops_stand_with_their_targets(folder):
    measured = json.loads((ROOT / "benchmarks" / "results" / "ops-cpu.json").read_text())
    (folder / "ops-cpu.json").write_text(json.dumps(measured))
    lines = gpu_suite.table(gpu_suite.summarise(folder, "speed")).splitlines()
    targets = sum(len(row["targets"]) for run in measured["runs"] for row in run["rows"])
    assert targets > 10 and sum("must" in line for line in lines) == targets
