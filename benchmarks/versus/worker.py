"""One side of a comparison: runs rounds of one row under the interpreter that started it.

Started by bench_versus.py with PYTHONPATH or a virtual environment that decides which package
`nixl` is. Reads "round" and "end" on standard input, writes one JSON line for each.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def main() -> int:
    row_name, side, scratch = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    row = importlib.import_module("rows").find(row_name)(side, scratch)
    row.setup()
    print(json.dumps({"ready": row.facts}), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps(row.round()), file=answers, flush=True)
    row.close()
    print(json.dumps({"closed": True}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # one of the packages crashes at exit; its figures are in already
