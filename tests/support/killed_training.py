"""One training of :mod:`support.trainings`, long enough to be killed: ``killed_training.py name folder [--resume]``."""

import sys
from pathlib import Path

import numpy as np
from firedrake import COMM_WORLD

from ctrlnet.storage import Checkpoint
from support.trainings import TRAININGS, problem_of


def main(name, folder, *resume):
    problem = problem_of(count=600)
    found, _ = TRAININGS[name](
        problem, iterations=30, checkpoint=Checkpoint(Path(folder) / "run.h5", seconds=0.02, resume=bool(resume)))
    if COMM_WORLD.rank == 0:
        np.savez(Path(folder) / "end.npz", **{n: f.dat.data_ro for n, f in found.by_name().items() if n != "W"})


main(*sys.argv[1:])
