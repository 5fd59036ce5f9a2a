"""What is compared. A row sets a scene up once and measures one round at a time, on every side."""

from __future__ import annotations

from rows_base import Metric, Row, Target
from rows_etcd import ETCD_ROWS
from rows_exchange import EXCHANGE_ROWS
from rows_fabric import FABRIC_ROWS
from rows_gds import GDS_ROWS
from rows_gusli import GUSLI_ROWS
from rows_hosts import HOST_ROWS
from rows_memory import MEMORY_ROWS
from rows_mooncake import MOONCAKE_ROWS
from rows_network import PAIR_ROWS
from rows_peer import PEER_ROWS
from rows_polling import POLLING_ROWS
from rows_posix import POSIX_ROWS
from rows_posix_sizes import POSIX_SIZE_ROWS
from rows_ucx_mo import UCX_MO_ROWS

__all__ = ["ALL", "Metric", "Row", "Target", "find"]

ALL: list[type[Row]] = [
    *MEMORY_ROWS,
    *PAIR_ROWS,
    *HOST_ROWS,
    *UCX_MO_ROWS,
    *MOONCAKE_ROWS,
    *POLLING_ROWS,
    *PEER_ROWS,
    *EXCHANGE_ROWS,
    *ETCD_ROWS,
    *POSIX_ROWS,
    *POSIX_SIZE_ROWS,
    *GDS_ROWS,
    *FABRIC_ROWS,
    *GUSLI_ROWS,
]


def find(name: str) -> type[Row]:
    for row in ALL:
        if row.name == name:
            return row
    raise SystemExit(f"no row {name!r}; there are: {' '.join(row.name for row in ALL)}")
