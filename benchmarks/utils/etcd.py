"""The few calls of etcd that a rendezvous needs, through the JSON gateway of its version 3.

Endpoints, users and certificates are written as for the library (docs/configuration.md): URLs
separated by commas, and NIXL_ETCD_USER, _PASSWORD, _PASSWORD_FILE, _CA, _CERT, _KEY. The next
server is asked where one does not answer. Any thread may call.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from .errors import Refused

_SECONDS = 5.0  # one call


def _text(data: str) -> str:
    return base64.b64encode(data.encode()).decode()


def _setting(name: str) -> str:
    return os.environ.get(f"NIXL_ETCD_{name}", "")


def _password() -> str:
    path = _setting("PASSWORD_FILE")
    if not path:
        return _setting("PASSWORD")
    try:
        return pathlib.Path(path).read_text().rstrip("\r\n")
    except OSError as error:
        raise Refused(f"NIXL_ETCD_PASSWORD_FILE {path}: {error.strerror}") from error


def _trust(authority: str, certificate: str, key: str) -> ssl.SSLContext:
    try:
        made = ssl.create_default_context(cafile=authority or None)
        if certificate:
            made.load_cert_chain(certificate, key or None)
        return made
    except OSError as error:  # SSLError is one
        files = ", ".join(name for name in (authority, certificate, key) if name)
        raise Refused(f"NIXL_ETCD_CA, _CERT, _KEY ({files}): {error}") from error


class _Endpoint:
    """One server."""

    def __init__(self, url: str, secure: bool) -> None:
        scheme = "https" if secure else "http"
        parts = urllib.parse.urlsplit(url if "//" in url else f"{scheme}://{url}")
        try:
            port = parts.port or 2379
        except ValueError as error:
            raise Refused(f"--etcd_endpoints {url}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"--etcd_endpoints {url}: is no URL such as http://host:2379")
        self.host, self.port = parts.hostname, port
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{parts.scheme}://{host}:{port}"
        self.token = ""


class Etcd:
    def __init__(self, endpoints: str) -> None:
        urls = [url.strip() for url in endpoints.replace(";", ",").split(",") if url.strip()]
        if not urls:
            raise Refused("--etcd_endpoints: names no URL")
        authority, certificate = _setting("CA"), _setting("CERT")
        self._user, self._password = _setting("USER"), _password()
        self._endpoints = [_Endpoint(url, bool(authority or certificate)) for url in urls]
        self._lock = threading.Lock()
        trust = _trust(authority, certificate, _setting("KEY"))
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust))

    @property
    def server(self) -> tuple[str, int]:
        """Host and port of the endpoint in use."""
        first = self._endpoints[0]
        return first.host, first.port

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """One call; Refused, with every endpoint's cause, where none answers."""
        with self._lock:
            causes = []
            for _ in range(len(self._endpoints)):
                endpoint = self._endpoints[0]
                try:
                    return self._post(endpoint, path, body)
                except OSError as error:
                    cause = getattr(error, "reason", None) or error
                    causes.append(f"{endpoint.url}: {cause}")
                    self._endpoints.append(self._endpoints.pop(0))
            raise Refused(f"etcd does not answer: {'; '.join(causes)}")

    def _post(self, endpoint: _Endpoint, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._user and not endpoint.token:
            self._authenticate(endpoint)
        try:
            return self._send(endpoint, path, body)
        except urllib.error.HTTPError as error:
            if error.code == 401 and self._user:  # tokens end with the server
                self._authenticate(endpoint)
                return self._send(endpoint, path, body)
            if error.code >= 500:
                raise
            raise Refused(f"etcd at {endpoint.url} refused {path}: {_reason(error)}") from error

    def _authenticate(self, endpoint: _Endpoint) -> None:
        endpoint.token = ""
        words = {"name": self._user, "password": self._password}
        try:
            answer = self._send(endpoint, "/v3/auth/authenticate", words)
        except urllib.error.HTTPError as error:
            raise Refused(
                f"etcd at {endpoint.url} refused user {self._user!r}: {_reason(error)}"
            ) from error
        endpoint.token = str(answer.get("token", ""))

    def _send(self, endpoint: _Endpoint, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if endpoint.token:
            headers["Authorization"] = endpoint.token
        request = urllib.request.Request(
            endpoint.url + path, json.dumps(body).encode(), headers, method="POST"
        )
        with self._opener.open(request, timeout=_SECONDS) as answer:
            data = answer.read()
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise OSError("what answers there is no etcd")
        return found

    def put_new(self, key: str, value: str, lease: str) -> bool:
        """Whether the key was not there, and now is."""
        answer = self.call(
            "/v3/kv/txn",
            compare=[{"key": _text(key), "target": "CREATE", "createRevision": "0"}],
            success=[{"requestPut": {"key": _text(key), "value": _text(value), "lease": lease}}],
        )
        return bool(answer.get("succeeded", False))

    def get(self, key: str) -> str | None:
        found = self.call("/v3/kv/range", key=_text(key)).get("kvs")
        return base64.b64decode(found[0].get("value", "")).decode() if found else None

    def delete(self, key: str) -> None:
        self.call("/v3/kv/deleterange", key=_text(key))


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace").strip()
    try:
        told = json.loads(text)
        return str(told.get("message") or told.get("error") or text)
    except (ValueError, AttributeError):
        return text or str(error)


class Lease:
    """Keys that were put with it vanish with close(), or some seconds after this process died."""

    def __init__(self, etcd: Etcd, seconds: int = 10) -> None:
        self._etcd = etcd
        self.id = str(etcd.call("/v3/lease/grant", TTL=str(seconds))["ID"])
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, args=(seconds / 3,), daemon=True)
        self._keeper.start()

    def _keep(self, every: float) -> None:
        while not self._ended.wait(every):
            try:
                self._etcd.call("/v3/lease/keepalive", ID=self.id)
            except Refused:
                continue  # the lease lasts a little; a new try follows

    def close(self) -> None:
        self._ended.set()
        self._keeper.join()
        try:
            self._etcd.call("/v3/lease/revoke", ID=self.id)
        except Refused:
            return  # it runs out by itself
