"""A row of a table: ours, its peers, how to tell that they agree, and the ratios to reach."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata

from benchmarks.ops.agree import Disagreement
from benchmarks.ops.timing import best_of, interleave, median

OURS = "ours"
DISTRIBUTIONS = {
    "torch": "torch",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "faiss": "faiss-cpu",
    "torch_quickfps": "torch-quickfps",
    "fpsample": "fpsample",
    "torch_fps": "torch-fps",
    "torch_cluster": "torch-cluster",
    "pytorch3d": "pytorch3d",
    "pointnet2_ops": "pointnet2-ops",
}
"""Module that is imported -> name it is installed by."""


@dataclass(frozen=True)
class Side:
    """One way to compute a row.

    `call(*args, **option)` is what is timed; `prepare` turns the inputs of the row into `args`, and `canon` its result into the
    tensors that the check compares. Of several `options` (label, keyword arguments) the quickest is used, so that a peer
    is never measured with a bad setting.
    """

    name: str
    call: Callable
    package: str = "torch"
    prepare: Callable[..., tuple] = field(default=lambda *inputs: inputs)
    canon: Callable[[object], tuple] = field(default=lambda result: result)
    options: tuple[tuple[str, dict], ...] = ()
    device: str = "any"
    compiled: bool = False

    def with_option(self, label: str) -> "Side":
        """Return the side with one of its options."""
        chosen = dict(self.options)[label]
        return replace(self, name=f"{self.name} ({label})", call=_bind(self.call, chosen), options=())


@dataclass(frozen=True)
class Target:
    """What to reach against the quickest of the peers whose name begins with `peer`.

    `unit` "x": must and aim are how many times quicker we are at least. "us": they are microseconds at most, on our own.
    """

    label: str
    peer: str
    must: float
    aim: float
    device: str = "cpu"
    unit: str = "x"


@dataclass(frozen=True)
class Case:
    """A row: `draw()` returns fresh inputs, `agree(inputs, ours, theirs)` says in words what is equal, or raises."""

    key: str
    title: str
    draw: Callable[[], tuple]
    ours: Side
    peers: tuple[Side, ...]
    agree: Callable[[tuple, tuple, tuple], str]
    targets: tuple[Target, ...] = ()


def version(package: str) -> str | None:
    """Return the version of an importable package, None where it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return metadata.version(DISTRIBUTIONS[package])
    except metadata.PackageNotFoundError:
        return "unknown version"


def run_case(case: Case, clock: Callable, *, device: str, rounds: int, budget_s: float, compiled: bool = True) -> dict:
    """Check that all peers agree with ours, time those that do in turn, and return the row as plain data."""
    inputs = case.draw()
    mine = case.ours.canon(case.ours.call(*case.ours.prepare(*inputs)))
    timed, noted = {OURS: case.ours}, []
    for peer in case.peers:
        if peer.device not in ("any", device):
            continue
        ready, note = _admit(case, peer, inputs, mine, clock, compiled)
        noted.append(note)
        if ready is not None:
            timed[ready.name] = ready
    sides = {name: _caller(side) for name, side in timed.items()}
    times = interleave(sides, case.draw, clock, rounds=rounds, budget_s=budget_s)
    medians = {name: median(found) for name, found in times.items()}
    return {
        "row": case.key,
        "title": case.title,
        "ours_ms": times[OURS],
        "ours_median_ms": medians[OURS],
        "peers": [
            note | {"ms": times[note["name"]], "median_ms": medians[note["name"]]} if note["name"] in times else note
            for note in noted
        ],
        "targets": compare_targets(case, medians, device),
    }


def _admit(
    case: Case, peer: Side, inputs: tuple, mine: tuple, clock: Callable, compiled: bool
) -> tuple[Side | None, dict]:
    """Return (the side to time, or None; what is noted of it)."""
    note = {"name": peer.name, "package": peer.package, "version": version(peer.package)}
    if note["version"] is None:
        return None, note | {"status": "not installed"}
    if peer.compiled and not compiled:
        return None, note | {"status": "left out by --quick"}
    try:
        args = peer.prepare(*inputs)
        if peer.options:
            choices = [(label, _bind(peer.call, option)) for label, option in peer.options]
            peer = peer.with_option(best_of(choices, args, clock))
            note["name"] = peer.name
        theirs = peer.canon(peer.call(*args))
        return peer, note | {"status": "timed", "agreement": case.agree(inputs, mine, theirs)}
    except Disagreement as error:
        return None, note | {"status": "disagrees", "agreement": str(error)}
    except Exception as error:
        # A peer that does not run here must not cost the table its other rows; the reason is kept in the results.
        return None, note | {"status": "failed", "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def compare_targets(case: Case, medians: dict[str, float], device: str) -> list[dict]:
    """Compare the medians (ms) with every target of the device; peers without a target are listed with their ratio."""
    found = []
    for target in case.targets:
        if target.device != device:
            continue
        row = {"against": target.label, "unit": target.unit, "must": target.must, "aim": target.aim}
        if target.unit == "us":
            reached = 1000 * medians[OURS]
            met = [limit for limit in ("aim", "must") if reached <= row[limit]]
            found.append(row | {"peer": None, "value": reached, "met": met[0] if met else "no"})
            continue
        rivals = {name: ms for name, ms in medians.items() if name != OURS and name.startswith(target.peer)}
        if not rivals:
            found.append(row | {"peer": None, "value": None, "met": "not measured"})
            continue
        rival = min(rivals, key=rivals.get)
        reached = rivals[rival] / medians[OURS]
        met = [limit for limit in ("aim", "must") if reached >= row[limit]]
        found.append(row | {"peer": rival, "value": reached, "met": met[0] if met else "no"})
    return found


def _bind(call: Callable, option: dict) -> Callable:
    return lambda *args: call(*args, **option)


def _caller(side: Side) -> Callable[[tuple], tuple[Callable, tuple]]:
    return lambda inputs: (side.call, side.prepare(*inputs))
