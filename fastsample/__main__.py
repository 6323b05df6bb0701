"""``python -m fastsample``."""

import sys

from fastsample.cli import main

sys.exit(main())
