"""Parts of the models against plain forms of the same formulas."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from extensions.m2ae_ops.private import choice
from models import hierarchical as hierarchy
from models.layers import embed as embed_module
from models.layers.attention import Attention
from models.layers.embed import PatchEmbed
from models.layers.group import group_pyramid
from models.layers.norm import BatchNorm, PointwiseConv
from models.layers.packing import pack, plan_packing, unpack
from models.layers.pool import peak_and_mean
from models.layers.propagate import interpolate
from models.layers.transformer import Blocks, DropPath, drop_path_rates


class ConvLayout(nn.Module):
    """The mini-PointNet as published: Conv1d over (B*G, C, K), the group feature repeated and concatenated."""

    def __init__(self, embed: PatchEmbed):
        super().__init__()
        self.layers = [embed.first_conv, embed.second_conv]

    def _apply_layers(self, layers, x):
        for layer in layers:
            if isinstance(layer, nn.Conv1d):
                x = nn.functional.conv1d(x, layer.weight, layer.bias)
            elif isinstance(layer, nn.BatchNorm1d):
                x = nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
            else:
                x = nn.functional.relu(x)
        return x

    def forward(self, members):
        B, G, K, C = members.shape
        local = self._apply_layers(self.layers[0], members.view(B * G, K, C).transpose(1, 2))
        joined = torch.cat([local.amax(2, keepdim=True).expand(-1, -1, K), local], 1)
        return self._apply_layers(self.layers[1], joined).amax(2).view(B, G, -1)


@pytest.mark.parametrize("channels", [3, 6])  # points, whose first layer has a form of its own, and tokens
def test_factored_patch_embed_equals_the_published_layout(channels):
    torch.manual_seed(0)
    embed = PatchEmbed(channels, 24, widths=(16, 32, 40)).double().train()
    members = torch.randn(3, 5, 8, channels, dtype=torch.float64)
    plain = ConvLayout(embed)(members)
    torch.testing.assert_close(embed(members), plain, rtol=1e-9, atol=1e-9)
    names, weights = zip(*embed.named_parameters(), strict=True)
    # Biases before a batch norm have no gradient but rounding; everything else must agree.
    for name, ours, theirs in zip(
        names,
        torch.autograd.grad(embed(members).square().sum(), weights),
        torch.autograd.grad(plain.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize("channels", [3, 6])
def test_forms_of_the_patch_embed_agree(channels):
    """Fused and plain, while training and not: outputs, gradients, running statistics; members with a gradient too."""
    torch.manual_seed(0)
    embed = PatchEmbed(channels, 24, widths=(16, 32, 40)).double().train()
    for parameter in embed.parameters():
        nn.init.normal_(parameter, std=0.5)
    twin = copy.deepcopy(embed)
    members = torch.randn(40, 7, 16, channels, dtype=torch.float64)  # more than one piece of rows
    rows, K, flow = members.view(-1, channels), 16, torch.randn(280, 24, dtype=torch.float64)
    for source in (rows, rows.clone().requires_grad_()):
        inputs = [source] if source.requires_grad else []
        outs = [embed(source.view_as(members)).view(280, 24), twin._plain(source, K)]
        torch.testing.assert_close(*outs, rtol=1e-9, atol=1e-9)
        first, second = (
            torch.autograd.grad(out, [*module.parameters(), *inputs], flow)
            for out, module in zip(outs, (embed, twin), strict=True)
        )
        for ours, theirs in zip(first, second, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(embed.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(
            embed.eval()(members).view(280, 24), twin.eval()._plain(rows, K), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("channels", [3, 6])
def test_patch_embed_in_one_op(channels):
    """The form for a GPU, here in plain PyTorch: tokens, all gradients, running statistics, evaluation."""
    torch.manual_seed(0)
    embed = PatchEmbed(channels, 24, widths=(16, 32, 40)).double().train()
    for parameter in embed.parameters():
        nn.init.normal_(parameter, std=0.5)
    twin = copy.deepcopy(embed)
    rows, flow = torch.randn(280 * 7, channels, dtype=torch.float64), torch.randn(280, 24, dtype=torch.float64)
    rows.requires_grad_(channels != 3)
    outs = [embed._in_one_op(rows, 7, torch.float64), twin._plain(rows, 7)]
    torch.testing.assert_close(*outs, rtol=1e-9, atol=1e-9)
    inputs = [rows] if rows.requires_grad else []
    ours, theirs = (
        torch.autograd.grad(out, [*module.parameters(), *inputs], flow)
        for out, module in zip(outs, (embed, twin), strict=True)
    )
    for name, one, other in zip([*dict(embed.named_parameters()), "members"], ours, theirs, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7, msg=name)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(embed.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)
    with torch.no_grad():
        found = embed.eval()._in_one_op(rows, 7, torch.float64)
        torch.testing.assert_close(found, twin.eval()._plain(rows, 7), rtol=1e-9, atol=1e-9)


def test_patch_embed_asks_for_kernels_where_they_fit(monkeypatch):
    """Not for points that need a gradient, evaluation with gradients, or statistics of several processes."""
    asked = []
    monkeypatch.setattr(embed_module, "fused_ready", lambda *kind: asked.append(kind) or True)
    embed, rows = PatchEmbed(3, 24, widths=(16, 32, 40)), torch.randn(40, 3)
    assert embed._has_kernels(rows, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embed._has_kernels(rows, 4)
    expected = (rows.device, torch.float32, (16, 32, 40, 24), True, 4)
    assert asked == [expected, (rows.device, torch.bfloat16, *expected[2:])]
    assert not embed._has_kernels(rows.clone().requires_grad_(), 4) and not embed._has_kernels(rows[:1], 1)
    assert not embed.eval()._has_kernels(rows, 4)
    with torch.no_grad():
        assert embed._has_kernels(rows, 4)
    monkeypatch.setattr(BatchNorm, "shared", True)
    assert not embed.train()._has_kernels(rows, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_patch_embed_on_a_gpu(channels, dtype, monkeypatch):
    """Fused against plain; in bfloat16 both are as far from float32."""
    monkeypatch.setenv("M2AE_FUSED", "on")
    torch.manual_seed(0)
    embed = PatchEmbed(channels, 96).cuda().train()
    members, flow = torch.randn(1, 1031, 16, channels, device="cuda"), torch.randn(1031, 96, device="cuda")
    members.requires_grad_(channels != 3)
    rows, weights = (
        members.view(-1, channels),
        [p for name, p in embed.named_parameters() if not name.endswith("0.bias")],
    )

    def run(form, dtype):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            tokens = form().view(1031, 96)
        return [tokens.float(), *torch.autograd.grad(tokens, weights, flow.to(tokens.dtype))]

    assert embed._has_kernels(rows, 16)
    exact = run(lambda: embed._plain(rows, 16), torch.float32)
    ours, plain = run(lambda: embed(members), dtype), run(lambda: embed._plain(rows, 16), dtype)
    for value, own, usual in zip(exact, ours, plain, strict=True):
        limit = (
            1e-4 * value.norm() if dtype == torch.float32 else max(1.5 * (usual - value).norm(), 0.02 * value.norm())
        )
        assert (own - value).norm() <= limit + 1e-4


def test_patch_embed_in_bfloat16_stays_near():
    torch.manual_seed(0)
    embed = PatchEmbed(3, 24, widths=(16, 32, 40)).train()
    for parameter in embed.parameters():
        nn.init.normal_(parameter, std=0.5)
    members, flow = torch.randn(8, 20, 16, 3), torch.randn(8, 20, 24)
    weights = [p for name, p in embed.named_parameters() if not name.endswith(("0.bias", "first_conv.3.bias"))]

    def run(form, dtype):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            tokens = form()
        assert tokens.dtype == (dtype or torch.float32)
        grads = torch.autograd.grad(tokens, weights, flow.view_as(tokens).to(tokens.dtype))
        return [tokens.float().flatten(), *grads]

    exact = run(lambda: embed(members), None)
    ours = run(lambda: embed(members), torch.bfloat16)
    plain = run(lambda: embed._plain(members.view(-1, 3), 16), torch.bfloat16)
    # Rounding makes other members win a maximum now and then, and weights' gradients jump with them, in any form.
    for value, own, usual in zip(exact, ours, plain, strict=True):
        assert own.dtype == torch.float32
        assert (own - value).norm() < max(1.5 * (usual - value).norm(), 0.02 * value.norm()) and (
            own - value
        ).norm() < 0.2 * value.norm()


def test_attention_in_bfloat16_stays_near():
    torch.manual_seed(0)
    attention, x, valid = Attention(12, 3), torch.randn(2, 5, 12), (torch.arange(5) < 4).expand(2, 5)
    expected = attention(x, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(x, valid)
    assert found.dtype == torch.bfloat16 and (found - expected)[valid].norm() < 0.02 * expected[valid].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_of_real_tokens_is_the_same_in_every_form(dtype, monkeypatch):
    """Our kernel skips the padding, PyTorch's forbids it; output and all gradients of real tokens agree."""
    torch.manual_seed(0)
    layer, x, counts = Attention(96, 6), torch.randn(3, 40, 96), torch.tensor([40, 23, 1])
    real = torch.arange(40) < counts.unsqueeze(1)
    flow = torch.randn(3, 40, 96) * real.unsqueeze(-1)

    def run():
        tokens = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            out = layer(tokens, real)
        grads = torch.autograd.grad(out, (tokens, *layer.parameters()), flow.to(out.dtype))
        return (torch.where(real.unsqueeze(-1), out, 0), *grads)

    ours = run()
    monkeypatch.setattr(choice, "eager_cpu", lambda x: False)
    for found, expected in zip(ours, run(), strict=True):
        error = {torch.float32: 1e-6, torch.bfloat16: 6e-3}[dtype]
        assert found.dtype == expected.dtype and (found - expected).norm() <= error * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [40, 200])
