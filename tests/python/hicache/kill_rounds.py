"""Kills a process in the middle of batch_set, again and again, and checks what is found after.

    python kill_rounds.py DIRECTORY LAYOUT ROUNDS SEED

Prints the seed and one line at the end; exit status 1 if an acknowledged key was lost or any key
came back with wrong bytes. The parent never opens an agent, so every child starts clean.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
import sys
import time

import numpy as np
from hicache_support import hicache_section
from nixl.hicache import HiCacheNixl

SIZES = [64, 4096, 5000, 16384]


def payload(key: str) -> np.ndarray:
    """The only right bytes of a key."""
    number = int(key.rsplit("-", 1)[1])
    block = hashlib.blake2b(key.encode(), digest_size=64).digest()
    size = SIZES[number % len(SIZES)]
    return np.frombuffer((block * (size // 64 + 1))[:size], dtype=np.uint8)


def open_connector(path: str, layout: str) -> HiCacheNixl:
    section = hicache_section(layout, verify="true")
    return HiCacheNixl(path, "POSIX", config={"hicache": section})


def keys_of(round_: int, first: int, count: int) -> list[str]:
    return [f"round{round_}-{i}" for i in range(first, first + count)]


def setter(path: str, layout: str, round_: int, seed: int, acks: int) -> None:
    rng = random.Random(seed)
    connector = open_connector(path, layout)
    os.write(acks, struct.pack("<II", 0, 0))  # about to begin
    first = 0
    while True:
        count = rng.choice([1, 3, 16, 64])
        keys = keys_of(round_, first, count)
        if not connector.batch_set(keys, [payload(key) for key in keys]):
            os._exit(3)
        os.write(acks, struct.pack("<II", first, count))
        first += count


def verifier(path: str, layout: str, wanted: list[str], unsure: list[str]) -> int:
    connector = open_connector(path, layout)
    bad = 0
    for keys, must in ((wanted, True), (unsure, False)):
        targets = [np.zeros(payload(key).size, dtype=np.uint8) for key in keys]
        for key, found in zip(keys, connector.batch_get(keys, targets), strict=True):
            if found is None:
                if must:
                    print(f"lost: {key} was acknowledged", file=sys.stderr)
                    bad += 1
            elif not np.array_equal(found, payload(key)):
                print(f"wrong bytes: {key}", file=sys.stderr)
                bad += 1
    if connector.get_stats()["corrupt"] and layout != "files":
        print("an acknowledged folder was corrupt", file=sys.stderr)
        bad += 1
    connector.close()
    return bad


def in_child(call, *arguments) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 1 if call(*arguments) else 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def one_round(path: str, layout: str, round_: int, rng: random.Random) -> tuple[int, list[str]]:
    """Starts a setter, kills it at a random moment; gives how far it got and its last batch."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            setter(path, layout, round_, rng.randrange(1 << 30), writing)
        finally:
            os._exit(2)
    os.close(writing)
    acks = os.read(reading, 8)
    while len(acks) == 8 and rng.random() < 0.9:  # mostly once something was acknowledged
        acks += os.read(reading, 8)
    time.sleep(rng.random() ** 2 * 0.05)  # sleeps: to kill it at any moment
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reading, 1 << 16):
        acks += piece
    os.close(reading)
    if len(acks) < 8:
        raise SystemExit(f"round {round_}: the setter ended before it began")
    first, count = struct.unpack("<II", acks[len(acks) // 8 * 8 - 8 : len(acks) // 8 * 8])
    return first + count, keys_of(round_, first + count, 64)


def main() -> int:
    path, layout, rounds, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    print(f"seed {seed}")
    rng = random.Random(seed)
    acknowledged: list[str] = []
    bad = 0
    for round_ in range(rounds):
        done, unsure = one_round(path, layout, round_, rng)
        fresh = keys_of(round_, 0, done)
        older = rng.sample(acknowledged, min(50, len(acknowledged)))
        bad += in_child(verifier, path, layout, fresh + older, unsure)
        acknowledged += fresh
    bad += in_child(verifier, path, layout, acknowledged, [])
    print(f"{layout}: {rounds} kills, {len(acknowledged)} acknowledged keys, {bad} bad rounds")
    return 1 if bad or not acknowledged else 0


if __name__ == "__main__":
    sys.exit(main())
