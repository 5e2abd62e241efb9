"""GeoMask3D's published fine-tuning command: `python main_finetune.py --config YAML --output_dir DIR --log_dir DIR --finetune PTH`."""

import sys

from main import dispatch, run_command
from tools.published.gm3d import parse_finetune


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status, as `main.py` does."""
    return run_command(argv, parse_finetune, dispatch)


if __name__ == "__main__":
    sys.exit(main())
