"""What a model has learned, to see: `python -m tools.look --ckpts PTH [--input DIR_OR_FILE | --config YAML] --out DIR`.

`capture` observes an encoder, `projection` turns features into colours, similarities and maps, `rebuild` masks and rebuilds, `study`
holds what came out for all clouds, `files` writes it.
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    from tools.look.command import main as run

    return run(argv)
