"""Point-JEPA's published command of voting: `python -m pointjepa.eval.voting --config YAML --finetuned_ckpt_path PTH`."""

import sys
from functools import partial

from main import dispatch, run_command
from tools.published.point_jepa import parse

if __name__ == "__main__":
    sys.exit(run_command(None, partial(parse, "pointjepa.eval.voting"), dispatch))
