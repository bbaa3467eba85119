"""Kill trainings at random moments, let them go on, and hold the end against that of one that was left alone.

``make kill`` runs it; ``ARGS="--moments 200 --seed 3"`` for more. Every line is a moment: the training, the ranks, when
it was killed, how many iterations the run that went on still had to do, and the largest relative difference of a
control. It ends with 1 if a difference is above 1e-12 or a file is damaged.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests" / "support" / "killed_training.py"
NAMES = ("L-BFGS, projected", "trust region, Gauss-Newton", "Adam", "growing samples", "multiscale", "experiment 2")
DEMO = ("--train", "300", "--newton-train", "100", "--test", "50", "--levels", "7", "14", "--iterations", "10", "10",
        "--fine-iterations", "15", "--epochs", "4", "4", "--fine-epochs", "8", "--without-torch")


def command(name: str, ranks: int, folder: Path, resume: bool) -> list[str]:
    """Return the command that trains, with its checkpoints in a folder."""
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    more = ["--resume"] if resume else []
    if name == "experiment 2":
        script = ROOT / "demos" / "experiment_2" / "experiment_2.py"
        output = ["--output", str(folder), "--checkpoint", "0.2"]
        return [*launcher, sys.executable, str(script), *DEMO, *output, *more]
    return [*launcher, sys.executable, str(WORKER), name, str(folder), *more]


def start(name: str, ranks: int, folder: Path, resume: bool = False) -> subprocess.Popen:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "SCOTCH_DETERMINISTIC": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen(
        command(name, ranks, folder, resume), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, cwd=folder)


def finished(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=900)
    if process.returncode != 0:
        raise RuntimeError(f"a training ended with {process.returncode}:\n{said}")
    return said


def outcome(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Return what a training left: its controls, or a demo's figures that are no times."""
    if name == "experiment 2":
        figures = json.loads((folder / "results.json").read_text())["figures"]
        return {k: np.array([v]) for k, v in figures.items() if "seconds" not in k and v is not None}
    with np.load(folder / "end.npz") as found:
        return dict(found)


def killed(name: str, ranks: int, folder: Path, after: float) -> bool:
    """Start a training and kill all of its processes; return whether it still ran."""
    process, began = start(name, ranks, folder), time.perf_counter()
    while time.perf_counter() - began < after and process.poll() is None:
        time.sleep(0.01)
    running = process.poll() is None
    for entry in Path("/proc").glob("[0-9]*"):  # ranks have process groups of their own, but one session
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(int(entry.name)) == process.pid:
                os.kill(int(entry.name), signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return running


def damaged(folder: Path) -> list[str]:
    """Return the checkpoints that are not whole."""
    out = []
    for path in [*folder.rglob("*.h5"), *folder.rglob("*.h5.1")]:
        try:
            with h5py.File(path, "r") as file:
                assert "ctrlnet" in file
        except (OSError, AssertionError):
            out.append(str(path))
    return out


def main(arguments: list[str] | None = None) -> int:
    line = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    line.add_argument("--moments", type=int, default=50)
    line.add_argument("--seed", type=int, default=0)
    line.add_argument("--names", nargs="+", default=list(NAMES), choices=NAMES)
    line.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    options = line.parse_args(arguments)
    rng, faults = np.random.default_rng(options.seed), 0
    cases = [(name, ranks) for name in options.names for ranks in options.ranks]
    wholes: dict[tuple[str, int], tuple[dict[str, np.ndarray], float]] = {}
    print(f"seed {options.seed}\n{'training':>28} {'ranks':>5} {'killed after':>12} {'difference':>11}")
    with tempfile.TemporaryDirectory() as top:
        for moment in range(options.moments):
            name, ranks = cases[moment % len(cases)]
            if (name, ranks) not in wholes:
                folder = Path(top) / f"whole{len(wholes)}"
                folder.mkdir()
                began = time.perf_counter()
                finished(start(name, ranks, folder))
                wholes[name, ranks] = outcome(name, folder), time.perf_counter() - began
            expected, seconds = wholes[name, ranks]
            folder = Path(top) / f"moment{moment}"
            folder.mkdir()
            after = float(rng.uniform(0.3, 1.0)) * seconds  # before that, processes start and compile
            running = killed(name, ranks, folder, after)
            wrong = damaged(folder)
            finished(start(name, ranks, folder, resume=True))
            found = outcome(name, folder)
            off = max(np.abs(found[k] - v).max() / max(np.abs(v).max(), 1e-300) for k, v in expected.items())
            bad = off > 1e-12 or bool(wrong) or found.keys() != expected.keys()
            faults += bad
            print(f"{name:>28} {ranks:5d} {after:10.2f} s {off:11.1e}{'' if running else '  (had ended)'}"
                  f"{'  WRONG ' + ', '.join(wrong) if bad else ''}", flush=True)
    print(f"{options.moments} moments, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
