"""`python -m tractode` is `tractode`."""

import sys

from tractode.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
