"""GeoMask3D's published pre-training command: `python main_pretrain.py --config YAML --output_dir DIR --log_dir DIR`."""

import sys

from main import dispatch, run_command
from tools.published.gm3d import parse_pretrain


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status, as `main.py` does."""
    return run_command(argv, parse_pretrain, dispatch)


if __name__ == "__main__":
    sys.exit(main())
