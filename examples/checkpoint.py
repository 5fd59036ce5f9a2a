"""Saves a model's parameters to one file over POSIX, reads them back and compares.

Many tensors go to one file in one transfer: the file's single descriptor is as long as all tensors
together, so it is split to match them. Reading back is the same with READ. Uses torch where it is
installed, else NumPy. Exit status 0 when every tensor came back as it was.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from typing import Any

from nixl._api import nixl_agent, nixl_agent_config
from nixl.errors import nixlError

try:
    import torch
except ImportError:
    torch = None


def make_parameters(layers: int, width: int) -> list[Any]:
    """The parameters of a model: torch tensors, or NumPy arrays of the same shapes."""
    if torch is not None:
        blocks = [torch.nn.Linear(width, width) for _ in range(layers)]
        model = torch.nn.Sequential(*blocks, torch.nn.LayerNorm(width))
        return [p.data for p in model.parameters()]
    import numpy

    random = numpy.random.default_rng(1)
    shapes = [(width, width), (width,)] * layers + [(width,), (width,)]
    return [random.standard_normal(shape, dtype=numpy.float32) for shape in shapes]


def like(parameters: list[Any]) -> list[Any]:
    """Fresh tensors of the same shapes, filled with something else."""
    return [p * 0 - 1 for p in parameters]


def equal(left: Any, right: Any) -> bool:
    return bool((left == right).all())


def nbytes(tensor: Any) -> int:
    return int(
        tensor.nbytes if hasattr(tensor, "nbytes") else tensor.numel() * tensor.element_size()
    )


def move(agent: nixl_agent, operation: str, memory: Any, file: Any) -> str:
    """One transfer from start to end; a line about it."""
    handle = agent.initialize_xfer(operation, memory, file, agent.name)
    started = time.perf_counter()
    agent.transfer(handle)
    handle.wait(timeout=120)
    seconds = time.perf_counter() - started
    told = agent.explain(handle)
    agent.release_xfer_handle(handle)
    speed = told["bytes"] / seconds / 1e9
    return (
        f"{operation:5s} {told['bytes']:,} bytes in {seconds * 1e3:.1f} ms ({speed:.2f} GB/s), "
        f"{told['descriptors']} descriptors, backend {told['backend']}"
    )


def save_and_restore(path: pathlib.Path, parameters: list[Any]) -> list[Any]:
    """Writes the parameters to `path` and returns what reading it gives."""
    total = sum(nbytes(p) for p in parameters)
    with nixl_agent("checkpoint_agent", nixl_agent_config(backends=["POSIX"])) as agent:
        with open(path, "w+b") as file:
            # The guide's form: (offset, length, file descriptor, label).
            where = [(0, total, file.fileno(), str(path))]
            file_descs = agent.register_memory(agent.get_reg_descs(where, "FILE"))
            reg_descs = agent.register_memory(parameters)
            print(move(agent, "WRITE", reg_descs, file_descs))
            agent.deregister_memory(reg_descs)
            agent.deregister_memory(file_descs)
        # As another run would: the file is opened by name, the tensors are new.
        restored = like(parameters)
        where = [(0, total, 1, f"ro:{path}")]
        with (
            agent.register_memory(where, "FILE") as file,
            agent.register_memory(restored) as memory,
        ):
            print(move(agent, "READ", memory, file))
    return restored


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--file", type=pathlib.Path, help="where to write (default: temporary)")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    parameters = make_parameters(args.layers, args.width)
    print(f"{len(parameters)} tensors of {'torch' if torch is not None else 'NumPy'}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = args.file or pathlib.Path(folder) / "checkpoint.bin"
            restored = save_and_restore(path, parameters)
    except (nixlError, OSError) as error:
        print(f"checkpoint: {error}", file=sys.stderr)
        return 1
    different = [i for i, p in enumerate(parameters) if not equal(p, restored[i])]
    print(f"different: tensors {different}" if different else "all tensors came back as they were")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
