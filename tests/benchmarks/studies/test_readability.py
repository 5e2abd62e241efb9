"""Counting of files, functions and depth, on a small repository by hand."""

import importlib.util
import json

import pytest

from benchmarks.studies import readability


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_runs_is_counted_and_nothing_else(tmp_path):
    for folder in ("extensions", "models"):
        (tmp_path / folder).mkdir()
    (tmp_path / "extensions" / "op.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "models" / "model.py").write_text(
        "def outer(op):\n"
        "    return sorted([inner(op, x) for x in range(3)], key=lambda x: -x)\n\n"
        "def inner(op, x):\n"
        "    return op(x)\n\n"
        "def unused():\n"
        "    pass\n"
    )
    op, model = load(tmp_path / "extensions" / "op.py"), load(tmp_path / "models" / "model.py")
    trace = readability.Trace(tmp_path)
    trace.start()
    model.outer(op.twice)
    trace.stop()
    found = trace.result()
    assert found["depth"] == {"with ops": 3, "without ops": 2}
    assert found["without ops"] == {
        "files": 1, "functions": 3, "lines": 8, "names": ["models/model.py"], "files outside models": 0,
    }  # fmt: skip
    assert (found["ops"]["files"], found["ops"]["functions"]) == (1, 1)
    assert [file.rpartition("/")[2] for file in found["deepest"]] == ["model.py", "model.py"]


def test_lines_are_counted_by_package_and_kind(tmp_path):
    (tmp_path / "models" / "layers").mkdir(parents=True)
    (tmp_path / "models" / "a.py").write_text("1\n2\n")
    (tmp_path / "models" / "layers" / "b.py").write_text("1\n")
    (tmp_path / "models" / "data.bin").write_text("1\n")
    assert readability.count_lines(tmp_path) == {"models *.py": 3}


@pytest.mark.slow
def test_this_repository_is_counted(tmp_path, capsys):
    out = tmp_path / "found.json"
    out.write_text('{"before": {}}')
    readability.main(["--out", str(out)])
    traces = json.loads(out.read_text())["after"]["traces"]
    assert len(traces) == 3 and json.loads(out.read_text())["before"] == {}
    for trace in traces.values():
        assert trace["without ops"]["files"] > 3 and trace["ops"]["functions"] > 3
        assert trace["depth"]["with ops"] >= trace["depth"]["without ops"] > 2
    assert "benchmarks/studies/readability.py" not in traces["one update, Point_M2AE"]["without ops"]["names"]
    assert "| one update, Point_M2AE |" in capsys.readouterr().out
