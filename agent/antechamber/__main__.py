"""`antechamber` and `python -m antechamber`."""

import sys

from antechamber.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
