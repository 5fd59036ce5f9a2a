"""Creates, posts and releases a transfer a million times and watches the memory of the process.

    python benchmarks/soak/soak.py --rounds 1000000

Exit status 1 where the resident size grew by more than --allow KB after the first tenth.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config


def resident_kb() -> int:
    fields = pathlib.Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--allow", type=int, default=1024, help="growth that passes, in KB")
    options = parser.parse_args()

    config = nixl_agent_config(backends=["UCX"])
    left, right = nixl_agent("left", config), nixl_agent("right", config)
    source, sink = np.ones(4096, dtype=np.uint8), np.zeros(4096, dtype=np.uint8)
    left.register_memory([source])
    right.register_memory([sink])
    left.add_remote_agent(right.get_agent_metadata())
    near, far = left.get_xfer_descs([source]), left.get_xfer_descs([sink])

    step = max(1, options.rounds // 10)
    baseline = 0
    start = time.perf_counter()
    for index in range(1, options.rounds + 1):
        handle = left.initialize_xfer("WRITE", near, far, "right", b"done")
        state = left.transfer(handle)
        while state == "PROC":
            state = left.check_xfer_state(handle)
        left.release_xfer_handle(handle)
        if index % 64 == 0:
            right.get_new_notifs()
        if index % step == 0:
            now = resident_kb()
            baseline = baseline or now
            each = (time.perf_counter() - start) / index * 1e6
            print(f"{index:>9} rounds  {now:>8} KB resident  {each:6.2f} us a round", flush=True)
    growth = resident_kb() - baseline
    print(f"growth after the first {step} rounds: {growth} KB")
    return 1 if growth > options.allow else 0


if __name__ == "__main__":
    raise SystemExit(main())
