"""How scripts end: the folder tried first, interruption, a full disk, a figure that cannot be drawn."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from firedrake import COMM_WORLD
from support.demos import ROOT, script

import ctrlnet as cn

QUICK = ("--train", "400", "--test", "50", "--levels", "7", "14", "28", "--draw", "50")


def start(folder, *arguments, ranks=1, name="mnist_multiscale", **options):
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, str(script(name)), *arguments, "--output", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, **options)


def ended(process):
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


@pytest.mark.parametrize("name", ["mnist_multiscale", "sphere", "newton_counts"])
def test_a_folder_that_cannot_be_written_is_refused_at_the_start(name, tmp_path):
    (tmp_path / "afile").write_text("")
    code, said = ended(start(tmp_path / "afile" / "x", name=name))
    assert code == 2 and "Traceback" not in said
    assert "The results cannot be written to" in said and "--output" in said


def test_ctrl_c_keeps_what_was_trained_says_where_and_goes_on(tmp_path):
    whole = tmp_path / "whole"
    code, _ = ended(start(whole, *QUICK))
    assert code == 0
    process = start(tmp_path / "run", *QUICK, "--checkpoint", "0.01", env=os.environ | {"PYTHONUNBUFFERED": "1"})
    checkpoint = tmp_path / "run" / "checkpoints" / "levels.h5"
    while not checkpoint.is_file() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)  # in a training or between two of them
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130 and "Traceback" not in said, said
    assert "interrupted" in said and "What was trained is in" in said and "--resume goes on" in said
    code, _ = ended(start(tmp_path / "run", *QUICK, "--resume"))
    assert code == 0
    expected, found = (json.loads((f / "results.json").read_text())["figures"] for f in (whole, tmp_path / "run"))
    for key, value in expected.items():
        if "seconds" not in key:
            assert found[key] == pytest.approx(value, rel=1e-12), key


# A process whose files cannot grow beyond a size, as on a disk that is full; what it compiles it has compiled before.
FULL = """
import resource
TRAININGS["one level"](problem_of(), iterations=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
"""
SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT / 'tests')!r})
sys.argv = ["script", "--output", sys.argv[1]]
from ctrlnet.report import CommandLine, Run
arguments = CommandLine("A script.", "results").parse()
run = Run(arguments)
from support.trainings import TRAININGS, problem_of
import ctrlnet as cn
{{before}}
run.figures["one"] = 1.0
found, history = TRAININGS["one level"](problem_of(), checkpoint=run.checkpoint("a training"))
run.trained(history)
def plot(path):
    {{what}}
run.figure("figure.png", plot)
run.finish(histories=history.as_dict())
"""


def run_script(what, folder, before=""):
    text = SCRIPT.replace("{what}", what).replace("{before}", before)
    done = subprocess.run(
        [sys.executable, "-c", text, str(folder)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)})
    return done.returncode, done.stdout + done.stderr


STOP = "os.kill(os.getpid(), signal.{signal})"
# Where a signal may find a script: in an iteration, where a level passes on to the next, after the trainings.
MOMENTS = {
    "iteration": "stop_at = lambda iteration: STOP if iteration.number == 2 else None",
    "between levels": (
        "stop_at, prolong = None, cn.Readout.prolong\n"
        "def passing_on(*arguments):\n    STOP\n    return prolong(*arguments)\n"
        "cn.Readout.prolong = passing_on"),
    "evaluation": "stop_at = None",
}


@pytest.mark.parametrize("moment, signal_name", [
    ("iteration", "SIGINT"), ("iteration", "SIGTERM"), ("between levels", "SIGINT"), ("evaluation", "SIGTERM")])
def test_a_signal_at_any_moment_keeps_what_was_trained(moment, signal_name, tmp_path):
    stop = STOP.format(signal=signal_name)
    before = "import os, signal\n" + MOMENTS[moment].replace("STOP", stop)
    before += '''
_, history = TRAININGS["multiscale"](problem_of(), callback=stop_at, checkpoint=run.checkpoint("levels"))
run.trained(history)
print("trained")
''' + (stop if moment == "evaluation" else "")
    code, said = run_script("pass", tmp_path, before)
    assert code == 130 and "Traceback" not in said, said
    assert "interrupted" in said and "What was trained is in" in said
    assert ("trained\n" in said.replace("What was trained", "")) == (moment == "evaluation")
    assert cn.storage.Checkpoint(tmp_path / "checkpoints" / "levels.h5", resume=True).read(COMM_WORLD) is not None
    if moment != "evaluation":
        assert json.loads((tmp_path / "results.json").read_text())["histories"][-1]["reason"] == "interrupted"


def test_a_signal_before_the_first_training_says_that_there_is_none(tmp_path):
    code, said = run_script("pass", tmp_path, "import os, signal\n" + STOP.format(signal="SIGTERM"))
    assert code == 130 and "Nothing was trained yet" in said and "Traceback" not in said


def test_a_second_signal_ends_at_once(tmp_path):
    stop = STOP.format(signal="SIGINT")
    code, said = run_script("pass", tmp_path, f'''
import os, signal
def twice(iteration):
    {stop}
    {stop}
TRAININGS["multiscale"](problem_of(), callback=twice)
''')
    assert code not in (0, 130) and "KeyboardInterrupt" in said


def test_a_figure_that_cannot_be_drawn_loses_nothing_else(tmp_path):
    code, said = run_script("raise ValueError('no pen')", tmp_path)
    assert code == 1 and "Not written: figure.png (ValueError: no pen)" in said and "Traceback" not in said
    assert json.loads((tmp_path / "results.json").read_text())["figures"] == {"one": 1.0}


def test_a_full_disk_is_told_and_the_rest_is_kept(tmp_path):
    code, said = run_script("path.write_bytes(bytes(10**6))", tmp_path, FULL)
    assert code == 1 and "could not be written" in said and "the training goes on" in said
    assert "Not written: figure.png (OSError" in said
    assert json.loads((tmp_path / "results.json").read_text())["figures"] == {"one": 1.0}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == []  # nothing half-written is left


def test_a_network_that_does_not_fit_on_the_disk_is_refused_and_leaves_nothing(tmp_path):
    code, said = run_script("p = problem_of(); cn.save(path.with_name('net.h5'), p, p.controls())", tmp_path, FULL)
    assert code == 1 and "Not written: figure.png (OSError" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "results.json"]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parallel(nprocs=1)
def test_on_ranks_a_folder_is_refused_once(ranks, tmp_path):
    (tmp_path / "afile").write_text("")
    code, said = ended(start(tmp_path / "afile" / "x", ranks=ranks))
    assert code == 2 and said.count("The results cannot be written to") == 1 and "Traceback" not in said
