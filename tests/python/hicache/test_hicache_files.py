"""The layout `files`: whose files are whose, what a clear removes, rights, and what was being
written when a writer ended."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hicache_support import PagePool, storage_config
from nixl.hicache import keys as names
from nixl.hicache.files import NixlFileManager, folder_mode
from nixl.hicache.workshop import collect

VALUE = np.arange(100, dtype=np.uint8)


def files_of(folder: pathlib.Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and ".nixl-" not in str(path)
    }


def has_marks(folder: pathlib.Path) -> bool:
    probe = folder / "probe"
    probe.write_bytes(b"")
    try:
        os.setxattr(probe, "user.nixl.own", b"x")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


def pages(count: int, start: int = 0) -> list[str]:
    return [f"{i:064x}" for i in range(start, start + count)]


# -- clear -----------------------------------------------------------------------------------------


def test_clear_leaves_foreign_files_alone(make, tmp_path):
    if not has_marks(tmp_path):
        pytest.skip("this file system has no extended attributes")
    store = tmp_path / "store"
    make(layout="files").close()
    (store / "notes.txt").write_text("not ours")
    (store / "deep").mkdir()
    (store / "deep" / "k1").write_text("not ours")
    (store / "link").symlink_to(tmp_path)
    (store / "ab").mkdir()
    (store / "ab" / f"{0:064x}_org-model_0_1_k").write_text("another connector's page")
    foreign = files_of(store)
    connector = make(layout="files")
    assert connector.batch_set(["k1", "a/b", "x" * 300], [VALUE] * 3)
    connector.close()
    again = make(layout="files")  # another run knows them too
    assert len(files_of(store)) == len(foreign) + 3
    again.clear()
    assert files_of(store) == foreign and not again.exists("k1")
    assert again.set("k1", VALUE) and again.exists("k1")


@pytest.mark.parametrize("marks", [True, False], ids=["marked", "by name alone"])
def test_clear_keeps_the_pages_of_other_models_and_ranks(make, tmp_path, marks, monkeypatch):
    if not marks:

        def refuse(*_args):
            raise OSError(95, "not here")

        monkeypatch.setattr(os, "setxattr", refuse)
    configs = {
        "mine": storage_config(tp_rank=0, tp_size=2),
        "other rank": storage_config(tp_rank=1, tp_size=2),
        "longer name": storage_config(model_name="an_org-model", tp_rank=0, tp_size=2),
        "more ranks": storage_config(tp_rank=0, tp_size=22),
        "shared": storage_config(is_mla_model=True),
        "shared, longer": storage_config(is_mla_model=True, model_name="org-model_chat"),
    }
    connectors = {}
    for name, config in configs.items():
        connector = connectors[name] = make(layout="files", storage_config=config)
        pool = PagePool(4)
        connector.register_mem_pool_host(pool)
        side = PagePool(4)
        connector.register_mem_host_pool_v2(side, "mamba")
        assert all(connector.batch_set_v1(pages(4), pool.indices([0, 1, 2, 3])))
        transfer = type("T", (), {"name": "mamba", "keys": pages(4), "host_indices": None})()
        transfer.host_indices = side.indices([0, 1, 2, 3])
        assert connector.batch_set_v2([transfer]) == {"mamba": [True] * 4}
        assert connector.batch_set(["chosen by the user"], [VALUE])
    for name, connector in connectors.items():
        before = files_of(tmp_path / "store")
        connector.clear()
        gone = before - files_of(tmp_path / "store")
        assert len(gone) == 4 * 4 + 1, name
        assert connector.batch_exists(pages(4)) == 0
        assert not connector.exists("chosen by the user")


def test_names_are_told_by_hash_suffix_and_part():
    ends = names.tails(["_a b_0_1"], ["", "_k"], True)
    page = f"{7:064x}"
    assert names.is_page(names.file_name(page + "_a b_0_1_k"), ends)
    assert names.is_page(names.file_name(page + "_a b_0_1"), ends)
    for other in (page + "_x_a b_0_1", page + "_a b_0_1_v", "k_a b_0_1", "_a b_0_1", "x" + page):
        assert not names.is_page(names.file_name(other), ends), other
    assert names.tails([""], ["_k"], True) == []


@pytest.mark.parametrize(
    "ending",
    [
        "", "_k", "_v", "_0_1", "_3_8_k", "_2_1_3", "_0_1_4_2_k", "_cp1_2_v", "_0_4_cp1_2",
        "_tp4_dcp1_2_page64", "_mamba_temporal", "_0_1_mamba_conv_3", "_swa", "_swa_k",
        "_deepseek_v4_c4_indexer", "_deepseek_v4_c4_3", "_kv",
    ],
)  # fmt: skip
def test_parts_and_ranks_of_a_page_belong_together(ending):
    page = f"{7:064x}_org-my_model-7b"
    assert names.page_of(page + ending) == page
    assert names.page_of("notes.txt") is None and names.page_of("k_0_1") is None


# -- rights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "0640", 0o664])
@pytest.mark.parametrize("posix", [None, "use_uring"])
def test_files_and_folders_have_the_rights_asked_for(make, tmp_path, mode, posix):
    more = {} if mode is None else {"file_mode": mode}
    wanted = {None: 0o600, "0640": 0o640, 0o664: 0o664}[mode]
    before = os.umask(0o002)
    try:
        connector = make(
            tmp_path / "a" / "b",
            layout="files",
            mode=posix,
            storage_config=storage_config(),
            **more,
        )
        assert connector.batch_set(["k1", "k2"], [VALUE, np.zeros(0, dtype=np.uint8)])
    finally:
        os.umask(before)
    found = [path for path in (tmp_path / "a").rglob("*") if path.name != "lock"]
    assert sum(path.is_file() for path in found) == 2
    for path in [tmp_path / "a", *found]:
        right = folder_mode(wanted) if path.is_dir() else wanted
        assert path.stat().st_mode & 0o777 == right, path
    assert folder_mode(0o600) == 0o700 and folder_mode(0o640) == 0o750


def test_paths_need_not_be_strings(make, tmp_path):
    from nixl.hicache import HiCacheNixl

    for path in (tmp_path / "a", str(tmp_path / "b")):
        with HiCacheNixl(file_path=path, plugin="POSIX") as connector:
            assert connector.set("k", VALUE)
        with HiCacheNixl(path) as connector:
            assert connector.exists("k")
    with HiCacheNixl(storage_config(), tmp_path / "c") as connector:
        assert connector.storage_dirs == [str(tmp_path / "c")]
    assert NixlFileManager(tmp_path / "d").get_file_path("k") == f"{tmp_path}/d/k"


def test_wrong_arguments_of_the_constructor_are_configuration_errors(tmp_path):
    from nixl.hicache import HiCacheNixl
    from nixl.hicache.config import ConfigError

    for arguments, words in (
        ((b"/tmp/x",), "storage_config of type bytes"),
        ((5,), "storage_config of type int"),
        (({},), "storage_config of type dict"),
        ((tmp_path, 5), "plugin = 5"),
        ((None, 5), "storage directory 5: expected a path"),
        ((storage_config(), b"/tmp/x"), "expected a path"),
    ):
        with pytest.raises(ConfigError, match=words):
            HiCacheNixl(*arguments)
    with pytest.raises(ConfigError, match="configuration of type int"):
        HiCacheNixl(tmp_path, config=5)


# -- what was being written ------------------------------------------------------------------------

HALF = """
    import os, sys
    import numpy as np
    from nixl.hicache import HiCacheNixl, keyed
    def stop(path):
        print(path, flush=True)
        sys.stdin.read()
    keyed.sync = stop  # between the writing of a file and its name
    config = {"hicache": {"layout": "files", "durability": "disk"}}
    connector = HiCacheNixl(sys.argv[1], "POSIX", config=config)
    print(connector.set("k", np.arange(100, dtype=np.uint8)), flush=True)
    connector.close()
