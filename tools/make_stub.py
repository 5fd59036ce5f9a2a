"""Makes the stubs of the native modules from the built package, with nanobind's stubgen.

    PYTHONPATH=build/release/python .venv/bin/python tools/make_stub.py

writes python/nixl/_bindings.pyi and python/nixl/_hicache.pyi. Types that a module itself does not
tell are in the *.pat file beside its source.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "nixl"
PATTERNS = {
    "_bindings": ROOT / "bindings" / "python" / "stub.pat",
    "_hicache": ROOT / "bindings" / "python" / "hicache" / "stub.pat",
}
# A constant with another one below it: no empty line between them.
ONE_OF_MANY = re.compile(r"^( *)(\w+(?:: \w+)? = .*)\n\n(?=\1\w+(?:: \w+)? = )", re.M)
HEAD = """
Made by tools/make_stub.py from the module and its stub.pat.
\"\"\"

# ruff: noqa: C408, I001
"""


def made(module: str) -> str:
    """The text of a module's stub, not yet formatted."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "made.pyi"
        command = [sys.executable, "-m", "nanobind.stubgen", "-q", "--include-private"]
        command += ["-m", f"nixl.{module}", "-o", str(file)]
        if PATTERNS[module].exists():
            command += ["-p", str(PATTERNS[module])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"make_stub: nanobind's stubgen failed\n{done.stderr}{done.stdout}")
        first, *rest = file.read_text().splitlines(keepends=True)
    text = ONE_OF_MANY.sub(r"\1\2\n", "".join(rest))
    what = first.strip().removeprefix('"""').removesuffix('"""')
    return f'"""{what}\n{HEAD}{text}'


def main() -> int:
    for module in PATTERNS:
        stub = PACKAGE / f"{module}.pyi"
        stub.write_text(made(module))
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(stub)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
