"""./dev test --changed, --repeat and --busy: what is chosen, what must be checked, what ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVTOOL = ROOT / "tools" / "devtool"
DAY_S = 24 * 3600
PATIENCE_S = 30


class Tree:
    """A small repository with its own copy of the tool."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        shutil.copytree(
            DEVTOOL, root / "tools" / "devtool", ignore=shutil.ignore_patterns("__pycache__")
        )
        self.clock = 1_700_000_000
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        when = f"{self.clock} +0000"
        who = {f"GIT_{role}_{what}": "x@y" for role in ("AUTHOR", "COMMITTER") for what in
               ("NAME", "EMAIL")}  # fmt: skip
        env = {**os.environ, **who, "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        command = ["git", "-C", str(self.root), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def write(self, name: str, text: str = "x\n") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self, *names: str, later: int = 60) -> str:
        for name in names:
            self.write(name, f"{self.clock}\n")
        self.clock += later
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "x")
        return self.git("rev-parse", "HEAD")

    def run(self, code: str, **environment: str) -> list[str]:
        text = f"import sys; sys.path.insert(0, {str(self.root / 'tools' / 'devtool')!r})\n"
        command = [sys.executable, "-B", "-c", text + textwrap.dedent(code)]
        env = {key: value for key, value in os.environ.items() if key != "NIXL_DEV_BASE"}
        done = subprocess.run(command, capture_output=True, text=True, env={**env, **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def changed(self, base: str = "", **environment: str) -> list[str]:
        code = f"""
            import changes
            found = changes.since({base!r} or None)
            print("whole" if found.whole else " ".join(found.files))
        """
        return self.run(code, **environment)

    def chosen(self, *files: str) -> dict[str, str]:
        """What runs for a change of these files, as text."""
        code = f"""
            import changes, choice
            found = choice.choose(changes.Change({list(files)!r}, "test"))
            print("everything:", found.everything)
            print("steps:", *found.steps(["lint", "unit", "python", "docs", "packaging", "fuzz"]))
            print("programs:", *sorted(found.programs))
            print("pattern:", found.ctest_pattern())
            print("python:", *sorted(found.python))
            print("docs:", *sorted(found.docs))
        """
        return dict(line.rstrip().split(":", 1) for line in self.run(code))


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> Tree:
    return Tree(tmp_path)


# --- Since when ---


def test_a_branch_counts_from_where_it_left(tree: Tree) -> None:
    tree.commit("a")
    tree.git("checkout", "-q", "-b", "topic")
    tree.commit("b")
    tree.git("checkout", "-q", "main")
    tree.commit("c")
    tree.git("checkout", "-q", "topic")
    tree.write("new")
    tree.write("a", "other\n")
    assert tree.changed() == ["a b new"]


def test_on_the_default_branch_what_is_not_committed_counts(tree: Tree) -> None:
    tree.commit("a", "gone")
    tree.write("a", "other\n")
    (tree.root / "gone").unlink()
    assert tree.changed() == ["a gone"]


def test_a_clean_default_branch_counts_its_last_day(tree: Tree) -> None:
    tree.commit("old")
    tree.commit("first", later=DAY_S * 3)
    tree.commit("second")
    assert tree.changed() == ["first second"]


def test_without_older_history_every_file_counts(tree: Tree) -> None:
    assert tree.changed() == ["whole"]
    tree.commit("a")
    assert tree.changed() == ["whole"]


def test_a_base_is_named_by_word_or_environment(tree: Tree) -> None:
    base = tree.commit("a")
    tree.commit("b", later=DAY_S * 3)
    tree.commit("c", later=DAY_S * 3)
    assert tree.changed(base) == tree.changed(NIXL_DEV_BASE=base) == ["b c"]
    code = """
        import changes, common
        try:
            changes.since("nowhere")
        except common.Failure as failure:
            print(failure)
    """
    assert tree.run(code) == ["no commit 'nowhere' to compare with"]


# --- Which tests ---

GTEST = '// T.\n#include "{0}"\nTEST({1}, Works) {{}}\nTEST_P({1}Many, Works) {{}}\n'


@pytest.fixture
def sources(tree: Tree) -> Tree:
    """Two modules of C++, one over the other; a package of Python; pages."""
    tree.write("src/base/low.h", "// L.\n")
    tree.write("src/base/low.cpp", '// L.\n#include "base/low.h"\n')
    tree.write("src/base/low_test.cpp", GTEST.format("base/low.h", "Low"))
    tree.write("src/base/aside.h", "// A.\n")
    tree.write("src/base/aside_test.cpp", GTEST.format("base/aside.h", "Aside"))
    tree.write("src/peer/high.h", "// H.\n")
    tree.write("src/peer/high_send.cpp", '// H.\n#include "peer/high.h"\n#include "base/low.h"\n')
    tree.write("src/peer/high_test.cpp", GTEST.format("peer/high.h", "High"))
    tree.write("plugins/disk/CMakeLists.txt", "nixl_plugin(disk LINK rt)\n")
    tree.write("plugins/disk/disk.cpp", "// D.\n")
    tree.write("plugins/disk/disk_test.cpp", "// D.\nconst bool kJoined = joinConformance(x());\n")
    tree.write("tests/fuzz/low_fuzz.cpp", '// F.\n#include "base/low.h"\n')
    tree.write("python/nixl/__init__.py", '"""N."""\nfrom .core import a\n')
    tree.write("python/nixl/core.py", '"""C."""\n')
    tree.write("python/nixl/hicache/__init__.py", '"""H."""\nfrom . import keys as k\n')
    tree.write("python/nixl/hicache/keys.py", '"""K."""\nfrom ..core import a\n')
    tree.write("tests/python/test_core.py", '"""T."""\nimport helper\n')
    tree.write("tests/python/helper.py", '"""H."""\nimport nixl\n')
    tree.write("tests/python/test_keys.py", '"""T."""\nfrom nixl.hicache import keys\n# disk\n')
    tree.write("tests/python/test_words.py", '"""T."""\nimport os\n')
    tree.write("docs/page.md")
    return tree


def programs(*names: str) -> str:
    return "".join(f" {name}" for name in sorted(names))


def test_a_source_is_tested_by_all_that_reach_it(sources: Tree) -> None:
    """Through the sources that stand behind the headers, too."""
    for name in ("src/base/low.cpp", "src/base/low.h"):
        found = sources.chosen(name)
        assert found["programs"] == programs("base_test", "fuzz_low", "peer_test")
        assert re.search(found["pattern"].strip(), "base_test.Low.Works")
        assert re.search(found["pattern"].strip(), "peer_test.All/HighMany.Works/0")
        assert not re.search(found["pattern"].strip(), "base_test.Aside.Works")
        assert found["steps"] == " lint unit python fuzz"
    assert sources.chosen("src/peer/high_send.cpp")["programs"] == " peer_test"


def test_a_changed_test_runs_alone(sources: Tree) -> None:
    found = sources.chosen("src/base/low_test.cpp")
    assert found["programs"] == " base_test" and found["python"] == ""
    assert not re.search(found["pattern"].strip(), "base_test.Aside.Works")


def test_a_file_that_nothing_reaches_is_tested_by_its_folder(sources: Tree) -> None:
    assert sources.chosen("plugins/disk/disk.cpp")["pattern"] == r" ^plugin_disk_test\.Conformance"
    gone = sources.chosen("src/base/gone.cpp")
    assert re.search(gone["pattern"].strip(), "base_test.Aside.Works")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("python/nixl/core.py", ["test_core", "test_keys"]),
        ("python/nixl/hicache/keys.py", ["test_keys"]),
        ("python/nixl/gone.py", ["test_core", "test_keys"]),
        ("tests/python/helper.py", ["test_core"]),
        ("tests/python/test_words.py", ["test_words"]),
        ("tests/python/data.txt", ["test_core", "test_keys", "test_words"]),
        ("src/peer/high.h", ["test_core", "test_keys"]),
        ("src/hicache/store.cpp", ["test_keys"]),
        ("plugins/disk/disk.cpp", ["test_keys"]),
        ("docs/page.md", []),
    ],
)
def test_python_tests_are_chosen_by_what_they_import(
    sources: Tree, name: str, expected: list[str]
) -> None:
    wanted = "".join(f" tests/python/{one}.py" for one in expected)
    assert sources.chosen(name)["python"] == wanted


