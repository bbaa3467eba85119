"""Makes uses in processes that may die: a line of JSON in, a line of JSON out for each.

The process has everything imported and forks one for every use, so that a crash, a hang or a leak is that one's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).resolve().parents[2] / "ctrlnet")
MEMORY = 6 * 2**30


def outcome_of(d: dict) -> dict:
    """Return what became of a use: ``ok``, ``ours`` (a refusal), or one of what must not be."""
    import use

    try:
        return {"kind": "ok", "said": use.use(d)}
    except use.Contradiction as error:
        return {"kind": "contradiction", "said": str(error)}
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        # Raised there on purpose, not where our code stumbled over None.
        raised_by_us = frames[-1].filename.startswith(PACKAGE) and (frames[-1].line or "").startswith("raise")
        said = "".join(traceback.format_exception(error))[-3000:]
        return {"kind": "ours" if raised_by_us else "foreign", "said": str(error) if raised_by_us else said}


def child(d: dict, out: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        text = json.dumps(outcome_of(d))
    with os.fdopen(out, "w") as pipe:
        pipe.write(text)
    os._exit(0)


def main() -> None:
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(PACKAGE).parent)]
    import use  # noqa: F401

    seconds = int(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print must not come between
    for line in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            signal.alarm(seconds)
            child(json.loads(line), writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        if not said:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            kind = "hang" if number == signal.SIGALRM else "crash"
            said = json.dumps({"kind": kind, "said": f"signal {number}, status {status}"})
        print(said, file=answers, flush=True)


main()
