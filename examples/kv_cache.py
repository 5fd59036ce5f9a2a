"""KV-cache pages from a prefill agent to a decode agent, both in this process.

Every layer is one array of pages on both sides. The sides are prepared once; then each request
names its pages by index, as an inference server does with its block tables. The decode agent learns
from a notification, which arrives after the data, that its request is complete.
"""

from __future__ import annotations

import sys

import nixl
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

LAYERS, PAGES, PAGE_BYTES = 8, 512, 16 << 10
REQUESTS = {
    "req-1": ([3, 4, 5, 90, 91], [100, 7, 200, 201, 9]),
    "req-2": ([400, 17, 18], [0, 511, 300]),
}


def page_rows(layers: list[nixl.Buffer]) -> np.ndarray:
    """One row a layer: address, length, device, stride, count; page p is layer * PAGES + p."""
    rows = [(layer.address, PAGE_BYTES, 0, PAGE_BYTES, PAGES) for layer in layers]
    return np.array(rows, np.uint64)


def flat_indices(pages: list[int]) -> np.ndarray:
    """The same pages of every layer."""
    layers = np.arange(LAYERS, dtype=np.int32)[:, None] * PAGES
    return (layers + np.array(pages, np.int32)).ravel()


def main() -> int:
    config = nixl_agent_config(backends=["UCX"])
    with nixl_agent("prefill", config) as prefill, nixl_agent("decode", config) as decode:
        # Shareable memory: between processes of one host it needs a single copy.
        source = [nixl.alloc(PAGES * PAGE_BYTES) for _ in range(LAYERS)]
        target = [nixl.alloc(PAGES * PAGE_BYTES) for _ in range(LAYERS)]
        for number, layer in enumerate(source):
            pages = np.frombuffer(layer, np.uint8).reshape(PAGES, PAGE_BYTES)
            pages[:] = (np.arange(PAGES)[:, None] * 7 + number) % 251
        prefill.register_memory(source)
        decode.register_memory(target)
        prefill.add_remote_agent(decode.get_agent_metadata())

        local = prefill.prep_xfer_dlist("", page_rows(source), "DRAM")
        remote = prefill.prep_xfer_dlist("decode", page_rows(target), "DRAM")
        handles = []
        for request, (from_pages, to_pages) in REQUESTS.items():
            handle = prefill.make_prepped_xfer(
                "WRITE", local, flat_indices(from_pages), remote, flat_indices(to_pages), request
            )
            prefill.transfer(handle)
            handles.append(handle)
        prefill.wait_all(handles, timeout=30)

        for request, (from_pages, to_pages) in REQUESTS.items():
            decode.wait_notifs(request, timeout=30)
            for number, layer in enumerate(target):
                pages = np.frombuffer(layer, np.uint8).reshape(PAGES, PAGE_BYTES)
                wanted = (np.array(from_pages) * 7 + number) % 251
                if not (pages[to_pages] == wanted[:, None]).all():
                    print(f"{request}: layer {number} has other bytes", file=sys.stderr)
                    return 1
            print(f"{request}: {len(to_pages)} pages of {LAYERS} layers arrived")
        print(prefill.explain(handles[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
