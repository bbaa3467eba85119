r"""How a training goes on after its process has died: what it asked for is answered from a file, without computing.

An optimiser is a deterministic map from answers (values, gradients, products, draws) to questions. A journal keeps the
answers in their order. A run that goes on asks the same questions again and is given the kept answers, until they end;
then what is computed takes over where it was. So nothing of an optimiser's insides, PETSc's secant pairs, line searches
and trust regions among them, needs to be known; and no step is repeated that takes time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI

from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.storage.checkpoints import Checkpoint
from ctrlnet.storage.columns import columns_of, rows_of
from ctrlnet.storage.history import Iteration
from ctrlnet.storage.places import numbering_of

__all__ = ["Journal", "Resumable", "another_run", "checksum", "generator_states", "numbering", "set_generators"]

State = Mapping[str, Any]
Halves = tuple[State, State]  # what all ranks share, and what each has of its own


class Resumable(Protocol):
    """What computes the answers, and can be brought into a state that it was in before."""

    def state(self) -> Halves:
        """Return what the next answer depends on."""

    def restore(self, shared: State, own: State) -> None:
        """Go back to a state; ``own`` is empty if it is that of another number of ranks."""

    def revive(self) -> None:
        """Propagate what was propagated in that state; not counted as work."""


class Journal:
    """The answers of one training, in memory and on disk; without a checkpoint it keeps none.

    Parameters
    ----------
    checkpoint
        Where they are kept.
    comm
        All ranks.
    run
        What tells this training from others: numbers and texts, and arrays, of which a checksum is kept.
    rngs
        The generators of what is drawn; they go on too.

    Raises
    ------
    ValueError
        If the file is one of another training.
    """

    def __init__(
        self, checkpoint: Checkpoint | None, comm: MPI.Comm, run: Mapping[str, Any] | None = None,
        rngs: Sequence[np.random.Generator] = (),
    ):
        self._checkpoint, self._comm = checkpoint, comm
        self._run = {name: checksum(value) for name, value in (run or {}).items()}
        self._rngs = [rng for rng in rngs if rng is not None]
        self._answers: list[np.ndarray] = []
        self._states: list[Halves] = []
        self._rows: list[Iteration] = []
        self._place = [0, 0, 0]  # of the next answer, state and row to be given from the file
        self._tail: Halves | None = None
        self._written = 0
        self._attended: Resumable | None = None
        found = None if checkpoint is None else checkpoint.read(comm)
        if found is not None:
            self._open(found)

    def _open(self, found: Mapping[str, Any]) -> None:
        if found["run"] != self._run:
            assert self._checkpoint is not None
            raise another_run(self._checkpoint, found["run"], self._run)
        sizes = found["sizes"]
        self._answers = np.split(found["answers"], np.cumsum(sizes)[:-1]) if len(sizes) else []
        mine = found["ranks"].get(str(self._comm.rank), {}) if len(found["ranks"]) == self._comm.size else {}
        self._states = [(found["states"][n], mine.get("states", {}).get(n, {})) for n in map(
            str, range(len(found["states"])))]
        self._tail = found["tail"], mine.get("tail", {})
        self._rows = rows_of(Iteration, found["rows"])
        self._written = len(self._rows)

    def attend(self, solve: Resumable) -> None:
        """Say whose questions come now: its state is kept, and restored where the file's answers end."""
        self._attended = solve

    @property
    def replays(self) -> bool:
        """Whether what comes next is given from the file."""
        return self._tail is not None and self._place[0] < len(self._answers)

    def answer(self, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the next answer: that of the file, or the one that is computed. It is not to be written to."""
        if self.replays:
            self._place[0] += 1
            return self._answers[self._place[0] - 1]
        self._take_over()
        found = compute()
        if self._checkpoint is not None:
            self._answers.append(np.atleast_1d(np.asarray(found, dtype=float)).ravel().copy())
            self._place[0] = len(self._answers)
        return found

    def row(self, compute: Callable[[], Iteration]) -> tuple[Iteration, bool]:
        """Return the next iteration, and whether it was computed now."""
        if self._place[2] < len(self._rows):
            self._place[2] += 1
            return self._rows[self._place[2] - 1], False
        self._take_over()
        found = compute()
        if self._checkpoint is not None:
            self._rows.append(found)
            self._place[2] = len(self._rows)
        return found, True

    def settle(self) -> None:
        """At the end of a solve: keep the state that it leaves, or put it into that of the file."""
        if self._checkpoint is None or self._attended is None:
            return
        if self._place[1] < len(self._states):
            self._attended.restore(*self._states[self._place[1]])
        else:
            self._take_over()
            self._states.append(self._attended.state())
        self._place[1] += 1

    def _take_over(self) -> None:
        """Where the file's last answer has been given: bring what computes from now on into the state of then."""
        if self._tail is None:
            return
        (tail, own), self._tail = self._tail, None
        set_generators(self._rngs, tail["generators"])
        assert self._attended is not None
        self._attended.restore(tail["solve"], own)
        self._attended.revive()

    def keep(self, now: bool = False) -> None:
        """After an iteration: write the checkpoint if it is time, or ``now``. Collective."""
        if self._checkpoint is None or self._attended is None or self._tail is not None:
            return
        if not now and not self._checkpoint.due(len(self._rows) - self._written, self._comm):
            return
        solve, own = self._attended.state()
        names = [str(number) for number in range(len(self._states))]
        self._checkpoint.write(
            {"run": dict(self._run), "rows": columns_of(self._rows),
             "answers": np.concatenate(self._answers) if self._answers else np.empty(0),
             "sizes": np.array([a.size for a in self._answers], dtype=int),
             "states": {n: s[0] for n, s in zip(names, self._states, strict=True)},
             "tail": {"generators": generator_states(self._rngs), "solve": solve}},
            self._comm,
            {"states": {n: s[1] for n, s in zip(names, self._states, strict=True)}, "tail": own})
        self._written = len(self._rows)


def numbering(problem: TrainingProblem) -> dict[str, str]:
    """Return what a run says of the order of its nodes, which its arrays and its round-off follow. Collective."""
    spaces = {"network": problem.network.space, "readout": problem.readout.space}
    return {"numbering on ranks": str(problem.average.comm.size)} | {
        f"numbering of the {name}'s nodes": numbering_of(V) for name, V in spaces.items() if V.value_size == 1}


def another_run(checkpoint: Checkpoint, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> ValueError:
    """Return the error of a checkpoint that belongs to another run."""
    differ = [name for name in ours if theirs.get(name) != ours[name]] or list(theirs)
    how = "Give this one another path, or start anew without resume."
    if all(name.startswith("numbering") for name in differ):
        how = ("The mesh was split over ranks in another way; give as many ranks as before, and set "
               "SCOTCH_DETERMINISTIC=1 in the environment, without which a mesh is not always split alike.")
    return ValueError(f"{checkpoint.path} is the checkpoint of another run: its {', '.join(differ)} differ. {how}")


def checksum(value: Any) -> Any:
    """Return a value as a file keeps it: arrays as checksums."""
    if isinstance(value, np.ndarray):
        return f"{zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}"
    return value


def generator_states(rngs: Sequence[np.random.Generator]) -> dict[str, Any]:
    """Return the states of generators, as plain data."""
    return {str(number): _plain(rng.bit_generator.state) for number, rng in enumerate(rngs)}


def set_generators(rngs: Sequence[np.random.Generator], states: Mapping[str, Any]) -> None:
    """Put generators into states that :func:`generator_states` returned."""
    for number, rng in enumerate(rngs):
        rng.bit_generator.state = states[str(number)]


def _plain(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    return state.item() if isinstance(state, np.generic) else state
