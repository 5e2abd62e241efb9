"""What an encoder makes of one cloud: the tokens of its patches at every scale, and what each layer and head attends to.

Hooks observe the modules that every method is built of, `Attention`, `Blocks` and the embedding of the centres, so that no method needs
code of its own.

Shapes: `N` points, `P` patches that take part in attention, `L` tokens = other tokens (class token, prompts) and patches, `H` heads,
`D` channels of a head.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import PointModel
from models.hierarchical import HierarchicalEncoder
from models.layers.attention import Attention
from models.layers.transformer import Blocks, DecoderBlocks


class Layer(NamedTuple):
    """The attention of one layer: everything that its weights follow from."""

    query: Tensor  # (H, L, D), scaled by D ** -0.5
    key: Tensor  # (H, L, D)
    allowed: Tensor | None  # (L, L) bool, True = this query may attend to this key; None: all pairs
    extra: int = 0  # tokens that are no patches: class token, prompts; they come first

    def weights(self) -> Tensor:
        """Return softmax(q k^T), (H, L, L): a row a query, which sums to 1."""
        logits = self.query @ self.key.transpose(-2, -1)
        if self.allowed is not None:
            logits = logits.masked_fill(~self.allowed, float("-inf"))
        return logits.softmax(-1)


@dataclass
class Scale:
    """The patches of one scale of one cloud that take part in attention, in the order of the groups.

    Attributes:
        index: (P,) int64, which groups of the pyramid these are. Groups that belong to no patch of the scale above are left out.
        centers: (P, 3).
        features: (P, C), normed tokens.
        layers: attention of each layer.
    """

    index: np.ndarray
    centers: np.ndarray
    features: np.ndarray
    layers: list[Layer]

    @property
    def extra(self) -> int:
        """The most tokens of a layer that are no patches."""
        return max((layer.extra for layer in self.layers), default=0)

    def attention(self, row: int) -> np.ndarray:
        """Return what the patch of a row attends to: weights (layers, H, L) float32, each row of L sums to 1.

        The first `extra` are of tokens that are no patches; layers with fewer of them begin with zeros.
        """
        if not self.layers:
            return np.zeros((0, 0, len(self.index)), np.float32)
        rows = [F.pad(layer.weights()[:, layer.extra + row], (self.extra - layer.extra, 0)) for layer in self.layers]
        return torch.stack(rows).cpu().numpy()

    def nearest(self, point: np.ndarray) -> int:
        """Return the row of the patch whose centre is nearest to a point (3,)."""
        return int(((self.centers - point) ** 2).sum(1).argmin())


@dataclass
class _Rows:
    """What hooks observe of one scale: rows in the order of the encoder."""

    centers: Tensor  # (1, L', 3)
    layers: list[tuple[Attention, Tensor, Tensor | None]] = field(default_factory=list)
    tokens: Tensor | None = None  # (1, L, C)


@torch.inference_mode()
def observe(model: PointModel, points: Tensor) -> tuple[Tensor, list[Scale]]:
    """Encode one cloud (N, 3) with nothing hidden, as in evaluation and in full precision.

    Returns:
        the points (N', 3) as the method transforms them, and what came out at each scale, finest first.

    Raises:
        ValueError: too few points for the groups.
    """
    points = model.transform(points[None])
    pyramid = model.group(points)
    with _observed(model) as rows:
        coarsest = model.patch_tokens(points, pyramid)[0]
    norms = next((m.encoder_norms for m in model.modules() if isinstance(m, HierarchicalEncoder)), None)
    scales = []
    for number, (one, centers) in enumerate(zip(rows, pyramid.centers, strict=True)):
        index, tokens, layers, extra = _ordered(one, centers[0])
        if number == len(rows) - 1:
            features = coarsest[extra:][index]
        elif norms is not None:
            features = norms[number](tokens)
        else:  # as a classifier has one norm, which is for the coarsest scale
            features = F.layer_norm(tokens, tokens.shape[-1:])
        arrays = (part.cpu().numpy() for part in (index, centers[0, index].float(), features.float()))
        scales.append(Scale(*arrays, layers))
    return points[0], scales


@contextmanager
def _observed(model: nn.Module) -> Iterator[list[_Rows]]:
    """Note centres, tokens and inputs of attention while the model encodes."""
    rows: list[_Rows] = []

    def centers(module: nn.Module, given: tuple, named: dict[str, Any]) -> None:
        x = given[0] if len(given) == 1 and not named else None
        # An embedding of centres is a chain of modules: the first one and the chain itself are given the same tensor.
        if isinstance(x, Tensor) and x.dim() == 3 and x.shape[-1] == 3 and not (rows and rows[-1].centers is x):
            rows.append(_Rows(x))

    def attention(module: Attention, given: tuple, named: dict[str, Any]) -> None:
        x, _, attend = (*given, None, None)[:3]
        rows[-1].layers.append((module, x, named.get("attend", attend)))

    def tokens(module: Blocks, given: tuple, named: dict[str, Any], out: Tensor) -> None:
        valid = named.get("valid", given[2] if len(given) > 2 else None)
        rows[-1].tokens = out if valid is None else out[valid][None]

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Attention):
                stack.callback(module.register_forward_pre_hook(attention, with_kwargs=True).remove)
            elif isinstance(module, Blocks) and not isinstance(module, DecoderBlocks):
                stack.callback(module.register_forward_hook(tokens, with_kwargs=True).remove)
            else:
                stack.callback(module.register_forward_pre_hook(centers, with_kwargs=True).remove)
        yield rows


def _ordered(rows: _Rows, centers: Tensor) -> tuple[Tensor, Tensor, list[Layer], int]:
    """Bring what was observed of a scale to the order of its groups (G, 3).

    Returns:
        groups (P,), tokens (P, C), layers, and how many class tokens come first where the encoder returns them.
    """
    assert rows.tokens is not None, "blocks run at every scale"
    extra = max(rows.tokens.shape[1] - rows.centers.shape[1], 0)
    patches = rows.tokens.shape[1] - extra  # padding, which comes last among the centres, is not among the tokens
    found = _places(rows.centers[0, :patches], centers)
    order = found.argsort()
    index = found[order]
    # Prompts of a tuned model are tokens of attention alone, which blocks do not return.
    layers = [_layer(order, x.shape[1] - rows.centers.shape[1], module, x, attend) for module, x, attend in rows.layers]
    return index, rows.tokens[0, extra:][order], layers, extra


def _places(rows: Tensor, centers: Tensor) -> Tensor:
    """Return which of the centres (G, 3) each row (P, 3) is, (P,) int64; of equal ones each is taken once."""
    places: dict[bytes, deque[int]] = defaultdict(deque)
    for place, center in enumerate(_bytes(centers)):
        places[center].append(place)
    return torch.tensor([places[row].popleft() for row in _bytes(rows)], device=rows.device)


def _bytes(rows: Tensor) -> list[bytes]:
    return [row.tobytes() for row in (rows + 0.0).cpu().numpy()]  # -0 + 0 is 0


def _layer(order: Tensor, extra: int, module: Attention, x: Tensor, attend: Tensor | None) -> Layer:
    """Compute queries and keys of a layer again, its patches in another order, without padding."""
    order = torch.cat([torch.arange(extra, device=order.device), extra + order])
    q, k, _ = module.qkv(x[:, order]).unflatten(-1, (3, module.num_heads, -1))[0].permute(1, 2, 0, 3)  # (H, L, D)
    allowed = None if attend is None else attend[0][order][:, order]
    return Layer(q * q.shape[-1] ** -0.5, k, allowed, extra)
