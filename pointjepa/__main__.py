"""Point-JEPA's published command of pre-training: `python -m pointjepa fit -c YAML`."""

import sys
from functools import partial

from main import dispatch, run_command
from tools.published.point_jepa import parse

if __name__ == "__main__":
    sys.exit(run_command(None, partial(parse, "pointjepa"), dispatch))
