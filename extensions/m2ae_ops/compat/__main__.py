"""python -m m2ae_ops.compat run [--device cpu] script.py ..."""

import sys

from .launch import main

sys.exit(main())
