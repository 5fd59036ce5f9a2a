"""SGLang's own cache controller, with its threads, factory, host pools and reader of the extra
configuration, over our connector as the dynamic backend and over its own connector `nixl`."""

from __future__ import annotations

import json
import queue
import time

import pytest
from sglang_parts import make_controller, make_pool

torch = pytest.importorskip("torch")

DYNAMIC = {
    "backend_name": "nixl",
    "module_path": "nixl.hicache.hicache_nixl",
    "class_name": "HiCacheNixl",
    "interface_v1": 1,
}
PAGES = 40
DEADLINE = 60.0


def as_toml(values: dict) -> str:
    def word(value):
        return json.dumps(value)

    lines = [f"{k} = {word(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for name, section in values.items():
        if name == "plugin":
            for plugin, keys in section.items():
                lines += [f"[plugin.{plugin}]", *(f"{k} = {word(v)}" for k, v in keys.items())]
        elif isinstance(section, dict):
            lines += [f"[{name}]", *(f"{k} = {word(v)}" for k, v in section.items())]
    return "\n".join(lines) + "\n"


def extra_config(form: str, folder, values: dict) -> str:
    """What follows --hicache-storage-backend-extra-config, in one of the guide's forms."""
    if form == "inline":
        return json.dumps(values)
    if form == "yaml":
        yaml = pytest.importorskip("yaml")
        text = yaml.safe_dump(values)
    else:
        text = as_toml(values) if form == "toml" else json.dumps(values)
    path = folder / f"config.nixl.{form}"
    path.write_text(text)
    return f"@{path}"


class Server:
    """Drives a controller as the scheduler does."""

    def __init__(self, whole, pool, backend: str, extra: str):
        self.whole = whole
        self.pool = pool
        self.controller = make_controller(whole, pool, backend, extra)
        self.storage = self.controller.storage_backend

    def indices(self, pages: list[int]):
        size = self.pool.page_size
        starts = torch.tensor(pages, dtype=torch.int64) * size
        return (starts[:, None] + torch.arange(size)).reshape(-1)

    def fill(self, pages: list[int], seed: int) -> list:
        """New content of pages; gives it, flat, page by page."""
        generator = torch.Generator().manual_seed(seed)
        out = []
        for page in pages:
            flat = self.pool.get_dummy_flat_data_page()
            flat.copy_(torch.rand(flat.shape, generator=generator))
            self.pool.set_from_flat_data_page(page * self.pool.page_size, flat)
            out.append(flat)
        return out

    def content(self, pages: list[int]) -> list:
        return [self.pool.get_data_page(p * self.pool.page_size).clone() for p in pages]

    def backup(self, pages: list[int], tokens: list[int]) -> int:
        """Hands pages to the backup thread; gives the operation's number."""
        hashes = self.whole.hashes(tokens, None, page_size=self.pool.page_size)
        return self.controller.write_storage(self.indices(pages), tokens, hash_value=hashes)

    def backed_up(self):
        return self.controller.ack_backup_queue.get(timeout=DEADLINE)

    def prefetch(self, name: str, pages: list[int], tokens: list[int]) -> int:
        """Asks for tokens into pages; gives how many tokens came, in whole pages."""
        operation = self.whole.controller.PrefetchOperation(name, tokens)
        self.controller.prefetch_queue.put(operation)
        operation = self.controller.prefetch_hit_queue.get(timeout=DEADLINE)
        found = operation.storage_hit_count // self.pool.page_size
        operation.host_indices = self.indices(pages[:found])
        self.controller.prefetch_buffer.put(operation)
        done = 0
        while True:
            ack = self.controller.ack_prefetch_queue.get(timeout=DEADLINE)
            if ack.completed_req:
                return done
            done = max(done, ack.completed_tokens or 0)

    def close(self) -> None:
        self.controller.detach_storage_backend()


@pytest.fixture
def serve(whole, tmp_path, monkeypatch):
    servers = []
    monkeypatch.setenv("SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", str(tmp_path / "store"))
    for name in ("SGLANG_HICACHE_NIXL_BACKEND_PLUGIN_TYPE", "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN"):
        monkeypatch.delenv(name, raising=False)

    def build(backend: str, layout: str, form: str, pages: int = PAGES, **config) -> Server:
        config.setdefault("l3_cleaner_enabled", False)
        if backend == "dynamic":
            config = {**DYNAMIC, **config}
        extra = extra_config(form, tmp_path, config)
        servers.append(Server(whole, make_pool(whole, layout, pages), backend, extra))
        return servers[-1]

    yield build
    for server in servers:
        server.close()


POSIX = {"plugin": {"posix": {"use_uring": "true", "active": True}}}
CASES = [
    ("nixl", "page_first", "toml", POSIX),
    ("nixl", "layer_first", "json", POSIX),
    ("nixl", "page_first_direct", "inline", {"use_uring": "true"}),
    ("nixl", "layer_first", "yaml", POSIX),
    ("dynamic", "page_first", "toml", {"hicache": {"layout": "packed"}, **POSIX}),
    ("dynamic", "layer_first", "yaml", {"hicache": {"layout": "files"}}),
    ("dynamic", "page_first_direct", "json", {"hicache": {"verify": "true"}}),
    ("dynamic", "page_first", "inline", {"use_uring": "true", "use_direct_io": False}),
    ("dynamic", "layer_first", "inline", {}),
    ("dynamic", "page_first", "inline", {"interface_v1": 0}),
    ("dynamic", "layer_first", "inline", {"interface_v1": 0}),
]


@pytest.mark.parametrize(
    ("backend", "layout", "form", "config"), CASES, ids=[f"{b}-{p}-{f}" for b, p, f, _ in CASES]
)
def test_the_controller_backs_up_and_prefetches(serve, backend, layout, form, config):
    server = serve(backend, layout, form, **config)
    size = server.pool.page_size
    old, new = list(range(10)), list(range(10, 20))
    tokens = list(range(10 * size))
    written = server.fill(old, 1)
    server.fill(new, 2)
    server.backup(old, tokens)
    assert server.backed_up().completed_tokens == len(tokens)
    # Two pages more than are stored, into other places.
    more = tokens + [7] * (2 * size)
    assert server.prefetch("first", [*new, 20, 21], more) == len(tokens)
    for wanted, found in zip(written, server.content(new), strict=True):
        assert torch.equal(wanted, found)
    assert server.prefetch("nothing", [22, 23], [9] * (2 * size)) == 0
    server.controller.storage_backend.clear()
    assert server.prefetch("cleared", new, tokens) == 0


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
@pytest.mark.parametrize("backend", ["nixl", "dynamic"])
def test_backup_and_prefetch_run_at_once(serve, backend, layout):
    server = serve(backend, layout, "inline", **POSIX)
    size = server.pool.page_size
    sources, targets = list(range(16)), list(range(16, 32))
    stored = []
    for round_ in range(6):  # each prefetch runs beside the backup of the next batch
        tokens = [1000 * round_ + i for i in range(len(sources) * size)]
        written = server.fill(sources, round_)
        server.backup(sources, tokens)
        if stored:
            before, wanted = stored[-1]
            assert server.prefetch(f"round{round_}", targets, before) == len(before)
            for one, other in zip(wanted, server.content(targets), strict=True):
                assert torch.equal(one, other)
        assert server.backed_up().completed_tokens == len(tokens)
        stored.append((tokens, written))
    for tokens, wanted in stored:
        assert server.prefetch("again", targets, tokens) == len(tokens)
        for one, other in zip(wanted, server.content(targets), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(queue.Empty):
        server.controller.ack_prefetch_queue.get_nowait()


@pytest.mark.parametrize("backend", ["nixl", "dynamic"])
@pytest.mark.parametrize("layout", ["page_first", "page_first_direct", "layer_first"])
def test_several_pools_by_version_2(whole, serve, backend, layout):
    storage = whole.storage
    server = serve(backend, layout, "inline", **POSIX)
    side = make_pool(whole, layout if layout != "layer_first" else "page_first", PAGES)
    server.storage.register_mem_host_pool_v2(side, storage.PoolName.SWA)
    keys = [f"{i:064x}" for i in range(8)]
    indices = server.indices(list(range(8)))
    server.fill(list(range(8)), 1)
    side.kv_buffer.copy_(torch.rand(side.kv_buffer.shape))
    before = server.pool.kv_buffer.clone(), side.kv_buffer.clone()

    def transfer(count: int, policy=storage.PoolHitPolicy.ALL_PAGES):
        return storage.PoolTransfer(
            name=storage.PoolName.SWA, keys=keys[:count], hit_policy=policy,
            host_indices=indices[: count * server.pool.page_size],
        )  # fmt: skip

    assert server.storage.batch_set_v1(keys, indices) == [True] * 8
    assert server.storage.batch_set_v2([transfer(5)]) == {"swa": [True] * 5}
    found = server.storage.batch_exists_v2(keys, [transfer(8)])
    assert (found.kv_hit_pages, found.extra_pool_hit_pages) == (5, {"kv": 8, "swa": 5})
    trailing = transfer(2, storage.PoolHitPolicy.TRAILING_PAGES)
    assert server.storage.batch_exists_v2(keys, [trailing]).kv_hit_pages == 5
    server.pool.kv_buffer.zero_()
    side.kv_buffer.zero_()
    assert server.storage.batch_get_v1(keys, indices) == [True] * 8
    assert server.storage.batch_get_v2([transfer(5)]) == {"swa": [True] * 5}
    assert server.storage.batch_get_v2([transfer(6)])["swa"].count(True) < 6
    filled = server.content(list(range(8)))
    server.pool.kv_buffer.copy_(before[0])
    for one, other in zip(server.content(list(range(8))), filled, strict=True):
        assert torch.equal(one, other)
    for page in range(5):
        found = side.get_data_page(page * side.page_size).clone()
        saved, side.kv_buffer = side.kv_buffer, before[1]
        assert torch.equal(side.get_data_page(page * side.page_size), found)
        side.kv_buffer = saved


def test_the_controller_attaches_again_after_it_was_detached(serve):
    server = serve("dynamic", "page_first", "inline")
    size = server.pool.page_size
    tokens = list(range(4 * size))
    written = server.fill([0, 1, 2, 3], 5)
    server.backup([0, 1, 2, 3], tokens)
    server.backed_up()
    began = time.monotonic()
    server.controller.detach_storage_backend()
    assert time.monotonic() - began < 30
    server.controller.attach_storage_backend(
        "dynamic", model_name="org/model", storage_backend_extra_config=dict(DYNAMIC)
    )
    assert server.prefetch("after", [4, 5, 6, 7], tokens) == len(tokens)
    for one, other in zip(written, server.content([4, 5, 6, 7]), strict=True):
        assert torch.equal(one, other)
