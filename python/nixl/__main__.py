"""``python -m nixl``: the same as the command ``nixl``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
