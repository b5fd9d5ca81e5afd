"""The command line: `python tunnel.py COMMAND`.  What it does is in `qanat.cli`."""

import sys

from qanat.cli import main

if __name__ == "__main__":
    sys.exit(main())
