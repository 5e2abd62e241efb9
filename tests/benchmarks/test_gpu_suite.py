"""The suite's last page: what was measured, what failed, and what a whole pre-training would take."""

import json

import pytest

from benchmarks import gpu_suite
from utils.provenance import ROOT


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "stages.tsv").write_text("build\t0\t71\ntests\t1\t40\n")
    (tmp_path / "tests.log").write_text("...\n3 failed, 200 passed in 39.10s\n")
    row = {"task": "pre-training", "method": "point-mae", "precision": "bf16", "batch": 128}
    timed = {"samples_per_second": 6992.0, "step_ms": 18.31, "memory_mb": 5000, "utilisation": 0.25}
    report = {"size": "published", "rows": [row | timed, row | {"batch": 512, "error": "took longer than 60 s"}]}
    (tmp_path / "method-steps-cuda.json").write_text(json.dumps(report))
    return tmp_path


def test_the_summary_tells_time_and_failures(folder, capsys):
    gpu_suite.main([str(folder)])
    text = capsys.readouterr().out
    assert "build 71 s, tests 40 s (status 1)" in text and "3 failed, 200 passed" in text
    assert (
        "pre-training, point-mae, bf16, batch 128: 6992 samples/s, 18.3 ms, 5000 MB, 25% of the matrix rate, 300 epochs in 30.0 min"
        in text
    )
    assert "batch 512: took longer than 60 s" in text
    assert json.loads((folder / "summary.json").read_text())["steps"][0]["minutes_of_300_epochs"] == 30.0


def test_what_300_epochs_take_is_said_of_pre_training_alone(folder):
    path = folder / "method-steps-cuda.json"
    path.write_text(path.read_text().replace("pre-training", "fine-tuning"))
    text = gpu_suite.table(gpu_suite.summarise(folder))
    assert "fine-tuning, point-mae, bf16, batch 128: 6992 samples/s" in text and "300 epochs" not in text


def test_tiny_models_say_nothing_of_a_whole_run(folder):
    path = folder / "method-steps-cuda.json"
    path.write_text(path.read_text().replace("published", "debug"))
    assert "300 epochs" not in gpu_suite.table(gpu_suite.summarise(folder))


def test_embeddings_stand_beside_the_plain_layers(folder):
    row = {"title": "Point-MAE", "precision": "bf16", "batch": 128}
    timed = {"ms": {"plain": 9.0, "fused": 3.0}, "ratio": 3.0, "memory_mb": {"plain": 900.0, "fused": 300.0}}
    (folder / "embed-gpu.json").write_text(json.dumps({"rows": [row | timed, row | {"refused": "tokens differ"}]}))
    text = gpu_suite.table(gpu_suite.summarise(folder))
    assert "patch embedding, bf16, 128 x Point-MAE: 3.00 ms against 9.00, 3.00x; 300 against 900 MB" in text
    assert "patch embedding, bf16, 128 x Point-MAE: not timed, tokens differ" in text


def test_ops_stand_with_their_targets(folder):
    measured = json.loads((ROOT / "benchmarks" / "results" / "ops-cpu.json").read_text())
    (folder / "ops-cpu.json").write_text(json.dumps(measured))
    lines = gpu_suite.table(gpu_suite.summarise(folder)).splitlines()
    targets = sum(len(row["targets"]) for run in measured["runs"] for row in run["rows"])
    assert targets > 10 and sum("must" in line for line in lines) == targets
