"""The comparison of patch embeddings, on the CPU: both sides agree, a wrong one is refused, traffic adds up."""

import pytest
import torch

from benchmarks import gpu_embed
from benchmarks.ops import embed_traffic
from benchmarks.ops.embed_traffic import Shape, fused_passes, megabytes, plain_passes
from benchmarks.ops.timing import wall_clock

POINTS, TOKENS = Shape("points", 6, 4, 3, 16, 24, 32, 12), Shape("tokens", 6, 4, 8, 16, 24, 32, 12)


@pytest.mark.parametrize("shape", [POINTS, TOKENS], ids=lambda shape: shape.title)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_sides_agree_and_are_timed(shape, precision):
    case = gpu_embed.Case(shape, 2, precision, "cpu")
    assert case.disagreement() is None
    row = {"title": shape.title, "precision": precision, "batch": 2}
    row |= gpu_embed.measure(case, wall_clock, rounds=1, budget_s=1)
    assert len(row["times_ms"]["plain"]) == 1 and f"{precision}, 2 x {shape.title}: " in gpu_embed.line(row)


def test_a_wrong_side_is_refused(monkeypatch):
    case, right = gpu_embed.Case(POINTS, 2, "bf16", "cpu"), gpu_embed.embedding.in_one_op
    monkeypatch.setattr(gpu_embed.embedding, "in_one_op", lambda *args: right(*args) * 1.2)
    found = gpu_embed._measured_or_refused(case, wall_clock, gpu_embed.parse([]))
    assert found["refused"].startswith("tokens: ")
    assert "not timed, tokens" in gpu_embed.line({"title": "x", "precision": "bf16", "batch": 2} | found)


def test_traffic_by_hand():
    """The largest shape: 8,192 members, of bf16; every pass over rows of 512 is 8.4 MB."""
    shape = embed_traffic.SHAPES[0]
    wide = [sum((part // 512) for p in passes for part in (p.read, p.written)) for passes in _both(shape)]
    assert wide == [22, 5]
    fused = fused_passes(shape, 2)
    assert sum(p.written for p in fused) == 512  # nothing else with a row for each member is written
    assert megabytes(shape, fused, 2) == pytest.approx(8192 * 2 * (5 * 512 + 6 * 6) / 1e6)
    assert embed_traffic.table().count("\n") == 1 + len(embed_traffic.SHAPES)


def _both(shape):
    return plain_passes(shape, 2), fused_passes(shape, 2)


def test_without_a_gpu(capsys):
    assert gpu_embed.main(["--traffic"]) == 0 and "Point-M2AE, finest scale" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert gpu_embed.main([]) == 2 and "finds no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_embed.main(["--precisions", "fp8"])
