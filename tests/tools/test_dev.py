"""./dev itself: its help, its errors, and how it counts results."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = ["demo", "test", "build", "fmt", "lint", "bench", "fuzz", "sim", "doctor"]
COMMANDS += ["docs", "release"]


def dev(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ROOT / "dev"), *words], capture_output=True, text=True)


def inside(code: str) -> str:
    """Runs code with the modules of tools/devtool; their names are not for this process."""
    text = "import sys; sys.path.insert(0, sys.argv[1])\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", text, str(ROOT / "tools" / "devtool")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_explains_every_command() -> None:
    shown = dev("--help").stdout
    for command in COMMANDS:
        assert f"    {command} " in shown
        assert dev(command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["test", "--only", "unti"], "no step 'unti'"),
        (["build", "fast"], "invalid choice: 'fast'"),
        (["lint", "--wrong"], "unknown argument: --wrong"),
    ],
)
def test_wrong_words_are_named(words: list[str], expected: str) -> None:
    done = dev(*words)
    assert done.returncode != 0
    assert expected in done.stderr


JUNIT = """\
    import junit, pathlib, tempfile
    from common import Outcome
    path = pathlib.Path(tempfile.mkdtemp()) / "r.xml"
    path.write_text('''<testsuite>
      <testcase name="a" classname="a" status="run"/>
      <testcase name="b" classname="b" status="fail"><failure message=""/></testcase>
      <testcase name="c" classname="c" status="notrun"><skipped message="SKIP_REGULAR"/>
        <system-out>x_test.cpp:7: Skipped
        no such device</system-out></testcase>
      <testcase name="d" classname="pkg"><skipped message="needs root"/></testcase>
      <testcase name="e" classname="pkg"><error message="boom"/></testcase>
    </testsuite>''')
    o = junit.read(path, Outcome("x"))
    print(o.passed, o.failed, o.skipped, o.failures, o.skips)
