"""`python -m nnrepair` is the command `nnrepair`."""

import sys

from nnrepair.cli import main

if __name__ == "__main__":
    sys.exit(main())
