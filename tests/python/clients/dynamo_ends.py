"""Dynamo's senders and receivers of embeddings over this package, in two processes.

Run as a program: `dynamo_ends.py receive` starts the sender as its child; one line of JSON a tensor
goes between them. The senders, the receivers and their buffers are Dynamo's code as published;
hollow is its runtime around them. Exits with 0 when everything was as it should be.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

import hollow

COUNT = 24


def transfers():
    sys.meta_path.insert(0, hollow.HollowFinder(["dynamo.runtime", "safetensors"]))
    hollow.without_their_init("dynamo", "common", "common.multimodal", "common.utils")
    import torch
    from dynamo.common.multimodal import embedding_transfer

    if not hasattr(torch.Tensor, "nbytes"):  # torch < 2.1
        torch.Tensor.nbytes = property(lambda tensor: tensor.numel() * tensor.element_size())
    return embedding_transfer


def tensor_of(number: int):
    import torch

    kinds = [torch.float16, torch.float32, torch.bfloat16]
    values = torch.arange((number % 7 + 1) * 640) + number
    return values.reshape(-1, 640).to(kinds[number % 3])


async def send() -> None:
    sender = transfers().NixlWriteEmbeddingSender()
    ends = []
    for number in range(COUNT):
        request, sent = await sender.send_embeddings(tensor_of(number), stage_embeddings=True)
        print(request.model_dump_json(), flush=True)
        ends.append(sent)
    await asyncio.wait_for(asyncio.gather(*ends), 60)
    await asyncio.to_thread(sys.stdin.read)


async def receive() -> None:
    import torch

    module = transfers()
    receiver = module.NixlWriteEmbeddingReceiver(buffer_size=1 << 20)
    child = subprocess.Popen(
        [sys.executable, __file__, "send"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [await asyncio.to_thread(child.stdout.readline) for _ in range(COUNT)]

    async def one(number: int, line: str) -> None:
        request = module.TransferRequest.model_validate_json(line)
        name, got = await receiver.receive_embeddings(request)
        wanted = tensor_of(number)
        assert got.dtype == wanted.dtype and torch.equal(got, wanted), number
        receiver.release_tensor(name)

    await asyncio.gather(*(one(number, line) for number, line in enumerate(lines)))
    child.stdin.close()
    assert await asyncio.to_thread(child.wait) == 0


if __name__ == "__main__":
    asyncio.run({"send": send, "receive": receive}[sys.argv[1]]())
    print("as it should be", flush=True)
