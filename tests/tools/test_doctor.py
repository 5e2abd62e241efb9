"""The self-check: what it compares, what it says of a wrong kernel, and its status."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from extensions.m2ae_ops import backend
from extensions.m2ae_ops.building import cache_folder
from extensions.m2ae_ops.building.compile import compile_half
from extensions.m2ae_ops.building.recipe import recipe
from extensions.m2ae_ops.building.torch_files import torch_files
from extensions.m2ae_ops.private.library import CSRC
from tools import doctor, launch, self_test
from tools.confirmed import GRAPH, SIDE_STREAM, is_confirmed
from tools.doctor import NOTE, OK, WRONG, compare, difference

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def found(**changes):
    ops = {"knn": [torch.tensor([3, 1]), torch.tensor([0.5, 0.25])], "fps": [torch.tensor([0, 7])]}
    return {"ops": ops | changes, "methods": {"point-mae": [torch.tensor([1.0, 0.9])]}, "speed": {}}


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, -2.0], 4 / 5**0.5),
        ([1, 2], [1, 3], float("inf")),
        ([1.0], [1.0, 2.0], float("inf")),
        ([float("nan"), 1.0], [0.0, 1.0], float("inf")),
    ],
)
def test_differences(one, other, apart):
    assert difference([torch.tensor(one)], [torch.tensor(other)]) == pytest.approx(apart)


def test_an_op_that_differs_is_named():
    rows = list(compare("op", found(knn=[torch.tensor([3, 1]), torch.tensor([0.5, -0.25])]), found(), "ops", 1e-4))
    assert [(row.what, row.outcome) for row in rows] == [("op, knn", WRONG), ("op, fps", OK)]
    assert "more than 0.0001" in rows[0].detail


def test_a_process_that_fails_is_one_row():
    (row,) = compare("training", "RuntimeError: CUDA error: an illegal memory access", found(), "methods", 1e-3)
    assert row.outcome == WRONG and "illegal memory access" in row.detail
    (row,) = compare("training", found(), "took longer than 300 s", "methods", 1e-3)
    assert row.outcome == WRONG and row.detail == "reference: took longer than 300 s"


@pytest.mark.parametrize("broken", [False, True])
def test_the_status_and_the_table(broken, monkeypatch, capsys, tmp_path):
    kernels = found(fps=[torch.tensor([0, 6])]) if broken else found()
    monkeypatch.setattr(doctor, "run_probes", lambda *args: {"reference": found(), "kernels": kernels})
    assert doctor.main(["--device", "cpu", "--json", str(tmp_path / "rows.json")]) == (1 if broken else 0)
    said = capsys.readouterr().out
    assert f"CPU kernels: {backend()}" in said and "training, point-mae: differs by 0.0e+00" in said
    assert said.splitlines()[-1].endswith("1 WRONG: op, fps" if broken else "all right")
    assert (tmp_path / "rows.json").read_text().count(WRONG) == broken


def test_what_agrees_on_a_gpu_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path))
    off = found() | {"methods": {"point-mae": [torch.tensor([1.0, 0.5])]}}
    (row,) = doctor.confirmations({"kernels": found(), GRAPH: found(), SIDE_STREAM: off}, CPU)
    assert row.outcome == NOTE and row.detail == GRAPH
    assert is_confirmed(GRAPH, CPU) and not is_confirmed(SIDE_STREAM, CPU)


def test_some_methods_confirm_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path))
    cuda = torch.device("cuda")
    alike = {"reference": found(), "kernels": found(), GRAPH: found(), SIDE_STREAM: found(), "bf16": found()}
    monkeypatch.setattr(doctor, "run_probes", lambda *args: alike | {"bf16, fused kernels": found()})
    monkeypatch.setattr(doctor, "installation", lambda device: [])
    monkeypatch.setattr(doctor, "confirmations", lambda found, device: [doctor.Row(doctor.CONFIRMED, OK, "all")])
    last = [list(doctor._all_rows(cuda, chosen))[-1] for chosen in (["point-mae"], doctor.methods())]
    assert [(row.outcome, row.what) for row in last] == [(NOTE, doctor.CONFIRMED), (OK, doctor.CONFIRMED)]


def test_an_unknown_method_is_refused(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--methods", "point-mea"])
    assert "--methods: point-mea is unknown; choose from gm3d, " in capsys.readouterr().err


def test_what_cannot_be_captured_keeps_no_graph_from_being_confirmed(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path))
    reason = self_test.run_method("point-jepa", CPU, ["--cuda_graph", "on"])
    assert reason == "the blocks have another length in each step"
    plain, captured = found(), found()
    plain["methods"]["point-jepa"], captured["methods"]["point-jepa"] = [torch.tensor([1.0])], reason
    assert [row.outcome for row in compare(GRAPH, captured, plain, "methods", 1e-3)] == [OK, NOTE]
    (row,) = doctor.confirmations({"kernels": plain, GRAPH: captured, SIDE_STREAM: plain}, CPU)
    assert row.outcome == OK and is_confirmed(GRAPH, CPU)
    assert not any(
        self_test.why_never_captured(self_test.RECIPES / f"{m}.yaml") for m in ("pcp-mae", "gm3d", "i2p-mae")
    )


def test_every_public_op_and_every_method_is_tested():
    import extensions

    calls = {name.partition(",")[0] for name in self_test.op_calls()}
    assert set(extensions.__all__) - calls == {"near_first", "along_a_curve"}  # orders, which have no reference
    assert set(launch.methods()) - {"3detr"} == set(doctor.methods()) >= {"point-jepa", "pcp-mae"}
    probes = doctor.probes(torch.device("cuda"), ["point-mae"])
    assert set(probes) == {"reference", "kernels", GRAPH, SIDE_STREAM, "bf16", "bf16, fused kernels"}


@pytest.mark.slow
def test_a_kernel_with_a_flipped_sign_is_named(tmp_path):
    """A library of changed sources where the right one is looked for."""
    if not backend().startswith("compiled"):
        pytest.skip(f"no compiled library: {backend()}")
    sources, files = tmp_path / "csrc", torch_files(Path(torch.__file__).parent)
    shutil.copytree(CSRC, sources)
    path = sources / "cpu" / "pair_gradients_impl.h"
    text = path.read_text()
    assert text.count("chosen[other] -= flow;") == 1
    path.write_text(text.replace("chosen[other] -= flow;", "chosen[other] += flow;"))
    right, wrong = (recipe("cpu", folder, files, "", ()) for folder in (CSRC, sources))
    cache = tmp_path / "cache"
    compile_half(wrong, cache / f"ops-cpu-{right.key}" / right.library, cache_folder() / "ops-objects")
    command = [sys.executable, "-m", "tools.doctor", "--device", "cpu", "--methods", "point-mae"]
    environment = {**os.environ, "M2AE_CACHE": str(cache)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "WRONG op, chamfer_loss, cdl2, patches" in answer.stdout and "ok    op, fps" in answer.stdout


@pytest.mark.slow
def test_this_installation_agrees():
    answer = subprocess.run(
        [sys.executable, "-m", "tools.doctor", "--device", "cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "training, point-m2ae: differs by" in answer.stdout
