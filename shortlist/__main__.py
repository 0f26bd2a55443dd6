"""`python -m shortlist` is `shortlist`."""

import sys

from shortlist.cli import main

if __name__ == "__main__":
    sys.exit(main())
