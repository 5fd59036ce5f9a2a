"""The prefill side: computes a prompt's KV cache and sends it to the decode server that asks for
the room. Answers with the first token as soon as the pages are handed over."""

from __future__ import annotations

import json
import os
import sys

# The server's Python leaves this variable out.
sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from nixl.disaggregation import KVPoll, NixlKVSender  # noqa: E402
from nixl.disaggregation.demo.model import prefill  # noqa: E402
from nixl.disaggregation.demo.rank import CHUNK, Server  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        port = parameters["BOOTSTRAP_PORT"]["string_value"]
        # A small transformer, its paged cache, a bootstrap server and a NixlKVManager.
        self.server = Server("prefill", int(os.environ.get("NIXL_BOOTSTRAP_PORT", port)))
        self.address = f"127.0.0.1:{self.server.port}"
        self.sent: list[tuple[NixlKVSender, list[int], int]] = []

    def execute(self, requests: list) -> list:
        self.give_back()
        return [self.answer(request) for request in requests]

    def answer(self, request):
        server, prompt, sender = self.server, ints(request, "PROMPT"), None
        if not prompt or min(prompt) < 0 or max(prompt) >= server.shape.vocabulary:
            words = f"PROMPT: tokens from 0 to {server.shape.vocabulary - 1}, at least one"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(words))
        try:
            sender = NixlKVSender(server.manager, self.address, ints(request, "ROOM")[0])
            pages, slot = server.cache.take(len(prompt)), server.slots.pop()
        except (ValueError, MemoryError, IndexError) as error:
            if sender is not None:
                sender.clear()
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"prefill: {error}"))
        sender.init(len(pages), slot)
        first = prefill(server.model, prompt, server.cache, pages, CHUNK)
        server.first[slot] = first
        sender.send(np.array(pages, np.int32))
        self.sent.append((sender, pages, slot))
        return pb_utils.InferenceResponse([pb_utils.Tensor("FIRST", np.array([first], np.int32))])

    def give_back(self) -> None:
        """Pages of rooms that are over may be used again."""
        kept = []
        for sender, pages, slot in self.sent:
            if sender.poll() in (KVPoll.Success, KVPoll.Failed):
                sender.clear()
                self.server.cache.give(pages)
                self.server.slots.append(slot)
            else:
                kept.append((sender, pages, slot))
        self.sent = kept

    def finalize(self) -> None:
        self.server.manager.close()
        self.server.bootstrap.close()


def ints(request, name: str) -> list[int]:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().tolist()
