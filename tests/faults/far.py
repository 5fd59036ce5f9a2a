"""The other process of a fault test: an agent with memory, which executes what the test sends.

Started by faults_support.Far. Standard input brings one literal a line: a Python expression, or
statements that may leave a value in `result`. Standard output takes one literal a line:
(True, value), or (False, name of the exception's class, text).
"""

from __future__ import annotations

import ast
import os
import sys
import threading

import nixl
import numpy as np


def when_touched(array, what, every: int = 4096) -> None:
    """Calls `what` in a thread as soon as one of these bytes is another than now."""
    before = array[::every].copy()

    def watch() -> None:
        while (array[::every] == before).all():
            pass
        what()

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed by mistake goes elsewhere
    name, size, shareable, options = ast.literal_eval(sys.argv[1])
    array = np.frombuffer(nixl.alloc(size), np.uint8) if shareable else np.zeros(size, np.uint8)
    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(**options))
    registered = agent.register_memory(array)
    names = {**globals(), "array": array, "agent": agent, "registered": registered}
    answers.write(repr((os.getpid(), array.ctypes.data, agent.get_agent_metadata())) + "\n")
    answers.flush()
    for line in sys.stdin:
        code = ast.literal_eval(line)
        try:
            try:
                value = eval(compile(code, "<test>", "eval"), names)
            except SyntaxError:
                names["result"] = None
                exec(compile(code, "<test>", "exec"), names)
                value = names["result"]
            answer = (True, value)
        except Exception as error:
            answer = (False, type(error).__name__, str(error))
        answers.write(repr(answer) + "\n")
        answers.flush()
    agent.close()


main()
