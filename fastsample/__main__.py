"""``python -m fastsample``."""

import sys

from fastsample.cli.main import main

sys.exit(main())
