"""Parts of the models against plain forms of the same formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from extensions.m2ae_ops.private import choice
from models import hierarchical as hierarchy
from models.layers.attention import Attention
from models.layers.drop import DropPath
from models.layers.embed import PatchEmbed
from models.layers.group import group_pyramid
from models.layers.norm import BatchNorm, PointwiseConv
from models.layers.packing import pack, plan_packing, unpack
from models.layers.propagate import interpolate
from models.layers.transformer import Blocks, drop_path_rates


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
    monkeypatch.setattr(choice, "VECTORS", ())
    for found, expected in zip(ours, run(), strict=True):
        error = {torch.float32: 1e-6, torch.bfloat16: 6e-3}[dtype]
        assert found.dtype == expected.dtype and (found - expected).norm() <= error * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [40, 200])
def test_local_attention_in_our_kernel_equals_pytorchs(groups, dtype, monkeypatch):
    """With and without near tokens brought together; output and all gradients are the same, each token in its place."""
    torch.manual_seed(0)
    keys = {
        "num_groups": [groups],
        "group_sizes": [8],
        "encoder_dims": [24],
        "encoder_depths": [2],
        "local_radius": [0.6],
    }
    config = hierarchy.HierarchyConfig(num_heads=3, drop_path_rate=0.0, embed_widths=[8, 8, 8], **keys)
    encoder = hierarchy.HierarchicalEncoder(config)
    pyramid = group_pyramid(torch.randn(3, 300, 3), [groups], [8])
    flow = torch.randn(3, groups, 24)

    def run():
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            (tokens,) = encoder(pyramid)
        parameters = [p for name, p in encoder.named_parameters() if not name.startswith("encoder_norms")]
        return tokens.detach(), *torch.autograd.grad(tokens, parameters, flow.to(tokens.dtype))

    ours = run()
    monkeypatch.setattr(choice, "VECTORS", ())
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


def test_bias_before_batch_norm_has_no_gradient_noise():
    torch.manual_seed(0)
    layers = nn.Sequential(PointwiseConv(3, 5, before_norm=True), BatchNorm(5))
    layers(torch.randn(40, 3)).square().sum().backward()
    assert not layers[0].bias.grad.any() and layers[0].weight.grad.any()
    layers.eval()(torch.randn(40, 3)).square().sum().backward()
    assert layers[0].bias.grad.any()
