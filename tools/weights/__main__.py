"""`python -m tools.weights`."""

import sys

from tools.weights.command import main

sys.exit(main())