def test_a_page_runs_its_blocks(sources: Tree) -> None:
    found = sources.chosen("docs/page.md")
    assert found["steps"] == " lint docs"
    assert found["docs"] == " page docs/page.md tests/docs/test_pages.py"


@pytest.mark.parametrize(
    "name", ["dev", "tools/devtool/x.py", "cmake/X.cmake", "src/base/CMakeLists.txt", "odd.xyz"]
)
def test_what_decides_about_all_runs_all(sources: Tree, name: str) -> None:
    found = sources.chosen("docs/page.md", name)
    assert name in found["everything"]
    assert found["steps"] == " lint unit python docs packaging fuzz"


def test_the_patterns_name_every_test_of_this_tree() -> None:
    """No C++ test is out of reach of the choice: all files together match all tests."""
    build = os.environ.get("NIXL_BUILD_DIR")
    if not build or not (pathlib.Path(build) / "CTestTestfile.cmake").exists():
        pytest.skip("NIXL_BUILD_DIR names no tree with tests")
    code = f"""
        import sys; sys.path.insert(0, {str(DEVTOOL)!r})
        import choice, reach, re, subprocess, json
        command = ["ctest", "--test-dir", {build!r}, "--show-only=json-v1"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = [test["name"] for test in json.loads(out[out.index("{{"):])["tests"]]
        found = set()
        for test in choice.cxx_tests():
            found |= choice.patterns(choice.program_of(test), test)
        known = re.compile("|".join([*found, "^fuzz_replay"]))
        print(len(names), [name for name in names if not known.search(name)])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    count, missing = done.stdout.decode().strip().split(" ", 1)
    assert int(count) > 100 and missing == "[]"


def test_ctest_runs_what_was_chosen() -> None:
    """Also where that is so much that no pattern of ctest holds it."""
    build = os.environ.get("NIXL_BUILD_DIR")
    if not build or not (pathlib.Path(build) / "CTestTestfile.cmake").exists():
        pytest.skip("NIXL_BUILD_DIR names no tree with tests")
    code = f"""
        import sys; sys.path.insert(0, {str(DEVTOOL)!r})
        import builds, changes, choice, common, pathlib, re, steps, subprocess
        builds.tree = lambda preset: pathlib.Path({build!r})
        builds.build = lambda *words: None
        def ctest(name, preset, extra, words=()):
            command = ["ctest", "--test-dir", {build!r}, "-N", *words]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            global ran
            ran = re.findall(r"^ *Test +#\\d+: (.+)$", shown, re.M)
            return common.Outcome(name, passed=1)
        steps.ctest = ctest
        for name in ("src/base/utf8_test.cpp", "src/backend/parameters.cpp"):
            found = choice.choose(changes.Change([name], "test"))
            assert steps.unit(steps.Scope(found)).passed == 1
            every = steps.picked("release", steps.Scope(found)).values()
            assert list(every) == ran
            print(len(ran), all(re.search(found.ctest_pattern(), test) for test in ran))
        print(steps.unit(steps.Scope(ctest="Nothing.Such")).failures)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, many, none = done.stdout.splitlines()
    assert few == "2 True"
    assert int(many.split()[0]) > 300 and many.endswith(" True")
    assert none == "['no test of this tree has the name that was asked for']"


