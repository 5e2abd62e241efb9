"""The commands: results and tables, what is missing, and what is refused."""

import argparse
import copy
import json

import pytest
import torch

from benchmarks import gpu_ops
from benchmarks.ops import cpu, table


def results(status="timed"):
    peer = {"name": "quick (h=3)", "package": "torch_quickfps", "version": "1", "status": status}
    other = {"name": "fpsample", "package": "fpsample", "version": None, "status": "not installed"}
    target = {"against": "quick", "unit": "x", "must": 8, "aim": 12, "peer": None, "value": None, "met": "not measured"}
    if status == "timed":
        peer |= {"agreement": "indices equal", "ms": [20.0], "median_ms": 20.0}
        target |= {"peer": "quick (h=3)", "value": 10.0, "met": "must"}
    row = {
        "row": "fps",
        "title": "FPS",
        "ours_ms": [2.0],
        "ours_median_ms": 2.0,
        "peers": [peer, other],
        "targets": [target],
    }
    facts = {"processor": "a processor", "cores": 2, "python": "3", "ops": "compiled (avx512)"}
    runs = [{"threads": threads, "data": "uniform", "rows": [copy.deepcopy(row)]} for threads in (1, 2)]
    return {"machine": facts, "packages": {"torch": "2", "fpsample": None}, "runs": runs}


def test_the_table_by_hand():
    cell = "2 ms, 20 ms (quick (h=3)), **10.0x**"
    assert table.markdown(results()) == (
        "a processor, 2 cores; ops compiled (avx512); Python 3; torch 2. Medians; ratio = peer / ours.\n\n"
        "Data: uniform.\n\n"
        "| op | against | 1 thread: ours, peer, ratio | 2 threads: ours, peer, ratio | must | aim | reached |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        f"| FPS | quick | {cell} | {cell} | 8x | 12x | must / must |\n\n"
        "Not measured: fpsample: not installed.\n"
    )


def test_the_table_says_where_processor_time_was_taken():
    found = results()
    found["runs"][0]["clock"] = "processor"
    assert "| 1 thread (processor time): ours, peer, ratio | 2 threads: ours, peer, ratio |" in table.markdown(found)


def test_a_missing_peer_leaves_its_cell_open():
    text = table.markdown(results("not installed"))
    assert "| FPS | quick | not measured | not measured | 8x | 12x | not measured / not measured |" in text
    assert text.endswith("Not measured: torch-quickfps: not installed; fpsample: not installed.\n")


def test_a_table_replaces_what_a_document_holds(tmp_path):
    document, raw = tmp_path / "page.md", tmp_path / "ops.json"
    document.write_text("before\n<!-- table: cpu -->\nold\n<!-- end: cpu -->\nafter\n")
    table.write_results(raw, results())
    for _ in range(2):  # a second time changes nothing
        table.main([str(raw), "--into", str(document), "--mark", "cpu"])
        expected = f"before\n<!-- table: cpu -->\n\n{table.markdown(results())}\n<!-- end: cpu -->\nafter\n"
        assert document.read_text() == expected
    with pytest.raises(ValueError, match="has no lines <!-- table: gpu -->"):
        table.insert(document, "gpu", "")


TINY_RUN = ["--size", "tiny", "--quick", "--rows", "three-nn"]


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    def here(args, threads):
        return cpu.measure(argparse.Namespace(**vars(args) | {"threads": [threads]}))

    monkeypatch.setattr(cpu, "in_own_process", here)
    out = tmp_path / "new" / "ops.json"
    threads = torch.get_num_threads()
    assert cpu.main([*TINY_RUN, "--data", "uniform,uniform", "--threads", str(threads), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(run["threads"], [row["row"] for row in run["rows"]]) for run in found["runs"]] == [
        (threads, ["three-nn"])
    ] * 2
    assert len(found["runs"][0]["rows"][0]["ours_ms"]) == cpu.QUICK_ROUNDS
    assert found["packages"]["torch"] and found["machine"]["torch"] == torch.__version__
    shown = capsys.readouterr().out
    assert shown == table.markdown(found) and "three-NN, 2 x 96 in 24" in shown
    assert cpu.main(["--table", str(out)]) == 0 and capsys.readouterr().out == shown


@pytest.mark.slow
def test_each_number_of_threads_has_a_process_of_its_own(tmp_path):
    out = tmp_path / "ops.json"
    before = torch.get_num_threads()
    assert cpu.main([*TINY_RUN, "--threads", "1,2", "--out", str(out)]) == 0
    assert [run["threads"] for run in json.loads(out.read_text())["runs"]] == [1, 2]
    assert torch.get_num_threads() == before


def test_a_process_that_fails_ends_the_command(monkeypatch):
    args = cpu.parse([*TINY_RUN, "--threads", "1"])
    monkeypatch.setattr(cpu.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match="the run with 1 threads ended with status 1"):
        cpu.in_own_process(args, 1)


def test_a_peer_that_disagrees_is_named():
    wrong = results()
    wrong["runs"][1]["rows"][0]["peers"][0] |= {"status": "disagrees", "agreement": "only 3 % equal"}
    assert cpu.disagreements(results()) == []
    assert cpu.disagreements(wrong) == ["FPS, quick (h=3): only 3 % equal"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rows", "fps-2048,fsp"], "--rows fsp is unknown; choose from fps-2048, fps-8192"),
        (["--threads", "0"], "at least 1"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--data", "cubes"], "cubes is unknown; choose from uniform, surface"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cpu.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_without_a_gpu_the_gpu_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_ops.main([]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_gpu_command_writes_a_table(tmp_path):
    out = tmp_path / "gpu.json"
    assert gpu_ops.main(["--rows", "three-nn", "--repeats", "3", "--quick", "--out", str(out)]) == 0
    assert "GPU: ours, peer, ratio" in table.markdown(json.loads(out.read_text()))
