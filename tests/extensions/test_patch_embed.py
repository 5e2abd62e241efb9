"""The patch embedding in every form: tokens, all gradients and running statistics against the layers as published."""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from extensions import patch_embed
from extensions.m2ae_ops.private import choice, embedding, members
from extensions.m2ae_ops.private.embedding import layers_of
from extensions.m2ae_ops.reference import layers as reference

public = importlib.import_module("extensions.m2ae_ops.embedding")
K = 16
channels = pytest.mark.parametrize("channels", [3, 6], ids=["points", "tokens"])
FORMS = {
    "own": members.train,
    "one op": embedding.in_one_op,
    "plain": embedding.plain,
    "encode": members.encode,
}


class Layers(nn.Module):
    """Convolutions and norms with random weights, all of which matter."""

    def __init__(self, channels: int, widths=(16, 32, 40, 24), dtype=torch.float64, seed: int = 0):
        super().__init__()
        A, W, C, D = widths
        sizes = ((channels, A), (A, W), (2 * W, C), (C, D))
        self.convolutions = nn.ModuleList(nn.Conv1d(*size, 1, dtype=dtype) for size in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, dtype=dtype) for width in (A, C))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def parts(self):
        return list(self.convolutions), list(self.norms)

    def run(self, form: str, rows: torch.Tensor, k: int = K) -> torch.Tensor:
        return FORMS[form](layers_of(*self.parts()), rows, k)

    def published(self, rows: torch.Tensor, k: int = K) -> torch.Tensor:
        """Conv1d over (G, C, K), the feature of the group repeated and joined."""
        (lift, widen, join, last), (first, second) = self.parts()
        local = widen(F.relu(first(lift(rows.unflatten(0, (-1, k)).transpose(1, 2)))))
        joined = torch.cat([local.amax(2, keepdim=True).expand_as(local), local], 1)
        return last(F.relu(second(join(joined)))).amax(2)


def drawn(channels: int, groups: int = 280, dtype=torch.float64, k: int = K):
    """Return rows (more than one block of them) and a gradient of the tokens."""
    generator = torch.Generator().manual_seed(channels)
    return (
        torch.randn(groups * k, channels, generator=generator).to(dtype),
        torch.randn(groups, 24, generator=generator).to(dtype),
    )


def gradients(tokens, layers, rows, flow):
    """Return gradients by name; those of biases that a norm takes away are rounding in the published form."""
    named = dict(layers.named_parameters()) | ({"members": rows} if rows.requires_grad else {})
    return dict(zip(named, torch.autograd.grad(tokens, list(named.values()), flow), strict=True))


@channels
@pytest.mark.parametrize("form", ["own", "one op", "plain"])
@pytest.mark.parametrize("moving", [False, True], ids=["fixed", "moving"])
def test_training_equals_the_published_layers(channels, form, moving):
    layers, (rows, flow) = Layers(channels), drawn(channels)
    rows.requires_grad_(moving)
    twin = copy.deepcopy(layers)
    tokens, expected = layers.run(form, rows), twin.published(rows)
    torch.testing.assert_close(tokens, expected, rtol=1e-9, atol=1e-9)
    found, exact = gradients(tokens, layers, rows, flow), gradients(expected, twin, rows, flow)
    for name, gradient in found.items():
        if name in ("convolutions.0.bias", "convolutions.1.bias", "convolutions.2.bias"):
            assert not gradient.any() and exact[name].norm() < 1e-6, name
        torch.testing.assert_close(gradient, exact[name], rtol=1e-7, atol=1e-7, msg=name)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layers.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)


@channels
@pytest.mark.parametrize("training", [True, False])
def test_the_reference_is_the_published_form(channels, training):
    layers, (rows, _) = Layers(channels).train(training), drawn(channels)
    found = reference.patch_embed(rows.view(20, 14, K, channels), *layers.parts())
    torch.testing.assert_close(found.flatten(0, 1), layers.published(rows), rtol=1e-9, atol=1e-9)
    ours = patch_embed(rows.view(20, 14, K, channels), *layers.parts())
    torch.testing.assert_close(ours, found, rtol=1e-9, atol=1e-9)


