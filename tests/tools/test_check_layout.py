"""tools/check_layout.py finds each kind of violation and is silent about a clean tree."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHECK = ROOT / "tools" / "check_layout.py"


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    write(tmp_path, "src/base/a.h", "// A header.\n#pragma once\n")
    return tmp_path


def write(root: pathlib.Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def complaints(root: pathlib.Path) -> str:
    done = subprocess.run([sys.executable, str(CHECK), str(root)], capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stdout == "layout ok\n"), done.stdout + done.stderr
    return done.stdout


def test_clean_tree(tree: pathlib.Path) -> None:
    assert complaints(tree) == "layout ok\n"


def test_a_plugin_holds_no_other_ones_files_unless_they_are_shared(tree: pathlib.Path) -> None:
    for plugin in ("posix", "x", "gusli"):
        write(tree, f"plugins/{plugin}/b.cpp", '// B.\n#include "posix/a.h"\n')
    text = complaints(tree)
    assert "plugins/x/b.cpp:2: plugin 'x' may not include 'posix'" in text
    assert text.count("may not include") == 1


LONG_FUNCTION = "// Long.\nint f() {\n" + "    g();\n" * 80 + "}\n"
LONG_METHOD = "// Long.\nclass A {\n    void f(int a,\n           int b) {\n" + (
    "        g();\n" * 80 + "    }\n};\n"
)


# In pieces, so that the check does not find them here.
CXX_SLEEP = "// B.\nstd::this_thread::sleep_for" + "(milliseconds(5));\n"
PYTHON_SLEEP = '"""B."""\ntime.sleep' + "(0.1)\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("src/base/b.cpp", "// B.\n" * 601, "601 lines, budget 600"),
        ("include/nixl/b.h", "// B.\n" * 301, "301 lines, budget 300"),
        ("src/base/b_test.cpp", "// B.\n" * 801, "801 lines, budget 800"),
        ("src/base/b.cpp", LONG_FUNCTION, "f has 82 lines, budget 70"),
        ("src/base/b.cpp", LONG_METHOD, "f has 83 lines, budget 70"),
        ("tools/b.py", '"""B."""\ndef f():\n' + "    g()\n" * 80, "f has 81 lines, budget 70"),
        ("src/base/b.cpp", "// B.\n// " + "x" * 100 + "\n", "103 columns"),
        ("src/base/b.cpp", '// B.\n#include "agent/a.h"\n', "'base' may not include 'agent'"),
        ("src/memory/b.cpp", '// B.\n#include "src/peer/a.h"\n', "'memory' may not include 'peer'"),
        ("include/nixl/b.h", '// B.\n#include "base/a.h"\n', "includes internal 'base'"),
        ("plugins/x/b.cpp", '// B.\n#include "base/a.h"\n', "'plugin' may not include 'base'"),
        ("plugins/x/b.cpp", "// B.\n", "plugins/x: no README.md"),
        ("plugins/x/b.cpp", "// B.\n", "plugins/x: no *_test.cpp"),
        ("src/agent/b.cpp", '// B.\nauto x = "UCX";\n', "names the backend 'UCX'"),
        ("include/nixl/b.h", "// What libfabric does.\n", "names the backend 'libfabric'"),
        ("src/new/b.cpp", "// B.\n", "src/new: a module without a line"),
        ("src/base/b.cpp", "int x;\n", "starts without a comment"),
        ("src/base/b.cpp", "// B.\n\tint x;\n", "tab"),
        ("src/base/b.cpp", "// B. \n", "space at the end"),
        ("src/base/b.cpp", "// B.", "no newline at the end"),
        ("docs/b.md", "see /ho" + "me/somebody/x\n", "path of one machine"),
        ("docs/b.md", "from py" + "pi.o" + "rg/simple\n", "registry host"),
        ("tool.sh", "#!/bin/sh\n", "executable bit"),
        ("src/base/b_test.cpp", CXX_SLEEP, "src/base/b_test.cpp:2: sleeps in a test"),
        ("testing/b.h", CXX_SLEEP.replace("sleep_for", "sleep_until"), "testing/b.h:2: sleeps"),
        ("tests/cpp/b.cpp", "// B.\nusle" + "ep(200);\n", "tests/cpp/b.cpp:2: sleeps in a test"),
        ("src/base/testing_b.h", CXX_SLEEP, "src/base/testing_b.h:2: sleeps in a test"),
        ("tests/a/b.py", PYTHON_SLEEP, "tests/a/b.py:2: sleeps in a test"),
        ("python/nixl/test_b.py", PYTHON_SLEEP, "python/nixl/test_b.py:2: sleeps in a test"),
        ("tests/a/b.py", PYTHON_SLEEP.replace("time.", ""), "tests/a/b.py:2: sleeps in a test"),
        ("tests/a/b.py", PYTHON_SLEEP.replace("time", "asyncio"), "b.py:2: sleeps in a test"),
        ("tests/a/b.py", PYTHON_SLEEP + "# sleeps: too late\n", "b.py:2: sleeps in a test"),
        ("tests/a/b.py", PYTHON_SLEEP[:-1] + "  # sleeps:\n", "b.py:2: sleeps in a test"),
    ],
)
def test_violation_is_found(tree: pathlib.Path, name: str, text: str, expected: str) -> None:
    write(tree, name, text)
    assert expected in complaints(tree)


def test_allowed_things_are_allowed(tree: pathlib.Path) -> None:
    write(tree, "src/agent/b.cpp", '// B.\n#include "base/a.h"\n#include "memory/c.h"\n')
    write(tree, "plugins/x/x.cpp", '// The UCX plugin.\n#include "nixl/plugin.h"\n')
    write(tree, "plugins/x/x_test.cpp", '// Tests.\n#include "base/a.h"\n')
    write(tree, "plugins/x/README.md", "# X\n")
    write(tree, "plugins/x/CMakeLists.txt", "nixl_plugin(X)\n")
    write(tree, "src/base/b.cpp", "// B.\nnamespace nixl {\n" + "int x();\n" * 90 + "}\n")
    write(tree, "src/base/c.cpp", CXX_SLEEP)  # no test
    write(tree, "src/base/c_test.cpp", CXX_SLEEP.replace(";", ";  // sleeps: it is idle"))
    write(tree, "src/base/d_test.cpp", CXX_SLEEP.replace("B.", "B.\n// sleeps: it is idle"))
    write(tree, "tests/a.py", PYTHON_SLEEP.replace(")", ")  # sleeps: it is idle"))
    write(tree, "tests/b.py", '"""Of sleep_for() and sleep."""\nawait asyncio.sleep(0)\n')
    assert complaints(tree) == "layout ok\n"
