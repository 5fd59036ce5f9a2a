"""NIXL: moves bytes between memory, files, blocks and objects of AI inference systems.

``from nixl._api import nixl_agent, nixl_agent_config`` is where to start; see docs/python_api.md.
Importing needs neither NumPy nor torch nor CUDA.
"""

from . import _api, _bindings, _utils, buffers, errors, logging
from ._api import *  # noqa: F403
from ._bindings import *  # noqa: F403
from ._utils import *  # noqa: F403
from .buffers import *  # noqa: F403
from .errors import *  # noqa: F403
from .logging import *  # noqa: F403

__version__: str = _bindings.__version__

__all__ = [  # noqa: PLE0604
    "__version__",
    *_api.__all__,
    *_utils.__all__,
    *buffers.__all__,
    *errors.__all__,
    *(name for name in logging.__all__ if name not in _api.__all__),
    *(name for name in dir(_bindings) if name.startswith(("nixl", "NIXL"))),
    *("HAVE_UCX_GPU_DEVICE_API", "BLK_SEG", "DRAM_SEG", "FILE_SEG", "OBJ_SEG", "VRAM_SEG"),
]
__all__ = list(dict.fromkeys(__all__))

logging.setup_logging()