@channels
@pytest.mark.parametrize("form", ["encode", "one op", "plain"])
def test_evaluation_equals_the_published_layers(channels, form):
    layers, (rows, _) = Layers(channels), drawn(channels)
    layers.published(rows)  # running statistics that are not 0 and 1
    before = copy.deepcopy(layers.eval().state_dict())
    with torch.no_grad():
        torch.testing.assert_close(layers.run(form, rows), layers.published(rows), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())


@pytest.mark.parametrize("serves", [True, False], ids=["own", "plain"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@channels
def test_finite_differences(channels, training, serves, monkeypatch):
    """Of members, points too, and of all weights, whatever serves."""
    monkeypatch.setattr(choice, "eager_cpu", lambda x: serves)
    layers = Layers(channels, widths=(6, 5, 7, 4)).train(training)
    rows = torch.randn(2, 3, 4, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows.requires_grad_()
    kept = [
        p for name, p in layers.named_parameters() if not (training and name[-6:] in ("0.bias", "1.bias", "2.bias"))
    ]
    assert gradcheck(lambda rows, *kept: patch_embed(rows, *layers.parts()), (rows, *kept), fast_mode=True)
    fixed = rows.detach()
    assert gradcheck(lambda *kept: patch_embed(fixed, *layers.parts()), kept, fast_mode=True)


@channels
def test_statistics_of_several_processes(channels):
    """Another process with the same members changes nothing but how many there are."""
    layers, (rows, flow) = Layers(channels), drawn(channels)
    twin = copy.deepcopy(layers)
    for norm in twin.norms:
        norm.all_reduce = lambda tensor: 2 * tensor
    tokens, both = layers.run("own", rows), twin.run("own", rows)
    torch.testing.assert_close(both, tokens, rtol=1e-10, atol=1e-10)
    alone, together = gradients(tokens, layers, rows, flow), gradients(both, twin, rows, flow)
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-9, atol=1e-9, msg=name)
    count = len(rows)
    factor = (2 * count / (2 * count - 1)) / (count / (count - 1))
    torch.testing.assert_close(twin.norms[0].running_var - 0.9, (layers.norms[0].running_var - 0.9) * factor)


def test_what_serves(monkeypatch):
    """Kernels for a GPU not where evaluation needs gradients or statistics are those of several processes."""
    asked = []
    monkeypatch.setattr(embedding, "fused_ready", lambda *kind: asked.append(kind) or True)
    layers = Layers(3, dtype=torch.float32)

    class OnAGPU(torch.Tensor):
        is_cuda = True

    rows = torch.randn(40, 3).as_subclass(OnAGPU)
    has = lambda rows: embedding.has_kernels(layers_of(*layers.parts()), rows, 4)  # noqa: E731
    assert has(rows) and not has(torch.randn(40, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert has(rows)
    expected = (rows.device, torch.float32, (16, 32, 40, 24), True, 4)
    assert asked == [expected, (rows.device, torch.bfloat16, *expected[2:])]
    assert has(rows.clone().requires_grad_()) and asked[-1] == (*expected[:3], False, 4)  # points as other rows
    assert not has(rows[:1])
    layers.eval()
    assert not has(rows)
    with torch.no_grad():
        assert has(rows)
    layers.train().norms[1].all_reduce = torch.clone
    assert not has(rows)


def test_a_frozen_layer_needs_no_graph(monkeypatch):
    """In evaluation mode, as `--transfer` has it, its norms are folded into the weights as without gradients."""
    layers, rows = Layers(3).eval(), torch.randn(2, 4, 5, 3, dtype=torch.float64)
    calls, real = [], members.encode
    monkeypatch.setattr(members, "encode", lambda *given: calls.append(1) or real(*given))
    trained = patch_embed(rows, *layers.parts())
    assert trained.requires_grad and not calls
    frozen = patch_embed(rows, *layers.requires_grad_(False).parts())
    assert not frozen.requires_grad and calls
    torch.testing.assert_close(frozen, trained)
    assert patch_embed(rows.requires_grad_(), *layers.parts()).requires_grad and len(calls) == 1


def test_bfloat16_stays_near():
    """Rounding makes other members win a maximum now and then, and gradients jump with them, in any form: the mean of four layers."""
    rows, flow = drawn(3, groups=160, dtype=torch.float32)
    errors = []
    for seed in range(4):
        layers = Layers(3, dtype=torch.float32, seed=seed)
        kept = [p for name, p in layers.named_parameters() if name[-6:] not in ("0.bias", "1.bias", "2.bias")]

        def run(form, dtype, layers=layers, kept=kept):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                tokens = layers.run(form, rows)
            assert tokens.dtype == (dtype or torch.float32)
            return [tokens.detach().float(), *torch.autograd.grad(tokens, kept, flow.to(tokens.dtype))]

        exact, ours, plain = run("own", None), run("own", torch.bfloat16), run("plain", torch.bfloat16)
        assert all(value.dtype == torch.float32 for value in ours)
        apart = [[(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)] for found in (ours, plain)]
        errors.append(torch.tensor(apart))
    ours, plain = torch.stack(errors).mean(0)
    assert ours[0] < 0.01 and (ours < 0.25).all() and (ours < 1.2 * plain).all()


@pytest.mark.parametrize("training", [True, False])
def test_under_the_compiler(training):
    """One graph without breaks, the same tokens, gradients and statistics."""
    layers, (rows, flow) = Layers(6).train(training), drawn(6, groups=6)
    twin = copy.deepcopy(layers)
    compiled = torch.compile(lambda rows: patch_embed(rows, *layers.parts()), backend="aot_eager", fullgraph=True)
    rows = rows.view(6, K, 6).requires_grad_()
    tokens, expected = compiled(rows), patch_embed(rows, *twin.parts())
    torch.testing.assert_close(tokens, expected)
    found, exact = gradients(tokens, layers, rows, flow[:6]), gradients(expected, twin, rows, flow[:6])
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, exact[name], msg=name)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layers.state_dict()[name], value, msg=name)


@pytest.mark.gpu
@channels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu(channels, dtype, monkeypatch):
    """Fused against plain; in bfloat16 both are as far from float32."""
    monkeypatch.setenv("M2AE_FUSED", "on")
    layers = Layers(channels, widths=(128, 256, 512, 96), dtype=torch.float32).cuda()
    rows, flow = torch.randn(1031 * K, channels, device="cuda"), torch.randn(1031, 96, device="cuda")
    rows.requires_grad_()
    kept = [p for name, p in layers.named_parameters() if name[-6:] not in ("0.bias", "1.bias", "2.bias")]

    def run(form, dtype):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            tokens = form()
        return [tokens.float(), *torch.autograd.grad(tokens, [rows, *kept], flow.to(tokens.dtype))]

    own = lambda: patch_embed(rows.view(1031, K, channels), *layers.parts())  # noqa: E731
    plain = lambda: layers.run("plain", rows)  # noqa: E731
    assert embedding.has_kernels(layers_of(*layers.parts()), rows, K)
    exact, ours, usual = run(plain, torch.float32), run(own, dtype), run(plain, dtype)
    for value, found, other in zip(exact, ours, usual, strict=True):
        limit = max(1.5 * (other - value).norm(), 0.02 * value.norm())
        assert (found - value).norm() <= (1e-4 * value.norm() if dtype == torch.float32 else limit) + 1e-4


def test_errors():
    layers = Layers(3)
    with pytest.raises(ValueError, match=r"patch_embed: members must be \(..., K, P\) with K > 0, got \(4, 0, 3\)"):
        patch_embed(torch.zeros(4, 0, 3).double(), *layers.parts())
    with pytest.raises(ValueError, match=r"patch_embed: members must be float16, .* got torch.int64"):
        patch_embed(torch.zeros(4, 2, 3).long(), *layers.parts())
    with pytest.raises(ValueError, match="more than one row while training; raise the batch size"):
        patch_embed(torch.zeros(1, 1, 3).double(), *layers.parts())
    layers.norms[1].eval()
    with pytest.raises(ValueError, match="one norm trains and the other does not"):
        patch_embed(torch.zeros(4, 2, 3).double(), *layers.parts())
    tokens = patch_embed(torch.zeros(0, 4, 2, 3).double(), *layers.eval().parts())
    assert tokens.shape == (0, 4, 24) and public.patch_embed is patch_embed
