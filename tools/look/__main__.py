"""`python -m tools.look`."""

import sys

from tools.look.command import main

sys.exit(main())
