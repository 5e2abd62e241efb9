"""Earth mover's distance by auction, in plain PyTorch. Shape legend: B batch, N points, R bids of a round.

People (the points of `a`) bid for objects (the points of `b`). A person without an object asks for the one with the least
cost + price and offers to raise its price by what the second choice is worse, plus eps; the highest offer gets the object and
whoever had it goes back to the queue. When everybody has an object, no total is more than N * eps below the one found.
Bertsekas 1988, "The auction algorithm: a distributed relaxation method for the assignment problem".

What is left open there is fixed here, and compiled kernels follow it to the bit:
- Phases: the first eps is a quarter of the largest nearest distance (either way), each next a quarter of the one before, the last
  as asked for. Each phase starts with nobody assigned and with the prices of the phase before.
- Rounds: up to 32 people bid at once, from the front of a queue that starts in order of index. Of several bids for one object the
  highest wins, the first among equals. In the order of the bids, losers and former owners join the end of the queue.
- A round in which more than half of the bids lose halves the size of the next one, a quarter or less doubles it (1 to 32).
- Among equally good objects the lowest index is asked for. A new price is `price + ((second - best) + eps)`.
"""

from dataclasses import dataclass

import torch

from .chamfer import nearest
from .distance import PAIRS_AT_ONCE, squared_distance, to_compute

BIDDERS = 32
"""Most bids in a round."""


@dataclass(frozen=True)
class Limits:
    """Where numbers end, per dtype: coordinates beyond `far` are infinitely far, eps is at least `step` * the box's diagonal.

    With such an eps a price, which stays below 40 diagonals, always rises when it is bid for.
    """

    far: float
    step: float


LIMITS = {torch.float32: Limits(2.0**56, 2.0**-17), torch.float64: Limits(2.0**480, 2.0**-46)}


