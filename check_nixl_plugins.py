#!/usr/bin/env python3
"""Which plugins, libraries and permissions this machine has: the same as `python -m nixl.doctor`.

Uses the installed package, else the one of the build tree beside this file.
"""

import importlib.util
import pathlib
import sys

BUILT = pathlib.Path(__file__).resolve().parent / "build" / "release" / "python"

if importlib.util.find_spec("nixl") is None and (BUILT / "nixl").is_dir():
    sys.path.insert(0, str(BUILT))
if importlib.util.find_spec("nixl") is None:
    sys.exit("check_nixl_plugins.py: no package nixl here: `pip install .` (or ./dev build) first")

from nixl.doctor import main  # noqa: E402

sys.exit(main())
