"""Self-attention of narrow heads: by hand, against the reference and PyTorch, its gradients, padding, extremes, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from extensions import attention
from extensions.m2ae_ops import backend
from extensions.m2ae_ops.private import choice
from extensions.m2ae_ops.private.attention import by_kernel, by_pytorch
from extensions.m2ae_ops.reference import attention as reference

compiled = pytest.mark.skipif(not backend().startswith("compiled"), reason="of the compiled kernels")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# Tokens, real tokens of the two samples, heads, channels: whole and broken tiles of queries, blocks of keys and registers of channels.
SIZES = [
    (1, (1, 1), 1, 1),
    (7, (7, 3), 3, 5),
    (13, (13, 13), 2, 64),
    (40, (0, 33), 2, 16),
    (150, (150, 129), 1, 24),
    (300, (300, 257), 1, 16),
]


def operands(sizes, dtype, device="cpu"):
    """Return qkv (B, L, 3, H, D), counts (B,) and a gradient of the output."""
    L, counts, H, D = sizes
    generator = torch.Generator().manual_seed(L)
    qkv = torch.randn(2, L, 3, H, D, generator=generator) * 1.5
    return (
        qkv.to(device, dtype),
        torch.tensor(counts, device=device),
        torch.randn(2, L, H * D, generator=generator).to(device, dtype),
    )


def near(sizes, device="cpu"):
    """Return who attends to whom, (B, L, L): tokens nearby, of the second sample token 0 to nothing and the last to all."""
    L = sizes[0]
    place = torch.arange(L)
    attend = (place.unsqueeze(1) - place).abs().mul(5) < L + 3
    attend = torch.stack([attend, attend & (torch.rand(L, L, generator=torch.Generator().manual_seed(L)) < 0.7)])
    attend[1, 0], attend[1, -1] = False, True
    return attend.to(device)


def run(function, qkv, counts, grad, attend=None):
    """Return the output and the gradient of qkv."""
    leaf = qkv.detach().clone().requires_grad_()
    out = function(leaf, counts, attend)
    return out.detach(), torch.autograd.grad(out, leaf, grad)[0]


def usual(qkv, counts, pairs):
    """PyTorch's attention, keys beyond the counts forbidden, and pairs that do not attend."""
    B, L, _, H, D = qkv.shape
    attend = (torch.arange(L, device=qkv.device) < counts.unsqueeze(1)).view(B, 1, 1, L)
    attend = attend if pairs is None else attend & pairs.unsqueeze(1)
    out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), attn_mask=attend)
    return out.transpose(1, 2).reshape(B, L, H * D)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_the_reference(sizes, local, dtype, device):
    qkv, counts, grad = operands(sizes, dtype, device)
    attend = near(sizes, device) if local else None
    ours = run(by_kernel, qkv, counts, grad, attend)
    exact = run(lambda *given: reference.attention(*given)[0], qkv.double(), counts, grad.double(), attend)
    for found, expected in zip(ours, exact, strict=True):
        assert found.dtype == dtype and found.is_contiguous()
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("sizes", [size for size in SIZES if min(size[1])], ids=str)
@pytest.mark.parametrize("local", [False, True])
def test_agrees_with_pytorch(sizes, local):
    qkv, counts, grad = operands(sizes, torch.float64)
    real = (torch.arange(sizes[0]) < counts.unsqueeze(1)).unsqueeze(-1)
    attend = near(sizes) if local else None
    if local:  # PyTorch has NaN where a query attends to nothing
        attend = attend | torch.eye(sizes[0], dtype=torch.bool)
    ours, theirs = (run(form, qkv, counts, torch.where(real, grad, 0), attend) for form in (by_kernel, usual))
    torch.testing.assert_close(ours[0], torch.where(real, theirs[0], 0), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-11, atol=1e-11)


def test_by_hand():
    """Two tokens, one head of one channel: weights 1 / (1 + e^-x) and its rest, x the difference of the logits."""
    q, k, v = torch.tensor([[1.0, 2.0], [0.5, -0.5], [10.0, 20.0]])
    out = by_kernel(torch.stack([q, k, v], 1).view(1, 2, 3, 1, 1))
    first = 1 / (1 + torch.exp(-(q * 0.5 - q * -0.5)))
    torch.testing.assert_close(out.flatten(), first * 10 + (1 - first) * 20)