def test_local_attention_in_our_kernel_equals_pytorchs(groups, dtype, monkeypatch):
    """With and without near tokens brought together; output and all gradients are the same, each token in its place."""
    torch.manual_seed(0)
    encoder = hierarchy.HierarchicalEncoder(
        dims=[24], depths=[2], num_heads=3, local_radius=[0.6], drop_path_rate=0.0, embed_widths=(8, 8, 8)
    )
    pyramid = group_pyramid(torch.randn(3, 300, 3), [groups], [8])
    flow = torch.randn(3, groups, 24)

    def run():
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            (tokens,) = encoder(pyramid).tokens
        parameters = [p for name, p in encoder.named_parameters() if not name.startswith("encoder_norms")]
        return tokens.detach(), *torch.autograd.grad(tokens, parameters, flow.to(tokens.dtype))

    ours = run()
    monkeypatch.setattr(choice, "eager_cpu", lambda x: False)
    error = {torch.float32: 2e-6, torch.bfloat16: 4e-2}[dtype]
    for found, expected in zip(ours, run(), strict=True):
        assert (found - expected).norm() <= error * expected.norm() + 1e-9


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    attention = Attention(12, 3)
    x, attend = torch.randn(2, 5, 12), (torch.rand(2, 5, 5) < 0.6) | torch.eye(5).bool()
    q, k, v = attention.qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    logits = (q @ k.transpose(-1, -2) * 4**-0.5).masked_fill(~attend.unsqueeze(1), -torch.inf)
    expected = attention.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x, attend=attend), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="12 channels do not divide by 5 heads"):
        Attention(12, 5)