# --- clang-tidy ---

TIDY = """
    import changes, lint
    from common import Outcome
    found = {"src/a.cpp": "", "src/b.cpp": None, "src/c.cpp": None}
    for needed in ({"src/a.cpp"}, {"src/a.cpp", "src/c.cpp"}):
        outcome = Outcome("lint")
        lint.conclude_tidy(outcome, found, needed, lint.TidyBudget(1, 2), changes.Change([], "x"))
        print(outcome.passed, outcome.failed, outcome.skipped, *outcome.failures)
"""


def test_a_changed_file_that_tidy_does_not_reach_fails(tree: Tree) -> None:
    first, second = tree.run(TIDY)
    assert first == "1 0 1"
    assert second.startswith("0 1 1 clang-tidy: 1 of 2 files that changed (x) were not reached")
    assert second.endswith("src/c.cpp")


def test_a_changed_header_is_checked_through_a_source(sources: Tree) -> None:
    code = """
        import changes, lint
        from common import Outcome
        known = {"src/base/low_test.cpp", "src/base/low.cpp", "src/base/aside_test.cpp"}
        for files in (["src/base/low.h"], ["src/base/low.h", "src/base/low_test.cpp"],
                      ["src/base/aside.h"], ["src/peer/high.h"], [".clang-tidy"]):
            outcome = Outcome("lint")
            print(*sorted(lint.checks_of(changes.Change(files, "x"), known, outcome)),
                  *outcome.skips)
        print(*sorted(lint.checks_of(changes.Change([], "x", whole=True), known, outcome)))
    """
    every = "src/base/aside_test.cpp src/base/low.cpp src/base/low_test.cpp"
    assert sources.run(code) == [
        "src/base/low.cpp",
        "src/base/low_test.cpp",
        "src/base/aside_test.cpp",
        "clang-tidy: src/peer/high.h: nothing that is compiled here includes it",
        every,
        every,
    ]


