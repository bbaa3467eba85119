"""Memory: trajectories are recomputed under a limit, and 60,000 images train in less than 2 GiB a rank."""

import subprocess
import sys

import numpy as np
import pytest
from firedrake import FunctionSpace, RectangleMesh

from ctrlnet import ControlSpace, Network, Readout, Sample, TrainingProblem, low_order_operators, stencil_operators

GIB = 2**30
IMAGES, FEATURES, LAYERS = 60_000, 8, 16


@pytest.fixture
def training(monkeypatch):
    """Return a factory of problems on one readout and 150 images in several chunks, one problem a memory limit."""
    monkeypatch.setattr("ctrlnet.objective.chunks._BYTES", 1)

    def factory(precision: str = "double", kind: str = "quadrilateral"):
        quadrilateral = kind == "quadrilateral"
        V = FunctionSpace(RectangleMesh(6, 6, 6.0, 6.0, quadrilateral=quadrilateral), "CG", 1)
        D = stencil_operators(V) if quadrilateral else low_order_operators(V)
        readout = Readout(Network(D, ControlSpace(1.0, 3, D, 3), precision=precision), classes=4)
        rng = np.random.default_rng(5)
        sample = Sample(rng.random((150, 12, 12)), rng.integers(0, 4, 150), classes=4)

        def problems(memory_limit: int) -> TrainingProblem:
            return TrainingProblem(readout, sample, memory_limit=memory_limit)

        assert problems(0).average.chunk_images < 150, "the sample must be in several chunks for this test"
        return problems

    return factory


def chunk_bytes(problem: TrainingProblem) -> int:
    """Return the size of one chunk's trajectory."""
    return problem.network.sweep.trajectory_bytes(problem.network.steps, problem.average.chunk_images)


def limit_for(problems, trajectories: int) -> int:
    """Return the limit that leaves so many bytes for trajectories, besides what inputs and targets take of it."""
    limit = trajectories
    while (wanted := trajectories + problems(limit).average.kept_bytes) > limit:
        limit = wanted
    return limit


