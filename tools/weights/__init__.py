"""Published weights by name: `python -m tools.weights list | fetch | check | clean`, and `resolve` for every `--ckpts`."""

from collections.abc import Sequence

from tools.weights.names import resolve

__all__ = ["main", "resolve"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    from tools.weights.command import main as run

    return run(argv)