def test_position_is_added_before_every_block():
    torch.manual_seed(0)
    blocks = Blocks(8, 2, drop_paths=[0.0, 0.0]).eval()
    x, position = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    first, second = blocks.blocks
    torch.testing.assert_close(blocks(x, position), second(first(x + position) + position))


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    assert drop_path_rates(0.1, 3) == pytest.approx([0.0, 0.05, 0.1])
    drop = DropPath(0.25).train()
    out = drop(torch.ones(40000, 1))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(drop.eval()(out), out)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**31))
def test_packing_round_trip(batch, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(batch, groups, generator=generator) < 0.5
    values = torch.randn(batch, groups, 3, generator=generator)
    packing = plan_packing(visible)
    packed = pack(values, packing)
    assert packed.shape[1] == int(visible.sum(1).max())
    assert torch.equal(packed[packing.valid], values[visible])
    assert not packed[~packing.valid].any()
    if packed.shape[1]:
        background = torch.randn(batch, groups, 3, generator=generator)
        assert torch.equal(unpack(packed, packing, background), torch.where(visible[..., None], values, background))


def test_pyramid_is_nested_and_relative():
    points = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    pyramid = group_pyramid(points, [64, 16], [8, 4])
    assert torch.equal(pyramid.centers[1], pyramid.centers[0][:, :16])  # farthest point samples are nested
    assert torch.equal(pyramid.neighborhoods[0][:, :, 0], torch.zeros(2, 64, 3))  # a centre is its own first neighbour
    with pytest.raises(ValueError, match="scale 1 wants 65 groups of 4 from 64 centres of scale 0"):
        group_pyramid(points, [64, 65], [8, 4])
    with pytest.raises(ValueError, match="points must be"):
        group_pyramid(points[..., :2], [64, 16], [8, 4])


def test_interpolation_reproduces_coincident_points_and_constants():
    generator = torch.Generator().manual_seed(0)
    coarse, values = torch.randn(2, 9, 3, generator=generator), torch.randn(2, 9, 5, generator=generator)
    torch.testing.assert_close(interpolate(coarse, coarse, values), values, rtol=1e-4, atol=1e-4)
    fine = torch.randn(2, 30, 3, generator=generator)
    torch.testing.assert_close(interpolate(fine, coarse, torch.ones(2, 9, 1)), torch.ones(2, 30, 1))


def test_batch_norm_is_exact_over_many_rows():
    """PyTorch's channels-last statistics on the CPU miss mean and gradients by 1e-5; ours must not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 4, generator=generator).mul_(0.5).add_(1.0).requires_grad_()
    weight = torch.randn(200_000, 4, generator=generator)
    norm, exact = BatchNorm(4, momentum=1.0), nn.BatchNorm1d(4, momentum=1.0).double()
    (norm(x) * weight).sum().backward()
    double = x.detach().double().requires_grad_()
    (exact(double) * weight.double()).sum().backward()
    torch.testing.assert_close(norm.running_mean.double(), exact.running_mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=0, atol=1e-7)
    torch.testing.assert_close(x.grad.double(), double.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.weight.grad.double(), exact.weight.grad, rtol=1e-6, atol=1e-4)


def test_bias_before_batch_norm_has_no_gradient_noise():
    torch.manual_seed(0)
    layers = nn.Sequential(PointwiseConv(3, 5, before_norm=True), BatchNorm(5))
    layers(torch.randn(40, 3)).square().sum().backward()
    assert not layers[0].bias.grad.any() and layers[0].weight.grad.any()
    layers.eval()(torch.randn(40, 3)).square().sum().backward()
    assert layers[0].bias.grad.any()


def test_batch_norm_equals_pytorch():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(6).double(), nn.BatchNorm1d(6).double()
    x = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    weight = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad((y * weight).sum(), x)[0] for y in (a, b)))
    assert torch.autograd.gradcheck(lambda v: ours(v), x[:8].detach().requires_grad_())
    with pytest.raises(ValueError, match="more than one row"):
        ours(x[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norm_and_relu_in_one_are_both_in_turn(dtype):
    """Output, gradients, running statistics; in bf16 rows stay what they are, where the two in turn give fp32."""
    torch.manual_seed(0)
    norm = BatchNorm(24, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    twin, x, flow = copy.deepcopy(norm), (torch.randn(500, 24) * 3 + 1).to(dtype), torch.randn(500, 24).to(dtype)
    results = []
    for module, form in ((norm, norm.relu), (twin, lambda x: nn.functional.relu(twin(x)))):
        rows = x.clone().requires_grad_()
        y = form(rows)
        grads = torch.autograd.grad(y, (rows, module.weight, module.bias), flow.to(y.dtype))
        results.append([y.detach(), *grads, module.running_mean, module.running_var, module.num_batches_tracked])
    assert results[0][0].dtype == dtype
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=close, atol=close)
    norm.eval(), twin.eval()
    assert torch.equal(norm.relu(x.to(norm.weight.dtype)), nn.functional.relu(twin(x.to(norm.weight.dtype))))
    with pytest.raises(ValueError, match="more than one row"):
        norm.train().relu(x[:1])


def test_a_frozen_patch_embed_needs_no_graph(monkeypatch):
    """In evaluation mode, as `--transfer` has it, its norms are folded into the weights as without gradients."""
    embed, members = PatchEmbed(3, 8, widths=(8, 8, 8)).eval(), torch.randn(2, 4, 5, 3)
    calls, real = [], embed_module.encode_members
    monkeypatch.setattr(embed_module, "encode_members", lambda *given: calls.append(1) or real(*given))
    trained = embed(members)
    assert trained.requires_grad and not calls
    frozen = embed.requires_grad_(False)(members)
    assert not frozen.requires_grad and calls
    torch.testing.assert_close(frozen, trained)
    assert embed(members.requires_grad_()).requires_grad and len(calls) == 1


@pytest.mark.parametrize("points", [96, 300, 509])  # whole blocks, blocks of 150, a prime number
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_peak_and_mean_over_the_points(points, dtype):
    generator = torch.Generator().manual_seed(points)
    x = torch.stack([torch.randperm(points, generator=generator) for _ in range(10)], 1)  # no two alike
    x = (x.view(1, points, 10) * torch.tensor([1.0, -1.0]).view(2, 1, 1) / 512).to(dtype).requires_grad_()
    flow = torch.randn(2, 10, generator=generator).to(dtype)
    found, expected = peak_and_mean(x), x.amax(1) + x.mean(1)
    assert torch.equal(found, expected) and found.dtype == dtype
    close = {"rtol": 2e-2, "atol": 2e-3} if dtype == torch.bfloat16 else {}
    (ours,), (theirs,) = (torch.autograd.grad(y, x, flow) for y in (found, expected))
    if dtype == torch.bfloat16:  # rounding makes some alike, which share the gradient there
        ours, theirs = ours.sum(1), theirs.sum(1)
    torch.testing.assert_close(ours, theirs, **close)


def test_the_first_of_several_peaks_gets_the_gradient():
    """As with `torch.max`, for any number of points."""
    x = torch.zeros(1, 48, 3)
    x[0, [5, 30, 47], 0], x[0, 47, 1] = 2.0, 1.0
    x.requires_grad_()
    (ours,) = torch.autograd.grad(peak_and_mean(x).sum(), x)
    (theirs,) = torch.autograd.grad((x.max(1).values + x.mean(1)).sum(), x)
    torch.testing.assert_close(ours, theirs)
    assert ours[0, 5, 0] > 1 > ours[0, 30, 0] and ours[0, 47, 1] > 1 and ours[0, 0, 2] > 1
