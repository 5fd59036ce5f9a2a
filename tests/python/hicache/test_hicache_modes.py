"""The guide's own test list in each of POSIX' modes, and by the guide's command lines."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from hicache_support import MODES, hicache_section

pytest.importorskip("torch")

import nixl.hicache  # noqa: E402
from nixl.hicache import HiCacheNixl, NixlFileManager, NixlRegistration  # noqa: E402
from nixl.hicache import test_hicache_nixl_storage as guide  # noqa: E402


def in_mode(mode: str, layout: str) -> type:
    class InMode(guide.TestNixlUnified):
        def setUp(self) -> None:
            self.test_dir = tempfile.mkdtemp(prefix=f"nixl_{mode}_")
            config = {"plugin": {"posix": {mode: "true"}}, "hicache": hicache_section(layout)}
            self.hicache = HiCacheNixl(self.test_dir, "POSIX", config=config)
            self.file_manager = NixlFileManager(self.test_dir)
            self.registration = NixlRegistration(self.hicache.agent)

        def tearDown(self) -> None:
            self.hicache.close()
            shutil.rmtree(self.test_dir, ignore_errors=True)

    InMode.__name__ = InMode.__qualname__ = f"TestNixlUnified_{mode}_{layout}"
    return InMode


for _mode in MODES:
    for _layout in ("files", "backend"):
        _class = in_mode(_mode, _layout)
        globals()[_class.__name__] = _class
del _class


FOLDER = pathlib.Path(nixl.hicache.__file__).parent


def run(command: list[str], cwd: pathlib.Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join([".", str(FOLDER.parent.parent)])
    env = dict(os.environ, PYTHONPATH=path)
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "more", [[], ["-v"], ["-v", "-k", "test_single_set_get"]], ids=["all", "verbose", "one"]
)
def test_the_guides_pytest_lines(more):
    command = ["-m", "pytest", "-p", "no:cacheprovider", "test_hicache_nixl_storage.py", *more]
    done = run([*command, "-o", "asyncio_mode=strict"], FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (" 9 passed" if "-k" not in more else " 1 passed") in done.stdout


def test_the_guides_unittest_lines():
    module = "nixl.hicache.test_hicache_nixl_storage"
    done = run(["-m", "unittest", f"{module}.TestNixlUnified.test_single_set_get", "-v"], FOLDER)
    assert done.returncode == 0 and "ok" in done.stderr, done.stderr
    done = run(["-m", "unittest", "discover", "nixl.hicache", "-p", "test_*.py", "-v"], FOLDER)
    assert done.returncode == 0 and "Ran 9 tests" in done.stderr, done.stderr
    done = run(["-m", module], FOLDER)
    assert done.returncode == 0 and "Ran 9 tests" in done.stderr, done.stderr
    done = run(["test_hicache_nixl_storage.py"], FOLDER)
    assert done.returncode == 0 and "OK" in done.stderr, done.stderr


def test_the_expected_output(monkeypatch):
    monkeypatch.setenv("NIXL_LOG_LEVEL", "INFO")
    done = run(["-m", "unittest", "nixl.hicache.test_hicache_nixl_storage"], FOLDER)
    assert done.returncode == 0
    for line in (
        "Initialized NIXL agent: hicache_nixl_",
        "Backend POSIX was instantiated",
        "Backend POSIX was selected for HiCache (FILE)",
        "Ran 9 tests in ",
        "OK",
    ):
        assert line in done.stderr, done.stderr
