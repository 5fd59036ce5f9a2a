"""Every program of examples/ runs and does what it says; wrong arguments are told."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SIMPLE = [
    "two_processes.py",
    "kv_cache.py",
    "many_to_one.py",
    "one_to_many.py",
    "aggregation.py",
    "all_reduce.py",
    "hierarchical.py",
]
CHECKPOINT = ["checkpoint.py", "--layers", "3", "--width", "64"]
DEMO_WINDOWS = ["--window", "1M", "--page", "4K"]

pytest.importorskip("numpy")


def run(command: list[str], folder: pathlib.Path, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        command,
        cwd=folder,
        env=dict(os.environ, COLUMNS="140", **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def example(folder: pathlib.Path, *words: str, **env: str) -> tuple[int, str]:
    return run([sys.executable, str(EXAMPLES / words[0]), *words[1:]], folder, **env)


def demo(folder: pathlib.Path, *words: str) -> tuple[int, str]:
    if importlib.util.find_spec("rich") is None:
        pytest.skip("needs the package rich, which ./dev demo installs")
    return example(folder, "demo.py", "--dir", str(folder), *words)


@pytest.mark.parametrize("name", SIMPLE)
def test_simple(name: str, tmp_path: pathlib.Path) -> None:
    status, output = example(tmp_path, name)
    assert status == 0, output


def test_every_python_example_is_run_here() -> None:
    there = {path.name for path in EXAMPLES.glob("*.py")}
    assert there == {*SIMPLE, "checkpoint.py", "demo.py"}


def test_checkpoint(tmp_path: pathlib.Path) -> None:
    status, output = example(tmp_path, *CHECKPOINT, "--file", str(tmp_path / "saved"))
    assert status == 0, output
    assert "all tensors came back" in output
    assert (tmp_path / "saved").stat().st_size == 4 * (3 * (64 * 64 + 64) + 2 * 64)


def test_checkpoint_without_torch(tmp_path: pathlib.Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('hidden by the test')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, output = example(tmp_path, *CHECKPOINT, PYTHONPATH=path)
    assert status == 0, output
    assert "tensors of NumPy" in output


def test_checkpoint_tells_what_is_wrong(tmp_path: pathlib.Path) -> None:
    status, output = example(tmp_path, *CHECKPOINT, "--file", str(tmp_path / "no" / "folder"))
    assert status == 1
    assert "No such file or directory" in output and "Traceback" not in output


@pytest.mark.parametrize("size", [1, 4096, 1_000_001, 5 << 20])
def test_demo(size: int, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "input.bin"
    source.write_bytes(os.urandom(size))
    status, output = demo(tmp_path, "--file", str(source), *DEMO_WINDOWS)
    assert status == 0, output
    assert "every byte arrived" in output
    assert "first" in output and "then" in output and "to the other agent" in output
    assert output.splitlines()[-1].startswith("try next: ./dev demo --two-hosts")
    assert list(tmp_path.iterdir()) == [source]  # nothing is left behind


def test_demo_between_two_hosts(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "input.bin"
    source.write_bytes(os.urandom(3_000_001))
    status, output = demo(tmp_path, "--two-hosts", "--file", str(source), *DEMO_WINDOWS)
    if "--two-hosts needs" in output:
        assert status == 1
        pytest.skip(output.strip())
    assert status == 0 and "stream" in output and "every byte arrived" in output, output
    assert list(tmp_path.iterdir()) == [source]


def test_demo_with_direct_io_keeps_its_file(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "input.bin"
    source.write_bytes(os.urandom(3_000_003))
    status, output = demo(tmp_path, "--file", str(source), "--direct", "--keep", *DEMO_WINDOWS)
    assert status == 0, output
    (kept,) = tmp_path.glob("nixl-demo-*.bin")
    assert kept.read_bytes() == source.read_bytes()


def test_demo_finds_lost_bytes(tmp_path: pathlib.Path) -> None:
    """One byte of the file changes under way: different checksums, exit status 1."""
    source = tmp_path / "input.bin"
    source.write_bytes(os.urandom(3 << 20))
    program = tmp_path / "broken.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import demo\n"
        "store = demo.Receiver.store\n"
        "def spoil(self, at, size):\n"
        "    store(self, at, size)\n"
        "    with open(self.path, 'r+b') as file:\n"
        "        byte = file.read(1)[0]\n"
        "        file.seek(0)\n"
        "        file.write(bytes([byte ^ 1]))\n"
        "demo.Receiver.store = spoil\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(demo.main(sys.argv[1:]))\n"
    )
    if importlib.util.find_spec("rich") is None:
        pytest.skip("needs the package rich, which ./dev demo installs")
    words = ["--processes", "1", "--file", str(source), "--dir", str(tmp_path), *DEMO_WINDOWS]
    status, output = run([sys.executable, str(program), *words], tmp_path)
    assert status == 1 and "bytes were lost" in output, output


def test_demo_tells_that_the_other_process_died(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "input.bin"
    source.write_bytes(os.urandom(3 << 20))
    program = tmp_path / "dying.py"
    program.write_text(
        f"import os, sys; sys.path.insert(0, {str(EXAMPLES)!r}); import demo\n"
        "demo.Receiver.load = lambda self, at, size: os._exit(9)\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(demo.main(sys.argv[1:]))\n"
    )
    if importlib.util.find_spec("rich") is None:
        pytest.skip("needs the package rich, which ./dev demo installs")
    words = ["--processes", "2", "--file", str(source), "--dir", str(tmp_path), *DEMO_WINDOWS]
    status, output = run([sys.executable, str(program), *words], tmp_path)
    assert status == 1 and "the receiving process ended with status 9" in output, output
    assert sorted(tmp_path.iterdir()) == [program, source]  # its file is removed all the same


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--file", "missing.bin"], "demo: --file missing.bin: No such file or directory"),
        (["--file", "."], "demo: --file .: is a folder"),
        (["--file", "/dev/zero"], "demo: --file /dev/zero: is no regular file"),
        (["--file", "empty"], "demo: --file empty: is empty, there is nothing to move"),
        (["--page", "4Q"], "'4Q' is no size"),
        (["--window", "4K", "--page", "64K"], "--window 4096: is smaller than a page"),
        (["--file", "empty", "--dir", "nowhere"], "--dir nowhere: is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_demo_tells_what_is_wrong(words: list[str], text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").touch()
    status, output = demo(tmp_path, *words)
    assert status == 2 and text in output and "Traceback" not in output, output


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The C++ examples, compiled against the build tree."""
    if "NIXL_BUILD_DIR" not in os.environ:
        pytest.skip("NIXL_BUILD_DIR is not set: no library to compile against")
    build = pathlib.Path(os.environ["NIXL_BUILD_DIR"])
    target = tmp_path_factory.mktemp("cpp")
    for source in (EXAMPLES / "cpp").glob("*.cpp"):
        command = [shutil.which("c++") or "g++", "-std=c++20", "-Wall", "-Wextra", "-Werror"]
        command += [f"-I{ROOT / 'include'}", str(source), "-o", str(target / source.stem)]
        command += [f"-L{build / 'lib'}", "-lnixl", f"-Wl,-rpath,{build / 'lib'}"]
        status, output = run(command, target)
        assert status == 0, output
    return target


def test_the_guides_cpp_example(cpp: pathlib.Path) -> None:
    status, output = run([str(cpp / "guide")], cpp)
    assert status == 0 and "1048576 bytes arrived" in output, output


def test_cpp_copy_file(cpp: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "from"
    source.write_bytes(os.urandom(20_000_001))  # more than one window, and an odd end
    status, output = run([str(cpp / "copy_file"), "from", "to"], tmp_path)
    assert status == 0, output
    assert (tmp_path / "to").read_bytes() == source.read_bytes()
    status, output = run([str(cpp / "copy_file"), "nowhere", "to"], tmp_path)
    assert status == 1 and "nowhere: no such file" in output