def chunks(problem: TrainingProblem) -> int:
    return -(-len(problem.average.sample) // problem.average.chunk_images)


def random_controls(problem: TrainingProblem, rng: np.random.Generator):
    controls = problem.controls(rng, scale=0.3)
    for control in controls[1:]:
        control.dat.data[:] = 0.1 * rng.standard_normal(control.dat.data_ro.shape)
    return controls


@pytest.mark.parametrize("kind", ["quadrilateral", "triangle"])
@pytest.mark.parametrize("precision", ["double", "single"])
def test_recomputed_trajectories_give_the_same_derivatives(training, precision, kind):
    """All trajectories kept, some, one chunk's at a time, a few states: the same arithmetic, so the same numbers."""
    problems = training(precision, kind)
    everything = problems(2**31)
    rng = np.random.default_rng(2)
    controls, direction = random_controls(everything, rng), random_controls(everything, rng)
    found = []
    one = chunk_bytes(everything)
    some = limit_for(problems, 2 * one)  # one chunk's kept, the others in one that they share
    for limit, kept in ((2**31, chunks(everything)), (some, 1), (limit_for(problems, one), 0), (0, 0)):
        problem = problems(limit)
        assert problem.average.plan.kept == kept and problem.average.plan.keeps_all is (limit == 2**31)
        reduced_functional = problem.reduced_functional(controls)
        value = reduced_functional(controls)
        gradient = reduced_functional.derivative()
        product = reduced_functional.hessian(direction)
        found.append([np.array(value), *(d.dat.data_ro.copy() for d in (*gradient, *product))])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert np.array_equal(a, b)


def test_the_limit_bounds_what_is_kept(training):
    """One byte less than all trajectories need, and they are not kept."""
    problems = training()
    needed = limit_for(problems, chunks(problems(0)) * chunk_bytes(problems(0)))
    assert problems(needed).average.keeps_trajectories
    assert not problems(needed - 1).average.keeps_trajectories


def test_kept_trajectories_take_what_was_counted(training):
    problem = training()(2**31)
    problem.reduced_functional(random_controls(problem, np.random.default_rng(2)))
    assert problem.average.storage.sizes == [chunk_bytes(problem)] * chunks(problem)


def test_recomputation_is_counted_as_work(training):
    """Propagating a chunk again costs its share of a forward sweep a derivative, and the counter says so."""
    problems = training()
    controls = random_controls(problems(0), np.random.default_rng(2))
    sweeps = []
    one = chunk_bytes(problems(0))
    share = problems(0).average.chunk_images / 150
    for limit in (2**31, limit_for(problems, 2 * one), limit_for(problems, one)):
        problem = problems(limit)
        reduced_functional = problem.reduced_functional(controls)
        before = problem.work.copy()
        reduced_functional(controls)
        reduced_functional.derivative()
        spent = problem.work - before
        size = (150, problem.network.operators.nodes, problem.network.steps)
        sweeps.append((spent.sweeps("forward", *size), spent.sweeps("adjoint", *size)))
    assert np.allclose(sweeps, [(1, 1), (2 - share, 1), (2, 1)], rtol=1e-14)


@pytest.mark.parametrize("precision, itemsize", [("double", 8), ("single", 4)])
def test_sixty_thousand_images_fit_by_the_count(precision, itemsize):
    """Everything that grows with the sample or the depth, added up: 60,000 images, 8 features, 16 layers."""
    D = stencil_operators(FunctionSpace(RectangleMesh(28, 28, 28.0, 28.0, quadrilateral=True), "CG", 1))
    network = Network(D, ControlSpace(4.0, LAYERS, D, FEATURES), precision=precision)
    coarse = FunctionSpace(RectangleMesh(4, 4, 28.0, 28.0, quadrilateral=True), "CG", 1)
    readout = Readout(network, classes=10, space=coarse)
    sample = Sample(np.zeros((IMAGES, 28, 28), dtype=np.uint8), np.zeros(IMAGES, dtype=int))
    average = TrainingProblem(readout, sample).average
    assert not average.keeps_trajectories
    one = network.sweep.trajectory_bytes(LAYERS, average.chunk_images)
    trajectories = 3 * one  # value, tangent and, at most, one without what the adjoint needs
    nodal = IMAGES * network.sweep.table.owned * itemsize
    features = 2 * IMAGES * readout.features * 8  # variable projection: the parts and the whole
    assert trajectories + nodal + features + sample.images.nbytes < 1.25 * GIB


_RUN = """
import resource, sys
import numpy as np
from firedrake import FunctionSpace, RectangleMesh
import ctrlnet as cn

images, features, layers = map(int, sys.argv[1:])
D = cn.stencil_operators(FunctionSpace(RectangleMesh(28, 28, 28.0, 28.0, quadrilateral=True), "CG", 1))
network = cn.Network(D, cn.ControlSpace(4.0, layers, D, features))
coarse = FunctionSpace(RectangleMesh(4, 4, 28.0, 28.0, quadrilateral=True), "CG", 1)
rng = np.random.default_rng(0)
sample = cn.Sample(rng.integers(0, 256, (images, 28, 28), dtype=np.uint8), rng.integers(0, 10, images))
problem = cn.TrainingProblem(cn.Readout(network, classes=10, space=coarse), sample, memory_limit=2**28)
assert not problem.average.keeps_trajectories
controls = problem.controls(rng, scale=0.05)
reduced_functional = problem.reduced_functional(controls)
reduced_functional(controls)
reduced_functional.derivative()
reduced_functional.hessian(controls)
problem.average.at(problem.network.layers(controls[:2])).features()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.slow
def test_sixty_thousand_images_fit_by_measurement():
    """The peak of value, gradient, Hessian product and features, measured at two sizes, is linear in the images."""
    peaks = {}
    for images in (512, 3072):
        run = subprocess.run(
            [sys.executable, "-c", _RUN, str(images), str(FEATURES), str(LAYERS)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        peaks[images] = int(run.stdout.split("peak")[1].split()[0])
    per_image = (peaks[3072] - peaks[512]) / (3072 - 512)
    expected = peaks[512] + per_image * (IMAGES - 512)
    assert expected < 2 * GIB, (
        f"{expected / GIB:.2f} GiB: {peaks[512] / GIB:.2f} at 512 images, {per_image / 1024:.1f} KiB each further one"
    )


_GROWTH = """
import sys, threading, time
import numpy as np
from firedrake import FunctionSpace, RectangleMesh
import ctrlnet as cn
from ctrlnet.fields import Pixels

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def problem(inputs, cells, limit):
    space = FunctionSpace(RectangleMesh(cells, cells, 28.0, 28.0, quadrilateral=True), "CG", 1)
    coarse = FunctionSpace(RectangleMesh(2, 2, 28.0, 28.0, quadrilateral=True), "CG", 1)
    D = cn.low_order_operators(space)
    readout = cn.Readout(cn.Network(D, cn.ControlSpace(1.0, 4, D, 2)), 3, coarse)
    labels = np.arange(len(inputs)) % 3
    return cn.TrainingProblem(readout, cn.Sample(inputs, labels, 3), memory_limit=limit)

def run(p, iterations):
    m = p.controls(np.random.default_rng(0), 0.1)
    cn.train_level(p, m, iterations=iterations)

rng = np.random.default_rng(0)
images, pixels, cells, limit, warm = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), 64
run(problem(rng.random((warm, pixels, pixels)), cells, limit), 1)  # what is compiled and loaded once
if len(sys.argv) > 5:
    inputs = np.memmap(sys.argv[5], dtype=np.uint8, mode="r", shape=(images, pixels, pixels))
else:
    inputs = rng.integers(0, 255, (images, pixels, pixels), dtype=np.uint8)
p = problem(Pixels(inputs), cells, limit)
before, peak, done = resident(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], resident())

thread = threading.Thread(target=watch)
thread.start()
run(p, 1)
done.set()
thread.join()
print("growth", peak[0] - before)
"""


def growth(*arguments) -> int:
    """Return by how many bytes a training grows the resident memory of a process."""
    run = subprocess.run([sys.executable, "-c", _GROWTH, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split("growth")[1].split()[0])


def test_nodal_values_count_against_the_limit():
    """All nodal values of these images would take 1.8 times the limit, and no limit counted them."""
    limit = 2**26
    assert 1200 * 113**2 * 8 > 1.8 * limit
    assert growth(1200, 28, 112, limit) < 1.5 * limit


@pytest.mark.slow
def test_a_file_of_four_gib_trains_within_the_limit(tmp_path):
    pixels, images, limit = 256, 2**16, 2**28
    path = tmp_path / "images.bin"
    one = np.random.default_rng(0).integers(0, 255, (256, pixels, pixels), dtype=np.uint8)
    with open(path, "wb") as file:
        for _ in range(images // len(one)):
            one.tofile(file)
    assert path.stat().st_size == 4 * GIB
    assert growth(images, pixels, 8, limit, path) < 1.5 * limit