@pytest.mark.parametrize("form", [by_kernel, lambda *given: reference.attention(*given)[0]], ids=["op", "reference"])
def test_who_attends_to_whom(form):
    """All pairs attend as if nothing had been said; of one key, its value; of none, zero, and nothing flows back."""
    qkv, _, grad = operands((40, (40, 40), 2, 16), torch.float32)
    everyone = torch.ones(2, 40, 40, dtype=torch.bool)
    for found, expected in zip(run(form, qkv, None, grad, everyone), run(form, qkv, None, grad), strict=True):
        torch.testing.assert_close(found, expected)
    single = torch.zeros_like(everyone)
    single[:, 3, 17] = True
    out, to_qkv = run(form, qkv, None, grad, single)
    assert torch.equal(out[:, 3], qkv[:, 17, 2].flatten(1))
    torch.testing.assert_close(to_qkv[:, 17, 2].flatten(1), grad[:, 3])
    out[:, 3], to_qkv[:, 17, 2] = 0, 0
    assert not out.any() and to_qkv.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_is_neither_read_nor_differentiated(dtype):
    qkv, counts, grad = operands((40, (17, 0), 2, 16), dtype)
    alone = run(by_kernel, qkv[:1, :17], counts[:1], grad[:1, :17])
    qkv[0, 17:], grad[0, 17:], qkv[1] = float("nan"), float("inf"), float("nan")
    out, to_qkv = run(by_kernel, qkv, counts, grad)
    for found, expected in ((out, alone[0]), (to_qkv, alone[1])):
        torch.testing.assert_close(found[0, :17], expected[0])
        assert not found[0, 17:].any() and not found[1].any()
    beyond = torch.tensor([99, -5])  # as 40 and 0
    assert torch.equal(by_kernel(qkv.nan_to_num(), beyond)[0], by_kernel(qkv.nan_to_num())[0])
    assert not by_kernel(qkv, beyond)[1].any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_extreme_logits(dtype):
    """Logits far apart: the best key takes all, nothing overflows. A NaN stays in its row, or comes to all from a key."""
    qkv = torch.zeros(1, 20, 3, 1, 16, dtype=dtype)
    qkv[0, :, 0, 0, 0], qkv[0, 7, 1, 0, 0] = 1e4, 1e4
    qkv[0, :, 2, 0, 0] = torch.arange(20.0)
    out, to_qkv = run(by_kernel, qkv, None, torch.ones(1, 20, 16, dtype=dtype))
    assert (out[0, :, 0] == 7).all() and to_qkv.isfinite().all()
    qkv[0, 3, 0, 0, 5] = float("nan")
    assert by_kernel(qkv)[0].isnan().any(1).nonzero().flatten().tolist() == [3]
    qkv[0, 4, 1, 0, 5] = float("nan")
    assert by_kernel(qkv).isnan().all()


def test_exponentials_are_exact_to_the_last_places():
    """With a value of one at a single key, the output is its weight: logits over the whole range of exponents against float64."""
    gap = torch.cat([torch.linspace(0, 126 * 0.69, 2000), torch.rand(2000) * 4])
    qkv = torch.zeros(len(gap), 2, 3, 1, 1)
    qkv[:, 0, 0, 0, 0], qkv[:, 1, 1, 0, 0], qkv[:, 1, 2, 0, 0] = gap, -1.0, 1.0
    found, exact = by_kernel(qkv)[:, 0, 0].double(), torch.sigmoid(-gap.double())
    # The gap times log2(e) is rounded before it is an exponent.
    assert ((found - exact).abs() / exact < 2.0**-23 * (2 + gap.double() * 1.5)).all()


