"""``python -m nixl.command``: the same as the command ``nixl``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
