"""The published command: `cd detection && python main.py --dataset_name scannet --max_epoch 1080 --enc_type masked ...`.

It runs `main.py` of the repository on cfgs/detection/3detr/scannet.yaml, or that of 3detr-m; every flag of that program works here as well.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# The published command starts in this folder, and Python puts it first: the other packages are one folder above.
if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from main import main as run_main
from tools.published.detection import translate
from utils.errors import UserError


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the published command; returns the exit status: 0, 2 for bad input, 128 + signal when stopped. `prog`: see `main.py`."""
    try:
        return run_main(translate(sys.argv[1:] if argv is None else argv, prog), prog)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
