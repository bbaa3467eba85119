"""A training that died and goes on gives the iterates of one that did not, whatever the method and the moment."""

import signal
import time

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD
from mpi4py import MPI
from support.ranks import on_ranks
from support.trainings import TRAININGS, problem_of

import ctrlnet as cn
from ctrlnet.storage import Checkpoint


class Death(Exception):
    """What ends a training in the middle."""


def dying_after(iterations):
    seen = []

    def callback(iteration):
        seen.append(iteration)
        if len(seen) > iterations:
            raise Death
    return callback


def difference(found, expected):
    """The largest relative difference of controls, a control at a time."""
    return max(np.abs(a.dat.data_ro - b.dat.data_ro).max() / max(np.abs(b.dat.data_ro).max(), 1e-300)
               for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def whole():
    """Every training from its start to its end, once."""
    kept = {}

    def of(name):
        if name not in kept:
            kept[name] = TRAININGS[name](problem_of())
        return kept[name]
    return of


@pytest.mark.parametrize("name", TRAININGS)
def test_the_iterates_are_those_of_a_run_that_did_not_die(name, whole, tmp_path):
    expected, history = whole(name)
    count = len(history.iterations)
    for died in sorted({1, count // 3, 2 * count // 3, count - 1}):
        path = tmp_path / f"{died}.h5"
        with pytest.raises(Death):
            TRAININGS[name](problem_of(), checkpoint=Checkpoint(path, iterations=1), callback=dying_after(died))
        live = []
        found, again = TRAININGS[name](
            problem_of(), checkpoint=Checkpoint(path, iterations=1, resume=True), callback=live.append)
        assert difference(found, expected) <= 1e-12, f"died after {died} of {count}"
        assert [i.objective for i in again.iterations] == pytest.approx(history.column("objective"), rel=1e-12)
        assert [i.work for i in again.iterations] == history.column("work")
        assert 0 < len(live) <= count - died + 1 and again.reason == history.reason  # nothing is done twice
        assert np.diff(again.column("seconds")).min() >= 0 or name == "multiscale"


def test_a_run_that_ended_is_not_run_again_but_goes_on_with_a_later_limit(whole, tmp_path):
    train, path = TRAININGS["one level"], tmp_path / "run.h5"
    train(problem_of(), iterations=5, checkpoint=path)
    live = []
    train(problem_of(), iterations=5, checkpoint=Checkpoint(path, resume=True), callback=live.append)
    assert not live
    found, _ = train(problem_of(), checkpoint=Checkpoint(path, resume=True), callback=live.append)
    assert difference(found, whole("one level")[0]) <= 1e-12 and len(live) == 3


def test_passes_are_resumed_between_batches(tmp_path, monkeypatch, whole):
    expected, _ = whole("Adam")
    written = []
    write = Checkpoint.write

    def dying(self, tree, comm, own=None):
        write(self, tree, comm, own)
        written.append(tree["place"]["batch"])
        if len(written) == 12:
            raise Death

    monkeypatch.setattr(Checkpoint, "due", lambda self, iterations, comm: True)
    monkeypatch.setattr(Checkpoint, "write", dying)
    with pytest.raises(Death):
        TRAININGS["Adam"](problem_of(), checkpoint=tmp_path / "run.h5")
    assert written[-1] > 0
    monkeypatch.undo()
    found, _ = TRAININGS["Adam"](problem_of(), checkpoint=Checkpoint(tmp_path / "run.h5", resume=True))
    assert difference(found, expected) <= 1e-12


# Files.

def test_the_last_two_are_kept_and_the_one_before_serves_where_the_last_is_damaged(whole, tmp_path):
    train, path = TRAININGS["L-BFGS, projected"], tmp_path / "run.h5"
    with pytest.raises(Death):
        train(problem_of(), checkpoint=Checkpoint(path, iterations=1), callback=dying_after(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "run.h5.1"]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.warns(UserWarning, match=r"Going on from .*run.h5.1"):
        found, _ = train(problem_of(), checkpoint=Checkpoint(path, resume=True))
    assert difference(found, whole("L-BFGS, projected")[0]) <= 1e-12
    (tmp_path / "run.h5.1").unlink()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not all of it is there"):
        train(problem_of(), checkpoint=Checkpoint(path, resume=True))


def test_without_resume_a_run_starts_anew(tmp_path, whole):
    train, path = TRAININGS["one level"], tmp_path / "run.h5"
    train(problem_of(), iterations=2, checkpoint=path)
    live = []
    train(problem_of(), checkpoint=Checkpoint(path), callback=live.append)
    assert len(live) == len(whole("one level")[1].iterations)


@pytest.mark.parametrize("name", ["one level", "Adam", "multiscale", "L-BFGS, joint"])
def test_the_checkpoint_of_another_run_is_refused(name, tmp_path):
    path = tmp_path / "run.h5"
    TRAININGS[name](problem_of(), iterations=2, checkpoint=path)
    with pytest.raises(ValueError, match=r"run.h5 is the checkpoint of another run: its .*images.* differ"):
        TRAININGS[name](problem_of(count=30), checkpoint=Checkpoint(path, resume=True))
    other = {"one level": "Adam", "Adam": "one level"}.get(name, "growing samples")
    with pytest.raises(ValueError, match="another run"):
        TRAININGS[other](problem_of(), checkpoint=Checkpoint(path, resume=True))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    problem = problem_of()
    cn.save(tmp_path / "net.h5", problem, problem.controls())
    with pytest.raises(ValueError, match="no checkpoint of a training but a trained network"):
        TRAININGS["one level"](problem_of(), checkpoint=Checkpoint(tmp_path / "net.h5", resume=True))
    for settings in (dict(seconds=0), dict(iterations=0), dict(seconds=-1.0)):
        with pytest.raises(ValueError, match="positive number of seconds or iterations"):
            Checkpoint(tmp_path / "x.h5", **settings)


def test_a_folder_that_is_not_there_is_found_out_before_anything_is_computed(tmp_path):
    live = []
    with pytest.raises(FileNotFoundError, match="no folder"):
        TRAININGS["one level"](problem_of(), checkpoint=tmp_path / "nowhere" / "run.h5", callback=live.append)
    assert not live


def test_writing_takes_little_of_the_time(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.h5", seconds=1e-9)
    began = time.perf_counter()
    TRAININGS["L-BFGS, projected"](problem_of(), iterations=30, checkpoint=checkpoint)
    assert checkpoint.spent <= 0.02 * (time.perf_counter() - began) + 2 * checkpoint.longest


# Interruption.

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["one level", "Adam"])
def test_an_interrupted_run_is_kept_and_goes_on(name, number, tmp_path, whole):
    def interrupting(iteration):
        if iteration.number == 2:
            signal.raise_signal(number)

    path = tmp_path / "run.h5"
    _, history = TRAININGS[name](problem_of(), checkpoint=path, callback=interrupting)
    assert history.reason == "interrupted" and path.is_file()
    found, again = TRAININGS[name](problem_of(), checkpoint=Checkpoint(path, resume=True))
    expected, history = whole(name)
    assert difference(found, expected) <= 1e-12 and again.reason == history.reason


# Ranks.

@on_ranks
def test_on_ranks(tmp_path):
    path, problem = COMM_WORLD.bcast(tmp_path), problem_of()
    for name in ("one level", "Adam", "trust region, Gauss-Newton", "L-BFGS, joint"):
        expected, _ = TRAININGS[name](problem)
        with pytest.raises(Death):
            TRAININGS[name](problem, checkpoint=Checkpoint(path / name, iterations=1), callback=dying_after(4))
        found, _ = TRAININGS[name](problem, checkpoint=Checkpoint(path / name, resume=True))
        assert COMM_WORLD.allreduce(difference(found, expected), op=MPI.MAX) <= 1e-12, name


@pytest.mark.parallel(nprocs=[2])
def test_another_number_of_ranks_is_refused(tmp_path):
    path = COMM_WORLD.bcast(tmp_path) / "run.h5"
    alone = TRAININGS["one level"]
    if COMM_WORLD.rank == 0:
        alone(problem_of(comm=COMM_SELF), iterations=2, checkpoint=path)
    COMM_WORLD.barrier()
    with pytest.raises(ValueError, match="numbering on ranks.*SCOTCH_DETERMINISTIC"):
        alone(problem_of(), checkpoint=Checkpoint(path, resume=True))
