"""`python -m walrecover.saver SOCKET MEMORY TRAINER ASSIGNMENT`, started by `client`.

Owns leaving the training's tree, before anything is imported that takes time: whoever started this
waits for its end.
"""

from __future__ import annotations

import os
import sys


def _leave_the_tree() -> None:
    """Become nobody's child: the supervisor's, where there is one, or init's."""
    if os.fork():
        os._exit(0)
    os.setsid()


if __name__ == "__main__":
    _leave_the_tree()
    from walrecover.saver.process import main

    sock, memory, trainer = (int(word) for word in sys.argv[1:4])
    raise SystemExit(main(sock, memory, trainer, sys.argv[4]))
