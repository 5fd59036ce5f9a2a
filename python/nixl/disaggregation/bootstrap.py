"""Where prefill ranks tell their address and decode ranks ask for it: a small HTTP server.

    PUT  /route    a rank's registration (JSON); repeated, since it is forgotten after `lease` s
    GET  /route?engine_rank=R&target_dp_group=D&target_pp_rank=P    one rank; -1 in all three: sizes
    GET  /ranks    all ranks, in one answer
    GET  /health   "OK"; GET /metrics in the text format of Prometheus

Clients are the standard library's; the server needs aiohttp.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from typing import Any

from ..logging import get_logger

logger = get_logger("nixl.disaggregation")

_LONGEST = 1 << 24  # bytes of an answer
SIZES = ("tp_size", "dp_size", "pp_size")
_FIELDS: dict[str, tuple[type, int, int]] = {
    "tp_size": (int, 1, 65536),
    "dp_size": (int, 1, 65536),
    "pp_size": (int, 1, 65536),
    "tp_rank": (int, 0, 65535),
    "dp_rank": (int, 0, 65535),
    "pp_rank": (int, 0, 65535),
    "heads": (int, 0, 65536),
    "page_size": (int, 0, 1 << 30),
    "first_layer": (int, 0, 1 << 20),
    "layers": (int, 0, 1 << 20),
    "rank_port": (int, 1, 65535),
    "rank_ip": (str, 1, 256),
    "instance": (str, 1, 64),
    "mla": (bool, 0, 1),
}


class BadRegistration(ValueError):
    """Says which field is wrong."""


def check_registration(row: Any) -> dict[str, Any]:
    """The known fields of a rank's registration; BadRegistration names one that is wrong."""
    if not isinstance(row, dict):
        raise BadRegistration("a registration must be a JSON object")
    out: dict[str, Any] = {}
    for name, (kind, low, high) in _FIELDS.items():
        if name not in row:
            raise BadRegistration(f"{name} is missing")
        value: Any = row[name]
        size = len(value) if isinstance(value, str) else value
        if type(value) is not kind or not low <= int(size) <= high:
            raise BadRegistration(f"{name}: {value!r:.80} is wrong")
        out[name] = value
    for axis in ("tp", "dp", "pp"):
        rank, ranks = out[f"{axis}_rank"], out[f"{axis}_size"]
        if rank >= ranks:
            raise BadRegistration(f"{axis}_rank {rank} is not below {axis}_size {ranks}")
    return out


class NixlKVBootstrapServer:
    """Runs on a thread of its own from the constructor on. `NixlKVBootstrapServer(port)` or
    `(host, port)`; port 0 takes a free one, `self.port`."""

    def __init__(self, host: str | int = "127.0.0.1", port: int | None = None, lease: float = 10.0):
        if isinstance(host, int):
            port = host if port is None else port
            host = "0.0.0.0"
        if not isinstance(host, str) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ValueError(f"not an address to listen at: host {host!r}, port {port!r}")
        try:
            from aiohttp import web
        except ImportError as error:
            raise ImportError(
                "the bootstrap server needs aiohttp: pip install nixl[disaggregation]"
            ) from error
        self._web, self.host, self.port, self._lease = web, host, port, lease
        self._rows: dict[tuple[int, int, int], tuple[dict[str, Any], float]] = {}
        self._counts = {"registrations": 0, "questions": 0, "refused": 0}
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nixl-bootstrap", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise OSError(f"cannot listen at {host}:{port}: {self._error}") from self._error

    @property
    def address(self) -> str:
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    def run(self) -> None:
        """Nothing: it runs already (SGLang's launcher calls this)."""

    def close(self) -> None:
        if self._thread.is_alive() and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def __enter__(self) -> NixlKVBootstrapServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        web = self._web
        app = web.Application(client_max_size=1 << 16)
        app.router.add_put("/route", self._put)
        app.router.add_get("/route", self._get)
        app.router.add_get("/ranks", self._ranks)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        self._stop = asyncio.Event()
        try:
            site = web.TCPSite(runner, self.host, self.port)
            await site.start()
            self.port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    def _alive(self) -> dict[tuple[int, int, int], dict[str, Any]]:
        now = time.monotonic()
        for key, (_, until) in list(self._rows.items()):
            if until < now:
                del self._rows[key]
        return {key: row for key, (row, _) in self._rows.items()}

    async def _health(self, _: Any) -> Any:
        return self._web.Response(text="OK")

    async def _metrics(self, _: Any) -> Any:
        lines = [f"nixl_bootstrap_{name}_total {n}" for name, n in self._counts.items()]
        lines.append(f"nixl_bootstrap_ranks {len(self._alive())}")
        return self._web.Response(text="\n".join(lines) + "\n")

    async def _put(self, request: Any) -> Any:
        try:
            row = check_registration(json.loads(await request.text()))
            key = (row["dp_rank"], row["tp_rank"], row["pp_rank"])
            for where, other in self._alive().items():
                for name in SIZES:
                    if where != key and other[name] != row[name]:
                        raise BadRegistration(
                            f"{name} {row[name]} differs from {other[name]} of the other ranks"
                        )
        except (ValueError, RecursionError) as error:
            self._counts["refused"] += 1
            return self._web.Response(status=400, text=str(error))
        self._counts["registrations"] += 1
        self._rows[key] = (row, time.monotonic() + self._lease)
        return self._web.Response(text="OK")

    def _numbers(self, request: Any, *names: str) -> list[int]:
        out = []
        for name in names:
            text = request.query.get(name, "")
            try:
                out.append(int(text))
            except ValueError:
                raise BadRegistration(f"{name}: {text!r:.80} is not a number") from None
        return out

    async def _get(self, request: Any) -> Any:
        self._counts["questions"] += 1
        try:
            names = ("engine_rank", "target_dp_group", "target_pp_rank")
            tp, dp, pp = self._numbers(request, *names)
        except BadRegistration as error:
            return self._web.Response(status=400, text=str(error))
        rows = self._alive()
        if tp == dp == pp == -1:
            first = next(iter(rows.values()), None)
            if first is None:
                return self._web.Response(status=404, text="no rank has registered")
            return self._web.json_response(
                {
                    "prefill_attn_tp_size": first["tp_size"],
                    "prefill_dp_size": first["dp_size"],
                    "prefill_pp_size": first["pp_size"],
                }
            )
        row = rows.get((dp, tp, pp))
        if row is None:
            return self._web.Response(status=404, text=f"no rank {tp} of group {dp}, stage {pp}")
        return self._web.json_response(row)

    async def _ranks(self, _: Any) -> Any:
        self._counts["questions"] += 1
        rows = list(self._alive().values())
        if not rows:
            return self._web.Response(status=404, text="no rank has registered")
        return self._web.json_response({"ranks": rows})


def _call(address: str, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
    try:
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            data = answer.read(_LONGEST)
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConnectionError(str(error) or type(error).__name__) from None
    if answer.status != 200:
        text = data[:500].decode(errors="replace")
        raise ConnectionError(f"{answer.status} {text}")
    return data


def put_route(address: str, row: dict[str, Any], timeout: float) -> None:
    """Registers a rank; ConnectionError says why not."""
    _call(address, "PUT", "/route", json.dumps(row).encode(), timeout)


def get_ranks(address: str, timeout: float) -> list[dict[str, Any]]:
    """All ranks that have registered; ConnectionError says why not."""
    data = _call(address, "GET", "/ranks", None, timeout)
    try:
        return [check_registration(row) for row in json.loads(data)["ranks"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConnectionError(f"an answer that is not a bootstrap server's: {error}") from None
