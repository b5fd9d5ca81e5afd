"""The command line: `python tunnel.py COMMAND`.  What it does is in `qanat.cli`."""

import sys

try:
    from qanat.cli import main
except KeyboardInterrupt:  # Ctrl-C this early
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
