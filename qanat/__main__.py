"""`python -m qanat`: the command line."""

import sys

from qanat.cli import main

if __name__ == "__main__":
    sys.exit(main())
