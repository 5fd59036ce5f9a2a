"""A small transformer over a paged KV cache, in NumPy: RMS norm, rotary positions, grouped-query
attention, gated MLP; its weights come from a seed, so that every process has the same ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Shape:
    vocabulary: int = 512
    width: int = 128
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 16
    hidden: int = 256
    page_size: int = 8
    pages: int = 256


class PagedCache:
    """K and V of every layer: [page, token, head, number]; the pages are handed out and taken."""

    def __init__(self, shape: Shape) -> None:
        size = (shape.pages, shape.page_size, shape.kv_heads, shape.head_dim)
        self.shape = shape
        self.k = [np.zeros(size, np.float32) for _ in range(shape.layers)]
        self.v = [np.zeros(size, np.float32) for _ in range(shape.layers)]
        self.free = list(range(shape.pages))

    def take(self, tokens: int) -> list[int]:
        count = -(-tokens // self.shape.page_size)
        if count > len(self.free):
            raise MemoryError(f"{count} pages are needed, {len(self.free)} are free")
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def give(self, pages: list[int]) -> None:
        self.free += pages

    def rows(self, buffer: Floats, pages: Sequence[int], tokens: int) -> Floats:
        """The first tokens of these pages, one after the other."""
        whole = buffer[list(pages)]
        return whole.reshape(-1, *whole.shape[2:])[:tokens]


class Transformer:
    def __init__(self, shape: Shape, seed: int = 7) -> None:
        random = np.random.default_rng(seed)

        def weight(*size: int) -> Floats:
            return (random.standard_normal(size) / np.sqrt(size[0])).astype(np.float32)

        self.shape = shape
        inner, outer = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.embedding = weight(shape.vocabulary, shape.width) * np.float32(8)
        self.layers: list[dict[str, Any]] = [
            {
                "q": weight(shape.width, inner),
                "k": weight(shape.width, outer),
                "v": weight(shape.width, outer),
                "o": weight(inner, shape.width),
                "gate": weight(shape.width, shape.hidden),
                "up": weight(shape.width, shape.hidden),
                "down": weight(shape.hidden, shape.width),
            }
            for _ in range(shape.layers)
        ]
        self.head = weight(shape.width, shape.vocabulary)

    def forward(
        self,
        tokens: Sequence[int],
        start: int,
        cache: PagedCache,
        pages: list[int],
        layer_done: Callable[[int], None] = lambda _: None,
    ) -> Floats:
        """Scores of what follows the last token. `tokens` stand at positions from `start` on; what
        is before them is in the cache, where theirs are added."""
        shape = self.shape
        at = np.arange(start, start + len(tokens))
        page, slot = np.array(pages)[at // shape.page_size], at % shape.page_size
        x = self.embedding[np.array(tokens)]
        for number, layer in enumerate(self.layers):
            y = _norm(x)
            q = _turn((y @ layer["q"]).reshape(len(at), shape.heads, shape.head_dim), at)
            k = _turn((y @ layer["k"]).reshape(len(at), shape.kv_heads, shape.head_dim), at)
            cache.k[number][page, slot] = k
            cache.v[number][page, slot] = (y @ layer["v"]).reshape(k.shape)
            layer_done(number)  # nothing of this layer's cache changes any more
            end = start + len(tokens)
            keys = cache.rows(cache.k[number], pages, end)
            values = cache.rows(cache.v[number], pages, end)
            x = x + _attention(q, keys, values, at) @ layer["o"]
            y = _norm(x)
            gate = y @ layer["gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up"])) @ layer["down"]
        scores: Floats = _norm(x[-1:])[0] @ self.head
        return scores


def _norm(x: Floats) -> Floats:
    out: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return out


def _turn(x: Floats, at: npt.NDArray[np.int64]) -> Floats:
    half = x.shape[-1] // 2
    angle = at[:, None] / 10000 ** (np.arange(half) / half)
    cos, sin = (f(angle)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def _attention(q: Floats, k: Floats, v: Floats, at: npt.NDArray[np.int64]) -> Floats:
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(q.shape[-1]))
    scores = np.where(np.arange(len(k))[None, None] <= at[None, :, None], scores, np.float32(-1e9))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", scores, v).reshape(len(at), -1)


def prefill(
    model: Transformer,
    prompt: list[int],
    cache: PagedCache,
    pages: list[int],
    chunk: int,
    layer_done: Callable[[int, int, int], None] = lambda *_: None,
) -> int:
    """The first new token; chunk after chunk, `layer_done(start, end, layer)` after each layer."""
    scores = np.zeros(1, np.float32)
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]

        def done(layer: int, start: int = start, end: int = start + len(part)) -> None:
            layer_done(start, end, layer)

        scores = model.forward(part, start, cache, pages, done)
    return int(scores.argmax())


def decode(
    model: Transformer, first: int, start: int, count: int, cache: PagedCache, pages: list[int]
) -> list[int]:
    """`count` tokens, of which the first is known; `start` tokens are in the cache."""
    out = [first]
    while len(out) < count:
        scores = model.forward([out[-1]], start + len(out) - 1, cache, pages)
        out.append(int(scores.argmax()))
    return out
