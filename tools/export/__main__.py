"""`python -m tools.export`."""

import sys

from tools.export import main

if __name__ == "__main__":
    sys.exit(main())
