"""``python -m quadric`` is the ``quadric`` command."""

import sys

from quadric.cli import main

if __name__ == "__main__":
    sys.exit(main())
