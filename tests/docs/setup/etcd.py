# A real etcd for the block, ended with it.
import atexit as _atexit
import os as _os
import shutil as _shutil
import socket as _socket
import subprocess as _subprocess
import tempfile as _tempfile
import time as _time


def _etcd():
    urls = []
    for _ in range(2):
        with _socket.create_server(("127.0.0.1", 0)) as probe:
            urls.append(f"http://127.0.0.1:{probe.getsockname()[1]}")
    folder = _tempfile.mkdtemp()
    words = ["--data-dir", folder, "--listen-client-urls", urls[0], "--advertise-client-urls"]
    words += [urls[0], "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1]]
    words += ["--initial-cluster", f"default={urls[1]}"]
    quiet = {"stdout": _subprocess.DEVNULL, "stderr": _subprocess.DEVNULL}
    server = _subprocess.Popen([_shutil.which("etcd"), *words], **quiet)

    def end():
        server.kill()
        server.wait()
        _shutil.rmtree(folder, ignore_errors=True)

    _atexit.register(end)
    address = ("127.0.0.1", int(urls[0].rsplit(":", 1)[1]))
    while server.poll() is None:
        try:
            _socket.create_connection(address).close()
            break
        except OSError:
            _time.sleep(0.02)  # sleeps: between two looks
    _os.environ["NIXL_ETCD_ENDPOINTS"] = urls[0]
    _os.environ.pop("NIXL_ETCD_NAMESPACE", None)


_etcd()