# --- Rounds under load ---


def test_rounds_say_what_failed_and_how_often(tree: Tree) -> None:
    code = """
        import runpy, common
        main = runpy.run_path(sys.path[0] + "/__main__.py", run_name="dev")
        rounds = [common.Outcome("unit", passed=2, seconds=1.0), common.Outcome("unit", passed=1),
                  common.Outcome("python", passed=3).skip("no disk")]
        rounds[1].fail("T.Flaky").output = "a log"
        rounds.append(common.Outcome("python", passed=3).skip("no disk"))
        main["tell_unsteady"](rounds, 2)
        print(main["summary"](main["merged"](rounds), 1.0))
    """
    lines = tree.run(code)
    assert lines[0] == "failed in 1 of 2 rounds: unit: T.Flaky"
    assert lines.count("  python: no disk") == 1
    assert lines[-2:] == ["9 passed, 1 failed, 2 skipped", "1"]


def test_a_build_that_breaks_is_named_by_what_it_was(tree: Tree) -> None:
    code = """
        import common, steps
        def broken(scope):
            raise common.Failure("line of a log\\nbuilding preset release failed")
        steps.STEPS["unit"] = broken
        outcome = steps.run_step("unit", steps.Scope())
        print(outcome.failures, outcome.output)
    """
    assert tree.run(code) == ["['building preset release failed'] line of a log"]


def cpu_ticks(pid: int) -> int:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(stat[11]) + int(stat[12])


def eventually(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)  # sleeps: between two looks


def gone(pid: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("ending", ["by itself", "killed"])
def test_hogs_compute_and_end_with_their_parent(tree: Tree, ending: str) -> None:
    code = f"""
        import sys; sys.path.insert(0, {str(DEVTOOL)!r})
        import busy
        with busy.hogs(2) as pids:
            print(*pids, flush=True)
            sys.stdin.read()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pids = [int(word) for word in parent.stdout.readline().split()]
    try:
        assert len(pids) == 2
        eventually(lambda: all(cpu_ticks(pid) > 5 for pid in pids))
        if ending == "killed":
            parent.kill()
        parent.communicate(timeout=PATIENCE_S)
        eventually(lambda: all(gone(pid) for pid in pids))
    finally:
        parent.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
