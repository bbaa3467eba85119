r"""Experiment 2 of the seed: multilevel learning against learning on the fine mesh alone.

The network :math:`\dot Y = \sigma(\sum_j s_j(t) D_j Y + b(t)) + \nu\Delta Y` learns digits on 7x7, 14x14 and 28x28
cells in turn, each mesh starting from what the one before found, and on 28x28 alone: once by quasi-Newton with the
classifier eliminated (variable projection) and once by Adam with mini-batches. Diffusion makes the objective of a
coarse mesh nearly that of the fine one: most quasi-Newton iterations are on 7x7 cells, each level goes on with the
secant pairs of the one before. Beside them PyTorch's Adam trains the twin of the network on as many cores as
there are ranks, if PyTorch is installed (the optional extra ``bench``).

Run it with ``python demos/experiment_2/experiment_2.py``, under MPI with ``mpiexec -n 2 python ...``; it takes the
shipped sample, or all of MNIST with ``--data folder``.
"""

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--data", help="folder with the four IDX files of MNIST (default: the shipped sample)")
parser.add_argument("--levels", type=int, nargs="+", default=[7, 14, 28], help="cells along each side, coarsest first")
parser.add_argument("--features", type=int, default=4)
parser.add_argument("--layers", type=int, default=8)
parser.add_argument("--time", type=float, default=4.0, help="final time T")
parser.add_argument("--diffusion", type=float, default=1.0,
                    help="nu, in squared pixels per unit of time; 0: a residual network")
parser.add_argument("--operators", choices=["stencil", "low"], default="low",
                    help="all nine of the 3x3 stencil basis, or 1, d/dx, d/dy, Laplacian, which carry best")
parser.add_argument("--readout", type=int, default=4, help="cells along each side of the classifier's mesh")
parser.add_argument("--newton-train", type=int, default=4000, help="training images of the quasi-Newton runs")
parser.add_argument("--iterations", type=int, nargs="+", default=[36, 6, 6], help="quasi-Newton, each level")
parser.add_argument("--fine-iterations", type=int, default=20, help="quasi-Newton, the finest mesh alone")
parser.add_argument("--epochs", type=int, nargs="+",
                    help="Adam's passes, each level (default: 3 4 6, or 20 25 40 for the shipped sample)")
parser.add_argument("--fine-epochs", type=int, help="Adam's passes, the finest mesh alone, and PyTorch's (default: 10, "
                    "or 65 for the shipped sample)")
parser.add_argument("--rate", type=float, default=0.01, help="Adam's largest learning rate")
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--target", type=float, help="test accuracy that is raced to, in percent (default: 98, or 95 for "
                    "the shipped sample)")
parser.add_argument("--train", type=int, help="training images (default: all)")
parser.add_argument("--test", type=int, help="test images (default: all)")
parser.add_argument("--without-torch", action="store_true")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="results/experiment_2")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported
for cells in arguments.levels:
    if cells < 1 or 28 % cells:
        parser.error(f"28 pixels do not divide into {cells} cells: choose among 1, 2, 4, 7, 14, 28.")
if arguments.epochs is None:
    arguments.epochs = [3, 4, 6] if arguments.data else [20, 25, 40]
if arguments.fine_epochs is None:
    arguments.fine_epochs = 10 if arguments.data else 65
for name in ("iterations", "epochs"):
    if len(getattr(arguments, name)) != len(arguments.levels):
        parser.error(f"--{name} takes one number for each of the {len(arguments.levels)} levels.")
if arguments.diffusion < 0:
    parser.error(f"--diffusion must not be negative, received {arguments.diffusion}.")
target = arguments.target or (98.0 if arguments.data else 95.0)

import numpy as np
from firedrake import (
    COMM_WORLD,
    Ensemble,
    Function,
    FunctionSpace,
    RectangleMesh,
    SpatialCoordinate,
    VectorFunctionSpace,
)

import ctrlnet as cn
from ctrlnet.data import mnist, mnist_sample
from ctrlnet.metric import Coordinates
from ctrlnet.optimise import JointFunctional, Limits
from ctrlnet.optimise.first_order import FirstOrder, warm_cosine_rate
from ctrlnet.optimise.update_rules import Adam
from ctrlnet.plotting import plot_convergence
from ctrlnet.transfer import PixelProjection

SIDE = 28.0
root = COMM_WORLD.rank == 0


def say(*text):
    if root:
        print(*text, flush=True)


data = mnist(root=arguments.data) if arguments.data else mnist_sample()
rng = np.random.default_rng(arguments.seed)
if arguments.train or arguments.test:
    data = data.subset(arguments.train or len(data.train_labels), arguments.test or len(data.test_labels), rng)
train, test = cn.Sample(data.train_images, data.train_labels), cn.Sample(data.test_images, data.test_labels)
few = train.drawn(min(arguments.newton_train, len(train)), rng)

levels = arguments.levels
ensemble = Ensemble(COMM_WORLD, 1)  # meshes this small are not split: ranks share the images


