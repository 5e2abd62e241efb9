"""What the layer for published code costs: forms that compute the same, and a start-up without PyTorch below `run`."""

from benchmarks.steps import compat_cost


def test_forms_compute_the_same_and_rows_hold_medians(monkeypatch):
    answers = iter([{"startup_s": 9.0, "step_ms": 9.0, "loss": 0.5}, {"startup_s": 9.0}] * 4)
    monkeypatch.setattr(compat_cost, "FORMS", {"no layer": []})
    monkeypatch.setattr(compat_cost, "EMPTY", {"empty": []})
    monkeypatch.setattr(compat_cost, "start_once", lambda command, folder: next(answers))
    rows = compat_cost.measure(3, 1)
    assert [row["form"] for row in rows] == ["no layer", "empty"] and rows[0]["step_ms"] == [9.0] * 3
    assert rows[0]["median_step_ms"] == 9.0 and "step_ms" not in rows[1]


def test_a_process_below_run_starts_without_pytorch(tmp_path):
    command = compat_cost.EMPTY["empty process below run"]
    assert compat_cost.start_once(command, tmp_path)["startup_s"] < 1
