"""`python -m agr_lightning`."""

import sys

from agr_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