def square(n):
    return FunctionSpace(RectangleMesh(n, n, SIDE, SIDE, quadrilateral=True, comm=ensemble.comm), "CG", 1)


spaces, readout_space = [square(n) for n in levels], square(arguments.readout)
finest = len(levels) - 1
operators = (cn.stencil_operators if arguments.operators == "stencil" else cn.low_order_operators)(spaces[finest])
controls = cn.ControlSpace(arguments.time, arguments.layers, operators, arguments.features)
diffusing = dict(dynamics=cn.ReactionDiffusion(nu=arguments.diffusion), integrator=cn.IMEX())
reference = cn.Network(operators, controls, lift=np.ones(arguments.features), precision="single",
                       **(diffusing if arguments.diffusion else {}))
networks = [reference.on(V) for V in spaces[:-1]] + [reference]
readouts = [cn.Readout(network, classes=10, space=readout_space) for network in networks]
regularisation = dict(control_size=3e-4, control_scales=operators.norms, weights_gradient=1e-2, weights_size=1e-3)
start = controls.random(rng, scale=0.1)


def problem(level, sample, work, **changes):
    averaged = sample.averaged(28 // levels[level])
    return cn.TrainingProblem(readouts[level], averaged, work=work, ensemble=ensemble, **(regularisation | changes))


tests = cn.SampleAverage(readouts[finest], test.averaged(28 // levels[finest]), ensemble=ensemble)


def test_accuracy(found):
    s, b, W, beta = found
    return 100 * tests.accuracy(*reference.layers(s, b), readouts[finest].weights_array(W), beta.dat.data_ro.ravel())


def unit_of(sample):
    return len(sample) * operators.nodes * arguments.layers


# Quasi-Newton with variable projection, the objective that of the level's own mesh.
def newton(multilevel):
    work = cn.Work()
    chosen = range(len(levels)) if multilevel else [finest]
    results = cn.train_multiscale(
        [problem(k, few, work) for k in chosen], *start,
        iterations=arguments.iterations if multilevel else [arguments.fine_iterations], carry_secants=True)
    seconds, points = 0.0, []
    for level, result in zip(chosen, results, strict=True):
        points += [(level, i.work / unit_of(few), seconds + i.seconds, i.objective) for i in result.history.iterations]
        seconds += result.seconds
    return points, test_accuracy(results[-1].controls)


# Adam. What a level is best at is judged on its own mesh; the objective on the finest one, for some of the images, is
# recorded beside it.
def adam(multilevel):
    work, generator = cn.Work(), np.random.default_rng(arguments.seed)
    monitor = problem(finest, few, cn.Work(), control_scales=None)

    def judge(controls):
        return {"test": test_accuracy(controls), "objective": float(monitor.functional(*controls))}

    found, points, spent = (*start, *readouts[finest].functions()), [], 0.0
    plan = list(zip(range(len(levels)), arguments.epochs, strict=True)) if multilevel else [
        (finest, arguments.fine_epochs)]
    for level, epochs in plan:
        at = problem(level, train, work, control_scales=None)
        size = (SIDE / arguments.readout) ** 2 / 5.0
        solver = FirstOrder(
            JointFunctional(at, *found), generator, Adam(second=0.99), rate=arguments.rate, schedule=warm_cosine_rate,
            batch=min(arguments.batch, len(train)), limits=Limits(iterations=epochs),
            recorded=cn.SampleAverage(readouts[level], few.averaged(28 // levels[level]), work=work, ensemble=ensemble),
            coordinates=Coordinates(at, weights_matrix=size**2 * np.eye(readout_space.dim())),
            accuracies=judge)
        found = solver.solve()
        points += [(level, i.work / unit_of(train), spent + i.seconds, i.accuracies["objective"], i.accuracies["test"])
                   for i in solver.history.iterations]
        spent = points[-1][2]
    return points, test_accuracy(found)


def twin():
    """PyTorch's course as (seconds, test accuracy in percent), on rank 0 with as many threads as there are ranks."""
    if arguments.without_torch or importlib.util.find_spec("torch") is None:
        say("PyTorch is not installed, so its twin is left out: pip install -e '.[bench]' adds it."
            if not arguments.without_torch else "PyTorch's twin is left out.")
        return None
    nodes = levels[finest] + 1
    project = PixelProjection(spaces[finest], (levels[finest],) * 2)
    order = nodes_in_order(spaces[finest])
    # Stencils are indexed by offsets in x and y, PyTorch's kernels by rows (y) and columns (x).
    basis = cn.interior_stencil(operators, np.eye(len(operators))).swapaxes(1, 2)

    def nodal(sample):
        averaged = sample.averaged(28 // levels[finest])
        return project(averaged.values(0, len(averaged)))[order].T.reshape(-1, nodes, nodes)

    # PyTorch's threads take the cores of all ranks, which sleep meanwhile: MPI would bind and poll.
    course, cores = None, os.sched_getaffinity(0)
    os.sched_setaffinity(0, set().union(*COMM_WORLD.allgather(cores)))
    if root:
        from torch_twin import train as train_twin
        course = [(t, 100 * a) for t, a in train_twin(
            nodal(train), train.labels, nodal(test), test.labels, features=arguments.features,
            layers=arguments.layers, T=arguments.time, diffusion=arguments.diffusion, readout=arguments.readout,
            side=SIDE, epochs=arguments.fine_epochs, batch=min(arguments.batch, len(train)), rate=arguments.rate,
            seed=arguments.seed, basis=basis, threads=COMM_WORLD.size)]
    finished = COMM_WORLD.Ibarrier()
    while not finished.Test():
        time.sleep(0.1)
    os.sched_setaffinity(0, cores)
    return COMM_WORLD.bcast(course)


def nodes_in_order(V):
    """Return the nodes of a uniform square in the order of y and then x."""
    X = Function(VectorFunctionSpace(V.mesh(), "CG", 1)).interpolate(SpatialCoordinate(V.mesh())).dat.data_ro
    return np.lexsort(np.rint(1e6 * X).T)


def ratio(a, b):
    return a / b if b else float("nan")


def told(number, digits=1):
    return "not reached" if np.isnan(number) else f"{number:.{digits}f}"


def first(points, reached, column):
    return next((p[column] for p in points if reached(p)), float("nan"))


say(f"{len(train)} training images ({len(few)} for quasi-Newton) and {len(test)} test images, {arguments.features} "
    f"features, {arguments.layers} layers, levels {levels}, {COMM_WORLD.size} rank(s)\n")
figures, histories, curves = {"target_accuracy": target}, {}, {}
say(f"{'method':>28} {'objective':>10} {'test %':>7} {'work':>8} {'seconds':>8}")
for name, run in (("newton", newton), ("adam", adam)):
    ends = {}
    for kind in ("multilevel", "fine"):
        began = time.perf_counter()
        points, accuracy = run(kind == "multilevel")
        ends[kind] = points
        histories[f"{name}_{kind}"] = points
        last = points[-1]
        say(f"{name + ' ' + kind:>28} {last[3]:10.4f} {accuracy:7.2f} {last[1]:8.1f} {last[2]:8.1f}")
        figures |= {f"accuracy_{name}_{kind}": accuracy, f"objective_{name}_{kind}": last[3],
                    f"work_units_{name}_{kind}": last[1], f"seconds_{name}_{kind}": last[2],
                    f"wall_seconds_{name}_{kind}": time.perf_counter() - began}
        curves[f"{name} {kind}"] = [tuple(zip(*((p[1], p[3]) for p in points if p[0] == k), strict=True))
                                    for k in sorted({p[0] for p in points})]
    # Work and time to the objective on the finest mesh that this mesh alone ends with.
    comparable = (lambda p: p[0] == finest) if name == "newton" else (lambda p: True)
    goal = ends["fine"][-1][3] * (1 + 1e-12)
    for column, what in ((1, "work_units"), (2, "seconds")):
        reached = {
            k: next((p[column] for p in points if comparable(p) and p[3] <= goal), float("nan"))
            for k, points in ends.items()}
        prefix = "" if name == "newton" else "adam_"
        figures[f"{prefix}{what}_ratio_multilevel_over_fine"] = ratio(reached["multilevel"], reached["fine"])
    figures[f"accuracy_gain_{name}"] = figures[f"accuracy_{name}_multilevel"] - figures[f"accuracy_{name}_fine"]

course = twin()
times = {kind: first(histories[f"adam_{kind}"], lambda p: p[4] >= target, 2) for kind in ("multilevel", "fine")}
times["torch"] = float("nan")
if course is not None:
    histories["torch"] = course
    times["torch"] = first(course, lambda p: p[1] >= target, 0)
    say(f"{'PyTorch adam fine':>28} {'':>10} {course[-1][1]:7.2f} {'':>8} {course[-1][0]:8.1f}")
    figures |= {"accuracy_torch": course[-1][1], "seconds_torch": course[-1][0]}
label = f"{target:g}".replace(".", "_")
for kind, value in times.items():
    figures[f"seconds_to_{label}_{kind}"] = value
figures[f"seconds_to_{label}_over_torch"] = ratio(times["multilevel"], times["torch"])
say(f"\nWork to the fine mesh's final objective, multilevel over fine alone: "
    f"{told(figures['work_units_ratio_multilevel_over_fine'], 2)} (quasi-Newton), "
    f"{told(figures['adam_work_units_ratio_multilevel_over_fine'], 2)} (Adam).\n"
    f"Seconds to {target:g} %: {told(times['multilevel'])} multilevel, {told(times['fine'])} fine alone"
    + (f", {told(times['torch'])} PyTorch" if course is not None else "")
    + (f"; ratio {race:.2f}." if np.isfinite(race := figures[f"seconds_to_{label}_over_torch"]) else "."))
output = Path(arguments.output)
if root:
    plot_convergence(output / "convergence.png", curves)
cn.write_results(output, figures, vars(arguments), COMM_WORLD, histories=histories)
say(f"Figures and results.json: {output}/")
