"""python -m m2ae_ops.compat run [--device cpu] [--shims] main.py ..."""

import sys

from .launch import main

sys.exit(main())
