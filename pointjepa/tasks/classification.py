"""Point-JEPA's published command of fine-tuning: `python -m pointjepa.tasks.classification fit --config YAML`."""

import sys
from functools import partial

from main import dispatch, run_command
from tools.published.point_jepa import parse

if __name__ == "__main__":
    sys.exit(run_command(None, partial(parse, "pointjepa.tasks.classification"), dispatch))
