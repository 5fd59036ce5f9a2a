"""The other end of faults_support.Far: a process with an agent that executes what the test sends.

Standard input brings one literal a line: a Python expression, or statements that may leave a value
in `result`. Standard output takes one literal a line: the process, its memory and its metadata,
then for each order (True, value), or (False, name of the exception's class, text).
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable


def obey(make: Callable[..., tuple[object, int, dict[str, object]]]) -> None:
    """`make` gets the literals of the command line; returns an agent, where its memory is, and the
    names that orders may use."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed by mistake goes elsewhere
    agent, base, names = make(*ast.literal_eval(sys.argv[1]))
    answers.write(repr((os.getpid(), base, agent.get_agent_metadata())) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(repr(answer_to(ast.literal_eval(line), names)) + "\n")
        answers.flush()
    agent.close()


def answer_to(code: str, names: dict[str, object]) -> tuple[object, ...]:
    try:
        try:
            value = eval(compile(code, "<test>", "eval"), names)
        except SyntaxError:
            names["result"] = None
            exec(compile(code, "<test>", "exec"), names)
            value = names["result"]
        return (True, value)
    except Exception as error:
        return (False, type(error).__name__, str(error))
