"""`python -m experiments`."""

import sys

from experiments.framework.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
