"""The patch embedding. Shape legend: K members of a group, P channels of a member, D of a token; R members in all."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .private import embedding, members
from .private.checks import check_float


def patch_embed(members_of_groups: Tensor, convolutions: Sequence[Any], norms: Sequence[Any]) -> Tensor:
    """Embed the members of each group into one token: a mini-PointNet, `reference.layers.patch_embed`.

    Two identities save more than half of the work, exact up to rounding. The half of the third layer that reads the maximum of the group
    is the same for all K members, so it is multiplied once per group and added. The other half follows on the second layer
    with nothing between, so both are one product with the product of their weights, from the narrower hidden rows. The rest
    is fused on the CPU (`private/members.py`) and on a GPU (`private/fused`).

    Args:
        members_of_groups: (..., K, P).
        convolutions: four layers with `weight` (out, in) or (out, in, 1) and `bias` (out,): they lift each member to A channels, widen
            it to W, join it with the maximum of its group (2 W to C) and give the token (C to D). While the norms train, the
            gradient of the biases of the first three, which the norms take away, is zero.
        norms: two norms as in `batch_norm`, of A and C channels, in the same mode. Their statistics are those of all members.

    Returns:
        (..., D), in the dtype of autocast where it is on. Differentiable once in members, weights and biases.

    Raises:
        ValueError: members are not floating (..., K, P) with at least one member, the norms differ in their mode, or train on a
            single member.
    """
    check_float("patch_embed", "members", members_of_groups)
    *groups, K, P = members_of_groups.shape
    if not groups or not K:
        raise ValueError(f"patch_embed: members must be (..., K, P) with K > 0, got {tuple(members_of_groups.shape)}")
    training, other = (norm.training for norm in norms)
    if training != other:
        raise ValueError(
            "patch_embed: one norm trains and the other does not; call train() or eval() on the whole layer"
        )
    rows, layers = members_of_groups.reshape(-1, P), embedding.layers_of(convolutions, norms)
    if embedding.has_kernels(layers, rows, K):
        tokens = embedding.in_one_op(layers, rows, K)
    elif not members.serves(rows, K) or (not training and embedding.needs_gradient(layers, rows)):
        tokens = embedding.plain(layers, rows, K)
    else:
        tokens = members.train(layers, rows, K) if training else members.encode(layers, rows, K)
    return tokens.view(*groups, tokens.shape[-1])
