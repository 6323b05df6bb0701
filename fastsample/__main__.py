"""``python -m fastsample``."""

import sys

from fastsample.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
