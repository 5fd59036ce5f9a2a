"""Where keys come from, temporary keys, TLS, proxies: against real sockets, no AWS."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading

import nixl
import pytest
from fault_proxy import Fault, error_answer, first
from obj_support import Objects, parameters
from weed import ACCESS, READER, SECRET

AWS = (
    "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE "
    "AWS_CONTAINER_CREDENTIALS_FULL_URI AWS_CONTAINER_AUTHORIZATION_TOKEN "
    "AWS_EC2_METADATA_SERVICE_ENDPOINT"
).split()


@pytest.fixture
def bare(weed, monkeypatch, tmp_path):
    """Makes Objects without keys among the parameters, in an environment without any."""
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    made: list[Objects] = []

    def make(endpoint: str | None = None, **more: str) -> Objects:
        made.append(Objects(endpoint or weed.endpoint, access_key="", secret_key="", **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def works(objects: Objects, prefix: str) -> None:
    objects.put(prefix + "k", b"hello")
    assert objects.get(prefix + "k", 5) == b"hello"


def test_without_any_the_places_are_named(bare):
    with pytest.raises(
        nixl.nixlNotAllowedError, match="no credentials.*AWS_ACCESS_KEY_ID.*profile"
    ):
        bare()


def test_half_a_pair_is_an_error(bare, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    with pytest.raises(nixl.nixlInvalidParamError, match="belong together"):
        bare()


def test_anonymous_asks_without(bare, witness):
    objects = bare(anonymous="true")
    with pytest.raises(nixl.nixlNotAllowedError, match="HTTP 403"):
        objects.query("k")


def test_from_the_environment(bare, monkeypatch, prefix):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    works(bare(), prefix)


def test_both_spellings_of_the_secret(make_objects, prefix):
    works(make_objects(secret_key="", secrete_key=SECRET), prefix)


def test_from_a_profile(bare, tmp_path, prefix):
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = nobody\naws_secret_access_key = x\n"
        f"[work]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n"
    )
    works(bare(profile="work"), prefix)
    with pytest.raises(nixl.nixlNotAllowedError, match="InvalidAccessKeyId"):
        bare().get("k", 1)


class Keys(http.server.BaseHTTPRequestHandler):
    """A container's and an instance's endpoint."""

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self._answer("session" if self.path == "/latest/api/token" and ttl else None)

    def do_GET(self) -> None:
        role = "/latest/meta-data/iam/security-credentials/"
        token = self.headers.get("X-aws-ec2-metadata-token")
        if self.path == "/container" and self.headers.get("Authorization") == "Bearer me":
            self._answer(json.dumps(self.server.next_keys()))
        elif self.path == role and token == "session":
            self._answer("my role\n")
        elif self.path == role + "my%20role" and token == "session":
            self._answer(json.dumps(self.server.next_keys()))
        else:
            self._answer(None)

    def _answer(self, text: str | None) -> None:
        data = (text or "").encode()
        self.send_response(200 if text is not None else 403)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def keys():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    server.given = 0
    server.life = 3600.0
    server.pairs = [(ACCESS, SECRET)]

    def next_keys() -> dict[str, str]:
        access, secret = server.pairs[min(server.given, len(server.pairs) - 1)]
        server.given += 1
        end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=server.life)
        return {
            "AccessKeyId": access, "SecretAccessKey": secret,
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip

    server.next_keys = next_keys
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def in_a_container(monkeypatch, keys) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", keys.url + "/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Bearer me")


def test_from_a_containers_endpoint(bare, keys, monkeypatch, prefix):
    in_a_container(monkeypatch, keys)
    works(bare(), prefix)
    assert keys.given == 1
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Bearer you")
    with pytest.raises(nixl.nixlBackendError, match="container's endpoint.*HTTP 403"):
        bare()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://somewhere.example/keys")
    with pytest.raises(nixl.nixlInvalidParamError, match="only https"):
        bare()


def test_from_an_instances_endpoint(bare, keys, monkeypatch, prefix):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", keys.url)
    works(bare(), prefix)


def test_keys_that_the_store_calls_ended_are_fetched_anew(bare, keys, monkeypatch, proxy, prefix):
    in_a_container(monkeypatch, keys)
    keys.pairs = [READER, (ACCESS, SECRET)]
    proxy.script = first(1, Fault(answer=error_answer("400 Bad Request", "ExpiredToken")))
    objects = bare(proxy.endpoint, retry_delay="200ms")
    works(objects, prefix)
    used = [r.headers["authorization"].split("Credential=")[1].split("/")[0] for r in proxy.seen]
    assert used[0] == READER[0]
    assert set(used[1:]) == {ACCESS}


def test_keys_are_renewed_before_they_end(bare, keys, monkeypatch):
    """Keys of less than five minutes are renewed at once."""
    in_a_container(monkeypatch, keys)
    keys.life = 200
    objects = bare()
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=30)
    while keys.given < 2 and datetime.datetime.now() < deadline:
        objects.query("k")
    assert keys.given >= 2


def test_ended_keys_that_cannot_be_renewed_are_told(bare, keys, monkeypatch):
    in_a_container(monkeypatch, keys)
    keys.life = -10
    with pytest.raises(nixl.nixlError, match="temporary keys from the container's.*have ended"):
        bare().query("k")


class TlsProxy:
    """TLS on one side, the server on the other."""

    def __init__(self, certificate: str, key: str, server: tuple[str, int]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.context, self.server = context, server
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            wrapped = self.context.wrap_socket(client, server_side=True)
            server = socket.create_connection(self.server)
            back = threading.Thread(target=_pump, args=(server, wrapped), daemon=True)
            back.start()
            _pump(wrapped, server)
            back.join()
            wrapped.close()
            server.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def tls(weed, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program to make a certificate with")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    proxy = TlsProxy(certificate, key, ("127.0.0.1", weed.port))
    proxy.certificate = certificate
    yield proxy
    proxy.close()


def test_tls_with_a_bundle_of_certificates(make_objects, tls, prefix):
    endpoint = f"https://localhost:{tls.port}"
    works(make_objects(endpoint, ca_bundle=tls.certificate), prefix)
    works(make_objects(f"localhost:{tls.port}", scheme="https", ca_bundle=tls.certificate), prefix)
    with pytest.raises(nixl.nixlBackendError, match="certificate") as told:
        make_objects(endpoint).query("k")
    assert "tried" not in str(told.value)  # it would not help


def test_a_proxy_of_the_environment(make_objects, proxy, weed, monkeypatch, prefix):
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    works(make_objects(), prefix)
    assert proxy.seen and all(r.target.startswith(weed.endpoint) for r in proxy.seen)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    before = len(proxy.seen)
    works(make_objects(), prefix)
    assert len(proxy.seen) == before


def test_text_parameters_come_from_our_own_variables(weed, monkeypatch, prefix):
    for name, value in parameters(weed.endpoint).items():
        if name != "retry_delay":
            monkeypatch.setenv(f"NIXL_OBJ_{name.upper()}", value)
    agent = nixl.nixl_agent("obj-variables", nixl.nixl_agent_config(backends=["OBJ"]))
    try:
        assert agent.query_memory([(0, 0, 1, prefix + "none")], "OBJ", "OBJ") == [None]
    finally:
        agent.close()