"""


@pytest.fixture
def half_written(tmp_path):
    """A writer that has written a file and not yet named it: (process, the file)."""
    text = textwrap.dedent(HALF)
    writer = subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path / "store")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = pathlib.Path(writer.stdout.readline().strip())
    assert path.stat().st_size == 100
    yield writer, path
    writer.kill()
    writer.communicate()


def test_what_a_killed_writer_left_is_collected_at_opening(make, half_written):
    writer, path = half_written
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.exists()
    connector = make(layout="files")
    assert not path.exists() and not path.parent.exists()
    assert not connector.exists("k")


def test_and_in_the_upkeep(make, half_written):
    writer, path = half_written
    connector = make(layout="files")
    assert path.exists()  # its writer lives
    assert connector.file_manager.collect() == 0 and path.exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert connector.file_manager.collect() > 0 and not path.exists()


@pytest.mark.parametrize("what", ["opening", "compact"])
def test_running_writers_are_left_alone(make, tmp_path, half_written, what):
    writer, path = half_written
    if what == "opening":
        make(layout="files").close()
    else:
        done = subprocess.run(
            [sys.executable, "-m", "nixl.hicache", "compact", str(tmp_path / "store")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert path.exists()
    out, _ = writer.communicate("")  # go on
    assert out.splitlines()[-1] == "True"
    found = np.zeros(100, dtype=np.uint8)
    assert np.array_equal(make(layout="files").get("k", found), VALUE)


def test_what_nobodys_lock_speaks_for_is_collected_by_age(tmp_path):
    left = tmp_path / ".nixl-tmp" / "somebody"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"x" * 100)
    assert collect(str(tmp_path)) == (0, 0) and left.exists()
    os.utime(left, (0, 0))
    assert collect(str(tmp_path))[0] == 1 and not left.exists()


def test_a_closed_connector_leaves_nothing_behind(make, tmp_path):
    connector = make(layout="files")
    assert connector.batch_set(["a", "b"], [VALUE, VALUE])
    connector.close()
    assert not os.listdir(tmp_path / "store/.nixl-tmp")


FORK = """
    import os, sys
    import numpy as np
    from nixl.hicache import HiCacheNixl
    config = {"hicache": {"layout": "files"}}
    connector = HiCacheNixl(sys.argv[1], "POSIX", config=config)
    value = np.arange(100, dtype=np.uint8)
    assert connector.set("before", value)
    workshop = connector.file_manager._workshops[connector.storage_dirs[0]]
    half = workshop.names(1)[0]
    open(half, "wb").close()  # as if a thread of the parent wrote it
    child = os.fork()
    if child == 0:
        ok = connector.set("child", value) and workshop.names(1)[0] != half
        connector.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.path.exists(half)
    assert connector.set("after", value) and connector.exists("child")
    connector.close()
"""


def test_a_forked_child_leaves_alone_what_its_parent_writes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK), str(tmp_path / "store")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_compact_while_many_write(make, tmp_path):
    connector = make(layout="files")
    stop = threading.Event()
    rounds = 0

    def compact() -> None:
        nonlocal rounds
        while not stop.is_set():
            subprocess.run(
                [sys.executable, "-m", "nixl.hicache", "compact", str(tmp_path / "store")],
                check=True, capture_output=True,
            )  # fmt: skip
            rounds += 1

    beside = threading.Thread(target=compact)
    beside.start()
    try:
        i = 0
        while rounds < 3:
            i += 1
            assert connector.batch_set([f"{i}-{j}" for j in range(64)], [VALUE] * 64)
    finally:
        stop.set()
        beside.join()
