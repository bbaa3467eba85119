"""Random networks, meshes, samples and options through the public calls, each in a process that may die.

``make fuzz`` runs it; ``ARGS="--uses 10000 --seed 0 --minutes 60"``. Forbidden are a crash of the interpreter, a hang,
a number that is not finite or not what an oracle says without an exception, and an exception of another library
without ours around it. The smallest description of each kind of failure is printed; it ends with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from inputs import USES
from tqdm import tqdm


class Worker:
    """A process that makes uses; started again when it has died."""

    def __init__(self, seconds: int):
        self._seconds = seconds
        self._process: subprocess.Popen | None = None

    def __call__(self, d: dict) -> dict:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(self._seconds)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(d), file=self._process.stdin, flush=True)
        said = self._process.stdout.readline()
        return json.loads(said) if said else {"kind": "crash", "said": "the worker itself died"}


class TimeIsUp(Exception):
    """Ends hypothesis between two uses."""


def fuzz(uses: int, number: int, minutes: float, seconds: int, known: set[str], refusals: Counter
         ) -> tuple[Counter, dict[str, dict]]:
    """Make uses until one fails or time is up; return the counts of outcomes, and the smallest failure by its words.

    What was refused is counted by the first words of the refusal.
    """
    worker, counts, until = Worker(seconds), Counter(), time.monotonic() + 60 * minutes
    failures: dict[str, dict] = {}
    shrinking: str | None = None
    with tqdm(total=uses, disable=None, ncols=80) as bar:
        @seed(number)
        @settings(max_examples=uses, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False)
        @given(USES)
        def each(d: dict) -> None:
            nonlocal shrinking
            if time.monotonic() > until:
                raise TimeIsUp
            outcome = worker(d)
            if shrinking is None:
                counts[outcome["kind"]] += 1
                bar.update()
                if outcome["kind"] == "ours":
                    refusals[" ".join(outcome["said"].split()[:9])] += 1
            if outcome["kind"] in ("ok", "ours"):
                return
            words = f"{outcome['kind']}: {outcome['said'].strip().splitlines()[-1]}"[:200]
            if words in known or shrinking not in (None, words):  # another failure has its own turn
                return
            shrinking = words
            failures.clear()
            failures[words] = {"use": d} | outcome
            raise AssertionError(words)

        try:
            each()
        except (AssertionError, Flaky, TimeIsUp):  # Flaky: it failed, and then did not, or time was up while it shrank
            pass
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--uses", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0, help="no use is begun after that")
    parser.add_argument("--refusals", type=int, default=0, help="print the most frequent refusals, so many")
    parser.add_argument("--seconds", type=int, default=120, help="a use that takes longer hangs")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.uses} uses")
    began, total, refusals, found = time.monotonic(), Counter(), Counter(), {}
    while (left := arguments.uses - sum(total.values())) > 0:
        minutes = arguments.minutes - (time.monotonic() - began) / 60
        if minutes <= 0:
            break
        counts, failures = fuzz(
            left, arguments.seed + sum(total.values()), minutes, arguments.seconds, set(found), refusals)
        total += counts
        found |= failures
    print("  ".join(f"{kind} {count}" for kind, count in sorted(total.items())), f" of {sum(total.values())} uses")
    for words, count in refusals.most_common(arguments.refusals):
        print(f"{count:6d} refused: {words} ...")
    for words, failure in found.items():
        print(f"\n{words}\n{json.dumps(failure['use'])}\n{failure['said']}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
