"""Another name of the package ``nixl``; the modules are the very same objects."""

import sys as _sys

import nixl as _nixl
from nixl import *  # noqa: F403
from nixl import _api, _bindings, _utils, errors, logging

__version__ = _nixl.__version__
__all__ = _nixl.__all__

for _part in (_api, _bindings, _utils, errors, logging):
    _sys.modules[f"{__name__}.{_part.__name__.rpartition('.')[2]}"] = _part