"""


def test_results_of_both_runners_are_counted() -> None:
    expected = "1 2 2 ['b', 'pkg.e'] ['c: no such device', 'pkg.d: needs root']\n"
    assert inside(JUNIT) == expected


def test_closing_line_and_status() -> None:
    code = """\
        import runpy, common
        main = runpy.run_path(sys.argv[1] + "/__main__.py", run_name="dev")
        good = common.Outcome("a", passed=3).skip("why not")
        print(main["summary"]([good], 1.0))
        print(main["summary"]([good, common.Outcome("b").fail("it broke")], 1.0))
        print(main["summary"]([common.Outcome("c").skip("nothing ran")], 1.0))
    """
    lines = inside(code).splitlines()
    closing = [n for n, line in enumerate(lines) if line.endswith(" skipped")]
    assert [(lines[n], lines[n + 1]) for n in closing] == [
        ("3 passed, 0 failed, 1 skipped", "0"),
        ("3 passed, 1 failed, 1 skipped", "1"),
        ("0 passed, 0 failed, 1 skipped", "1"),
    ]


def test_a_run_without_any_test_is_a_failure() -> None:
    code = """\
        import steps, common, pathlib
        o = steps.conclude(common.Outcome("x"), pathlib.Path("/nonexistent.xml"), 0, "x")
        print(o.failed, o.failures)
        o = steps.conclude(common.Outcome("x"), pathlib.Path("/nonexistent.xml"), 139, "x")
        print(o.failed)
    """
    assert inside(code).splitlines() == ["1 ['no test ran']", "1"]


def test_a_command_that_hangs_is_ended() -> None:
    code = """\
        import common, time
        start = time.monotonic()
        status = common.run(["sleep", "60"], "test-hang", timeout_s=1.0)
        print(status, time.monotonic() - start < 20)
    """
    assert inside(code) == "124 True\n"


def test_ending_dev_ends_its_children(tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "child"
    code = """\
        import common, signal
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        script = f"sleep 1; echo $$ > {sys.argv[2]}; sleep 300"
        common.run(["sh", "-c", script], "test-end")
    """
    text = "import sys; sys.path.insert(0, sys.argv[1])\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", text, str(ROOT / "tools" / "devtool"), str(mark)]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (mark.exists() and mark.read_text().strip()):
        time.sleep(0.05)  # sleeps: between two looks
        assert started.poll() is None
    child = int(mark.read_text())
    started.terminate()
    started.wait(timeout=60)
    for _ in range(200):
        if not pathlib.Path(f"/proc/{child}").exists():
            return
        time.sleep(0.05)  # sleeps: between two looks
    raise AssertionError(f"child {child} still runs")


def test_bench_chooses_rows_of_versus_by_their_names() -> None:
    out = inside("""
        import bench
        found = {bench.VERSUS: ["python", "bench_versus.py"], "bench_plan": ["bench_plan"]}
        rows = {"pair_first": "a", "hosts_first": "b", "idle": "c"}
        print(bench.choose(["first"], found, rows))
        print(bench.choose(["versus"], found, rows))
        print(bench.choose(["plan"], found, rows))
        print(bench.choose(["absent"], found, rows))
    """)
    whole = "{'versus/bench_versus.py': ['python', 'bench_versus.py']}"
    chosen = whole.replace("]}", ", '^pair_first$', '^hosts_first$']}")
    assert out.splitlines() == [chosen, whole, "{'bench_plan': ['bench_plan']}", "{}"]


def test_without_words_it_says_the_four_things_to_do() -> None:
    done = dev()
    assert done.returncode == 0
    for command in ("./dev demo", "./dev doctor", "./dev test", "pip install ."):
        assert f"    {command} " in done.stdout


def test_doctor_looks_and_installs_nothing(tmp_path: pathlib.Path) -> None:
    shutil.copy(ROOT / "dev", tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("*.pyc"))
    done = subprocess.run([str(tmp_path / "dev"), "doctor"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "nixl         neither built nor set up: `./dev demo`" in done.stdout
    assert "tools/requirements-demo.txt" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev", "tools"]


def test_each_command_installs_what_it_needs_and_no_more() -> None:
    out = inside("""
        import builds, environment, steps
        needed, optional = environment.packages(["build"])
        print([w for w in ("fio", "clang", "torch", "ucx", "ccache") if w in " ".join(needed)])
        print(optional, environment.GROUPS["build"].pip)
        print(sorted(set(steps.STEPS) - set(steps.NEEDS)))
        print(sorted(set(builds.PRESETS) - set(builds.NEEDS)))
        groups = set().union(*steps.NEEDS.values(), *builds.NEEDS.values())
        print(sorted(groups - set(environment.GROUPS)))
        lists = [environment.requirements(n) for n, g in environment.GROUPS.items() if g.pip]
        print([path for path in lists if not path.exists()])
    """)
    assert out.splitlines() == ["[]", "[] demo", "[]", "[]", "[]", "[]"]


def test_a_changed_list_is_installed_once_more(tmp_path: pathlib.Path) -> None:
    code = f"""\
        import environment, pathlib
        folder = pathlib.Path({str(tmp_path)!r})
        environment.VENV, environment.TOOLS_FOLDER = folder / "venv", folder
        environment.VENV_PYTHON = folder / "venv" / "bin" / "python"
        environment.VENV_PYTHON.parent.mkdir(parents=True)
        for name in ("demo", "dev"):
            (folder / f"requirements-{{name}}.txt").write_text(name)
        asked = []
        environment.pip_install = lambda *words: asked.append([str(w.name) for w in words[1::2]])
        environment.VENV_PYTHON.write_text("")
        environment.make_venv(["venv", "build"])
        environment.make_venv(["build", "tests"])
        environment.make_venv(["build", "tests"])
        (folder / "requirements-demo.txt").write_text("more")
        environment.make_venv(["build", "tests"])
        print(asked)
    """
    demo, tests = "['requirements-demo.txt']", "['requirements-dev.txt']"
    assert inside(code).splitlines()[-1] == f"[{demo}, {tests}, {demo}]"


CHANGELOG = """\
    import release, common
    good = "# Log\\n\\n## 2.0.0 (2026-01-31)\\n\\n- a change\\n\\n## 1.0.0 (2025-01-31)\\n\\n- x\\n"
    for text, draft in [
        (good, False),
        (good.replace("2026-01-31", "in preparation"), True),
        (good.replace("2026-01-31", "in preparation"), False),
        (good.replace("- a change\\n", ""), False),
        (good.replace("## 2.0.0", "## 1.9.0"), False),
    ]:
        try:
            release.check_changelog(text, "2.0.0", draft)
            print("good")
        except common.Failure as failure:
            print(failure)
    print(release.version() in (release.ROOT / "CHANGELOG.md").read_text())
"""


def test_a_release_needs_its_changelog() -> None:
    good, draft, undated, empty, other, known = inside(CHANGELOG).splitlines()
    assert (good, draft, known) == ("good", "good", "True")
    assert "write the date" in undated
    assert "says nothing about 2.0.0" in empty
    assert "not '## 2.0.0 (DATE)'" in other
