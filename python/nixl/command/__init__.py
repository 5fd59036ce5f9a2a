"""The command ``nixl``: top, bench, doctor, hicache. Each has ``--help``."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "top": ("nixl.command.top", "the agents of this host, as they work"),
    "bench": ("nixl.command.bench", "how fast two processes of this host move bytes"),
    "doctor": ("nixl.doctor", "what this machine has for NIXL, what is missing, what to do"),
    "hicache": ("nixl.hicache.__main__", "look after a HiCache directory"),
}


def usage() -> str:
    lines = ["usage: nixl [--version] COMMAND [ARGUMENT...]", ""]
    lines += [f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "nixl COMMAND --help tells the arguments of each."])


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from nixl import __version__

        print(f"nixl {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"nixl: no command {words[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[words[0]][0])
    try:
        return int(module.main(words[1:]))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `nixl top --once | head`
        sys.stderr.close()
        return 0