@compiled
def test_any_number_of_threads_gives_the_same_bits():
    qkv, counts, grad = operands((150, (150, 129), 3, 16), torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(by_kernel, qkv, counts, grad, near((150,))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("local", [False, True])
def test_other_instruction_sets_agree(lesser_processor, local):
    qkv, counts, grad = operands((150, (150, 129), 2, 24), torch.float32)
    given = by_kernel, qkv, counts, grad, near((150,)) if local else None
    for found, expected in zip(lesser_processor(run, *given), run(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device, traced):
    """By default the first form alone is traced, which takes seconds each time."""
    qkv, counts, grad = operands((9, (9, 4), 2, 5), torch.float32, device)
    ops, leaf = torch.ops.m2ae, qkv.clone().requires_grad_()
    attend = near((9,), device)
    for place, given in enumerate(((counts, None), (None, None), (None, attend))):
        out, stats = ops.attention(qkv, *given)
        checks = OPCHECKS if traced or place == 0 else OPCHECKS[:3]
        torch.library.opcheck(ops.attention, (leaf, *given), test_utils=checks)
        torch.library.opcheck(ops.attention_backward, (grad, leaf, *given, out, stats), test_utils=checks)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    qkv, counts, _ = operands((5, (5, 3), 2, 3), torch.float64, device)
    qkv.requires_grad_()
    for given in ((counts, None), (None, None), (counts, near((5,), device))):
        assert gradcheck(by_kernel, (qkv, *given)) and gradgradcheck(by_kernel, (qkv, *given))


def test_strided_and_empty():
    qkv, counts, _ = operands((13, (13, 13), 2, 64), torch.float32)
    assert torch.equal(by_kernel(qkv.flip(0).transpose(0, 1).contiguous().transpose(0, 1)), by_kernel(qkv.flip(0)))
    assert by_kernel(qkv[:0], counts[:0]).shape == (0, 13, 128) and by_kernel(qkv[:, :0]).shape == (2, 0, 128)
    assert by_kernel(torch.empty(2, 9, 3, 4, 16, device="meta")).shape == (2, 9, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("masks", ["none", "valid", "attend", "both"])
def test_every_form_is_the_same_function(masks, dtype, monkeypatch):
    """Our kernel, PyTorch's attention and the reference, on real tokens that attend to something."""
    qkv, counts, grad = operands((40, (40, 23), 2, 16), dtype)
    real = torch.arange(40) < counts.unsqueeze(1)
    valid = real if masks in ("valid", "both") else None
    attend = near((40,)) | torch.eye(40, dtype=torch.bool) if masks in ("attend", "both") else None
    if valid is not None:
        grad = grad * real.unsqueeze(-1)
    exact = run(
        lambda q, *_: reference.attention(q, counts if valid is not None else None, attend)[0],
        qkv.double(),
        None,
        grad.double(),
    )
    for serves in (True, False):
        monkeypatch.setattr(choice, "eager_cpu", lambda x, serves=serves: serves)
        out, to_qkv = run(lambda q, *_: attention(q, valid, attend), qkv, None, grad)
        assert out.dtype == dtype
        out = out if valid is None else out * real.unsqueeze(-1)
        for found, expected in ((out, exact[0]), (to_qkv, exact[1])):
            assert (found.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_the_kernel_serves_where_it_is_faster(monkeypatch):
    qkv = torch.zeros(1, 2, 3, 1, 4)
    assert choice.own_attention(qkv) == (backend() in choice.VECTORS)
    assert not choice.own_attention(qkv.half()) and not choice.own_attention(qkv.to("meta"))


@pytest.mark.parametrize("form", [attention, by_pytorch], ids=["own", "pytorch"])
def test_what_attends_to_nothing_is_finite(form):
    qkv, _, _ = operands((13, (13, 13), 2, 64), torch.float32)
    out, to_qkv = run(lambda q, *_: form(q, None, torch.zeros(2, 13, 13).bool()), qkv, None, torch.ones(2, 13, 128))
    assert out.isfinite().all() and to_qkv.isfinite().all()
    assert form(qkv, torch.zeros(2, 13).bool()).isfinite().all()


def test_errors():
    qkv = torch.zeros(2, 4, 3, 2, 8)
    with pytest.raises(
        ValueError, match=r"attention: qkv must have shape \(B, L, 3, H, D\) with D > 0, got \(2, 4, 48\)"
    ):
        attention(qkv.flatten(2))
    with pytest.raises(ValueError, match=r"attention: qkv must be float16, .* got torch\.int64"):
        attention(qkv.long())
    with pytest.raises(ValueError, match=r"attention: valid must be bool \(2, 4\), got torch.int64 \(2,\)"):
        attention(qkv, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"attention: valid must be bool \(2, 4\), got torch.bool \(3, 4\)"):
        attention(qkv, torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"attention: attend must be bool \(2, 4, 4\), got torch.float32 \(2, 4, 4\)"):
        attention(qkv, None, torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match=r"attention: attend must be bool \(2, 4, 4\), got torch.bool \(4, 4\)"):
        attention(qkv, None, torch.ones(4, 4, dtype=torch.bool))
