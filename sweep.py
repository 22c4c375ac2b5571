"""`python sweep.py [-m] OVERRIDE ...`: plan a sweep, check it, run it. `--help` says more."""

import sys

from sweeper.config.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
