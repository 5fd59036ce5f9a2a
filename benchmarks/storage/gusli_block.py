"""Memory to a block device and back through GUSLI, the user-space block client.

    python benchmarks/storage/gusli_block.py --device_path /dev/nvme1n1 --device_id 11 \\
        --config_file gusli.conf --buffer_sizes 4KB,64KB,1MB

GUSLI finds the device by the number that its configuration gives it; without a configuration that
is --device_id. It reads by default: WRITE
destroys what is on the device and wants --overwrite as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from utils.benchmark_base import main_of, run  # noqa: E402
from utils.config import Settings, add_memory, at_least, make_parser, parse_size  # noqa: E402
from utils.errors import Refused  # noqa: E402
from utils.storage import StorageBenchmark, read_plain, write_plain  # noqa: E402


def one_device(options: argparse.Namespace) -> str:
    """A list of devices that holds --device_path alone."""
    kind = "F" if os.path.isfile(options.device_path) else "K"
    path = os.path.abspath(options.device_path)
    return f"version=1\n{options.device_id} {kind} W D {path} sec=0x3\n"


class GusliBlock(StorageBenchmark):
    kind = "BLOCK"

    def __init__(self, options: argparse.Namespace, settings: Settings) -> None:
        if not os.path.exists(options.device_path):
            raise Refused(f"--device_path {options.device_path}: there is nothing")
        devices = options.config_file or one_device(options)
        super().__init__(options, settings, "GUSLI", {"config_file": devices})
        if settings.operation == "WRITE" and not options.overwrite:
            raise Refused(f"--operation WRITE destroys what is on {options.device_path}: say "
                          "--overwrite as well")  # fmt: skip

    def place_name(self) -> str:
        return f"{self.options.device_path}, id {self.options.device_id}"

    def prepare_place(self, size: int) -> None:
        """What is on the device is read as it is; a WRITE needs no blocks made."""

    def load(self, data: np.ndarray) -> None:
        write_plain(self.options.device_path, data, self.options.device_offset)

    def fetch(self, size: int) -> np.ndarray:
        return read_plain(self.options.device_path, size, self.options.device_offset)

    def open_place(self, size: int, keep: contextlib.ExitStack) -> tuple[int, int]:
        return self.options.device_offset, self.options.device_id


def offset(text: str) -> int:
    return 0 if text.strip() == "0" else parse_size(text)


def main() -> int:
    order = ("READ", "WRITE")
    parser = make_parser("block devices through GUSLI", "4KB,64KB,1MB", 100, operations=order)
    add = parser.add_argument_group("storage").add_argument
    add("--device_path", required=True, help="the device, to compare bytes by plain reads")
    add("--device_id", type=at_least(0), default=11, help="its number in the configuration")
    add("--device_offset", type=offset, default=0, help="where on it to begin")
    add("--config_file", help="GUSLI's list of devices (default: --device_path alone)")
    add("--overwrite", action="store_true", help="allow --operation WRITE")
    add_memory(parser, "DRAM")
    return main_of(GusliBlock, parser)()


if __name__ == "__main__":
    raise SystemExit(run(main))
