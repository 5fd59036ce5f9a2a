"""The decode side: asks the prefill server for a room's pages and goes on from them."""

from __future__ import annotations

import os
import sys
import time

# The server's Python leaves this variable out.
sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from nixl.disaggregation import KVPoll, KVTransferError, NixlKVReceiver  # noqa: E402
from nixl.disaggregation.demo.model import decode  # noqa: E402
from nixl.disaggregation.demo.rank import Server  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.server = Server("decode", 0)  # a receiver names the bootstrap server
        self.stopping: list[tuple[NixlKVReceiver, list[int], int]] = []

    def execute(self, requests: list) -> list:
        self.give_back()
        begun = [self.begin(request) for request in requests]  # so that their pages come together
        return [one if len(words) == 0 else self.finish(one, *words) for one, *words in begun]

    def begin(self, request) -> tuple:
        """A receiver, its pages, its slot and what was asked for; or an answer that says why
        not."""
        server, receiver = self.server, None
        try:
            prompt, count = len(ints(request, "PROMPT")), ints(request, "COUNT")[0]
            if not 0 < count <= 4096 or not prompt:
                raise ValueError(f"PROMPT of {prompt} tokens, COUNT {count}: not 1 or more")
            where = pb_utils.get_input_tensor_by_name(request, "PREFILL").as_numpy()[0].decode()
            receiver = NixlKVReceiver(server.manager, where, ints(request, "ROOM")[0])
            pages, slot = server.cache.take(prompt + count), server.slots.pop()
        except (ValueError, MemoryError, IndexError) as error:
            if receiver is not None:
                receiver.clear()
            error = pb_utils.TritonError(f"decode: {error}")
            return (pb_utils.InferenceResponse(error=error),)
        filled = pages[: -(-prompt // server.shape.page_size)]
        receiver.init(np.array(filled, np.int32), slot)
        return receiver, pages, slot, prompt, count

    def finish(
        self, receiver: NixlKVReceiver, pages: list[int], slot: int, prompt: int, count: int
    ):
        server = self.server
        while receiver.poll() not in (KVPoll.Success, KVPoll.Failed):
            time.sleep(0.0005)
        try:
            receiver.failure_exception()
            first = int(server.first[slot][0])
            tokens = decode(server.model, first, prompt, count, server.cache, pages)
        except KVTransferError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        finally:
            self.stopping.append((receiver, pages, slot))
            self.give_back()
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOKENS", np.array(tokens, np.int32))])

    def give_back(self) -> None:
        """Pages of a room that failed are used again once nobody writes to them any more."""
        kept = []
        for receiver, pages, slot in self.stopping:
            if receiver.is_abort_release_safe():
                receiver.clear()
                self.server.cache.give(pages)
                self.server.slots.append(slot)
            else:
                kept.append((receiver, pages, slot))
        self.stopping = kept

    def finalize(self) -> None:
        self.server.manager.close()


def ints(request, name: str) -> list[int]:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().tolist()