def emd(a: torch.Tensor, b: torch.Tensor, eps: float, iters: int, bijective: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (cost (B, N), assignment (B, N)) of the matching that the auction finds."""
    a, b = to_compute(a), to_compute(b)
    assignment = match(a, b, eps, None if bijective else iters * a.shape[1])
    partner = b.gather(1, assignment[..., None].expand(-1, -1, 3))  # (B, N, 3)
    cost = squared_distance(a, partner)
    return torch.where(cost.isnan(), torch.inf, cost), assignment


def match(a: torch.Tensor, b: torch.Tensor, eps: float, bids: int | None) -> torch.Tensor:
    """Return the assignment (B, N) after at most `bids` bids per cloud; None means until everybody is assigned."""
    limits = LIMITS[a.dtype]
    inside_a, inside_b = (points.abs().le(limits.far).all(-1, keepdim=True) for points in (a, b))  # (B, N, 1)
    a, b = a.where(inside_a, torch.nan), b.where(inside_b, torch.nan)
    every = torch.cat([a, b], 1)  # (B, 2N, 3)
    low, high = every.nan_to_num(torch.inf).amin(1), every.nan_to_num(-torch.inf).amax(1)  # (B, 3)
    diagonal = torch.where((low <= high).all(-1), squared_distance(high, low), 0.0)  # (B,)
    far = 2 * diagonal
    least = (diagonal * limits.step).clamp_min(torch.finfo(a.dtype).tiny)
    last = torch.maximum(least, torch.full_like(least, eps))
    to_b, closest = nearest(a, b)
    to_a, _ = nearest(b, a)
    first = torch.minimum(torch.cat([to_a, to_b], 1).amax(1), far) * 0.25
    auction = Auction(a, b, far, first, last, bids)
    while auction.waiting.any():
        auction.round()
        auction.next_phase()
    return auction.assignment(closest)


class Auction:
    """The state of B auctions that run side by side."""

    def __init__(self, a, b, far, first, last, bids):
        B, N, _ = a.shape
        self.a, self.b, self.far, self.last = a, b, far, last
        self.eps = torch.maximum(first, last)  # (B,)
        self.price = a.new_zeros(B, N)
        self.in_order = torch.arange(N, device=a.device).expand(B, N)
        self.slots = torch.arange(BIDDERS, device=a.device)
        self.owner = torch.full_like(self.in_order, -1).contiguous()  # (B, N), person of each object
        self.queue = self.in_order.clone()  # (B, N), a ring that starts at `head` with `waiting` people
        self.head = self.in_order.new_zeros(B)
        self.waiting = torch.full_like(self.head, N)
        self.size = torch.full_like(self.head, BIDDERS)
        self.left = None if bids is None else torch.full_like(self.head, bids)

    def round(self) -> None:
        """Let the first of the queue bid, hand over the objects, and put those without one back."""
        N = self.price.shape[1]
        m = torch.minimum(self.size, self.waiting)  # (B,)
        if self.left is not None:
            m = torch.minimum(m, self.left)
            self.left = self.left - m
        bidding = self.slots < m[:, None]  # (B, 32)
        bidder = self.queue.gather(1, (self.head[:, None] + self.slots) % N)
        cloud, slot = bidding.nonzero(as_tuple=True)  # (R,)
        target, bid = torch.full_like(bidder, -1), self.price.new_full(bidder.shape, -torch.inf)
        target[cloud, slot], bid[cloud, slot] = self.bids(cloud, bidder[cloud, slot])

        rivals = target[:, :, None] == target[:, None]  # (B, 32, 32), True where the second bids for the same
        ahead = (bid[:, None] > bid[:, :, None]) | (
            (bid[:, None] == bid[:, :, None]) & (self.slots < self.slots[:, None])
        )
        lost = (rivals & ahead).any(-1) & bidding  # (B, 32)
        cloud, slot = (bidding & ~lost).nonzero(as_tuple=True)
        won = target[cloud, slot]
        back = bidder.where(bidding, -1)
        back[cloud, slot] = self.owner[cloud, won]
        self.owner[cloud, won], self.price[cloud, won] = bidder[cloud, slot], bid[cloud, slot]

        self.head, self.waiting = (self.head + m) % N, self.waiting - m
        returns = back >= 0
        place = (self.head + self.waiting)[:, None] + returns.cumsum(1) - 1
        cloud, slot = returns.nonzero(as_tuple=True)
        self.queue[cloud, place[cloud, slot] % N] = back[cloud, slot]
        self.waiting = self.waiting + returns.sum(1)

        losers = lost.sum(1)
        smaller, larger = (self.size // 2).clamp_min(1), (self.size * 2).clamp_max(BIDDERS)
        self.size = torch.where(2 * losers > m, smaller, torch.where(4 * losers <= m, larger, self.size))

    def bids(self, cloud: torch.Tensor, person: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (object (R,), offered price (R,)) for the people (R,) of the clouds (R,)."""
        rows = max(1, PAIRS_AT_ONCE // self.price.shape[1])
        parts = [self._bids(*part) for part in zip(cloud.split(rows), person.split(rows), strict=True)]
        return torch.cat([target for target, _ in parts]), torch.cat([bid for _, bid in parts])

    def _bids(self, cloud, person):
        price = self.price[cloud]  # (R, N)
        cost = squared_distance(self.a[cloud, person, None], self.b[cloud])
        value = torch.where(cost.isnan(), self.far[cloud, None], cost) + price
        best, target = value.min(1, keepdim=True)  # (R, 1)
        second = value.scatter(1, target, torch.inf).amin(1, keepdim=True)
        second = torch.where(second.isinf(), best, second)  # a single object has no rival
        bid = price.gather(1, target) + ((second - best) + self.eps[cloud, None])
        return target.squeeze(1), bid.squeeze(1)

    def next_phase(self) -> None:
        """Start the next phase of the clouds in which everybody has an object, and stop those without bids left."""
        more = (self.waiting == 0) & (self.eps > self.last)  # (B,)
        if self.left is not None:
            more = more & (self.left > 0)
            self.waiting = self.waiting.where(self.left > 0, 0)
        self.eps = torch.where(more, torch.maximum(self.eps * 0.25, self.last), self.eps)
        self.owner.masked_fill_(more[:, None], -1)
        self.queue = torch.where(more[:, None], self.in_order, self.queue)
        self.head = self.head.where(~more, 0)
        self.waiting = self.waiting.where(~more, self.price.shape[1])
        self.size = self.size.where(~more, BIDDERS)

    def assignment(self, otherwise: torch.Tensor) -> torch.Tensor:
        """Return the object of everybody (B, N), `otherwise` for those without one."""
        cloud, thing = (self.owner >= 0).nonzero(as_tuple=True)
        assignment = otherwise.clone()
        assignment[cloud, self.owner[cloud, thing]] = thing
        return assignment
