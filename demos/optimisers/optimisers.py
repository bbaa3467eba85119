r"""Optimisers on one training problem: Newton-type methods beside first-order ones, by work and by seconds.

Residual network, classifier on a coarse mesh, cross-entropy, quadratic regularisation; every method starts from the
same controls. One unit of work is a forward propagation of the training sample; every sweep counts, of drawn samples
by their images. First-order methods are evaluated on the whole sample for the record alone, which does not count.

Run it with ``python demos/optimisers/optimisers.py``, under MPI with ``mpiexec -n 2 python ...``. Full MNIST, 2,000
images of it and 10,000 to test on: ``--data mnist --test 10000``. Options it does not know go to PETSc.
"""

import argparse
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--methods", nargs="+", help="some of the methods, by the names in the table (default: all)")
parser.add_argument("--cells", type=int, default=28, help="cells along each side of the mesh")
parser.add_argument("--features", type=int, default=4)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--readout", type=int, default=4, help="cells along each side of the classifier's mesh")
parser.add_argument("--train", type=int, default=2000)
parser.add_argument("--test", type=int, default=1000)
parser.add_argument("--work", type=float, default=200.0, help="work units of a method; first-order ones have twice")
parser.add_argument("--newton-work", type=float, default=100.0, help="work units of methods with variable projection")
parser.add_argument("--draw", type=int, default=300, help="images of the first drawn sample")
parser.add_argument("--precision", choices=["double", "single"], default="single", help="of the states")
parser.add_argument("--data", help="folder with the four IDX files of MNIST (default: the shipped sample)")
parser.add_argument("--quick", action="store_true", help="200 images, 14x14 cells, a tenth of the work")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="results/optimisers")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported
if arguments.quick:
    arguments.cells, arguments.train, arguments.test, arguments.draw = 14, 200, 200, 50
    arguments.work, arguments.newton_work = 20.0, 20.0
for number in ("train", "test", "work", "newton_work", "draw"):
    if not getattr(arguments, number) > 0:
        parser.error(f"--{number.replace('_', '-')} must be positive.")
for cells in (arguments.cells, arguments.readout):
    if cells < 1 or 28 % cells:
        parser.error(f"28 pixels do not divide into {cells} cells: choose among 1, 2, 4, 7, 14, 28.")

import numpy as np
from firedrake import COMM_WORLD, FunctionSpace, RectangleMesh
from tqdm import tqdm

import ctrlnet as cn
from ctrlnet.data import mnist, mnist_sample
from ctrlnet.metric import Coordinates
from ctrlnet.optimise import (
    Adam,
    FirstOrder,
    GradientDescent,
    JointFunctional,
    KrylovPreconditioner,
    Limits,
    Nesterov,
    ProjectedFunctional,
    SampleSchedule,
    SchurGaussNewton,
    StochasticOptimiser,
    TaoOptimiser,
    presets,
)
from ctrlnet.plotting import plot_convergence

SIDE = 28.0
root = COMM_WORLD.rank == 0

# The problem.
data = mnist(root=arguments.data) if arguments.data else mnist_sample()
rng = np.random.default_rng(arguments.seed)
data = data.subset(arguments.train, arguments.test, rng)
factor = 28 // arguments.cells
train = cn.Sample(data.train_images, data.train_labels).averaged(factor)
test = cn.Sample(data.test_images, data.test_labels).averaged(factor)


def quadrilaterals(cells):
    return RectangleMesh(cells, cells, SIDE, SIDE, quadrilateral=True)


operators = cn.stencil_operators(FunctionSpace(quadrilaterals(arguments.cells), "CG", 1))
controls = cn.ControlSpace(float(arguments.layers), arguments.layers, operators, arguments.features)
network = cn.Network(operators, controls, precision=arguments.precision)
readout = cn.Readout(network, 10, FunctionSpace(quadrilaterals(arguments.readout), "CG", 1))
regularisation = dict(control_size=3e-4, control_scales=operators.norms, weights_gradient=1e-2, weights_size=1e-3)
problem = cn.TrainingProblem(readout, train, **regularisation)
tested = problem.on_sample(test)
start = problem.controls(rng, 0.1)
unit = len(train) * operators.nodes * network.steps


# The methods. Each takes what all have in common: a callback and the measurement of accuracies. Rates and the
# coordinates of joint methods are those that served them best.
def joint(preset, euclidean=False):
    def make(**common):
        functional, limits = JointFunctional(problem, *start), Limits(10**6, work=arguments.work * unit)
        coordinates = Coordinates(problem, euclidean=euclidean)
        return TaoOptimiser(functional, preset, limits, coordinates=coordinates, **common)

    return make


def projected(preset, initial=None, preconditioned=False, **settings):
    def make(**common):
        functional = ProjectedFunctional(problem, *start[:2])
        coordinates = Coordinates(problem, functional.names)
        if initial is not None:
            settings["initial_hessian"] = SchurGaussNewton(functional, coordinates, draws(), **initial)
        if preconditioned:
            settings["preconditioner"] = KrylovPreconditioner()
        limits = Limits(10**6, work=arguments.newton_work * unit)
        return TaoOptimiser(functional, preset, limits, coordinates=coordinates, **settings, **common)

    return make


def drawn(initial=None):
    def solver(functional, limits, course):
        coordinates, first = Coordinates(functional.problem, functional.names), None
        if initial is not None:
            first = SchurGaussNewton(functional, coordinates, draws(), **initial)
        return TaoOptimiser(
            functional, limits=limits, course=course, coordinates=coordinates, initial_hessian=first, refresh=10**6)

    def make(**common):
        functional = ProjectedFunctional(problem, *start[:2])
        schedule = SampleSchedule(min(arguments.draw, len(train)))
        limits = Limits(10**6, work=arguments.newton_work * unit)
        return StochasticOptimiser(functional, draws(), schedule, solver=solver, limits=limits, **common)

    return make


def first_order(rule, rate):
    def make(**common):
        passes = max(1, round(2 * arguments.work / 3))
        return FirstOrder(
            JointFunctional(problem, *start), draws(), rule, rate=rate, batch=min(64, len(train)),
            limits=Limits(passes), evaluate_every=max(1, passes // 30), **common)

    return make


def draws():
    return np.random.default_rng(arguments.seed + 1)


METHODS = {
    "sgd": first_order(GradientDescent(), 1e-2),
    "nesterov": first_order(Nesterov(), 1e-3),
    "adam": first_order(Adam(), 1e-2),
    "joint_cg": joint(presets.CONJUGATE_GRADIENT, euclidean=True),
    "joint_lbfgs": joint(presets.QUASI_NEWTON, euclidean=True),
    "joint_gauss_newton": joint(presets.TRUST_REGION),
    "vp_gauss_newton": projected(presets.TRUST_REGION, preconditioned=True),
    "vp_newton": projected(presets.TRUST_REGION, preconditioned=True, curvature="hessian"),
    "vp_lbfgs": projected(presets.QUASI_NEWTON),
    "vp_lbfgs_schur": projected(
        presets.QUASI_NEWTON, dict(images=max(20, len(train) // 10), directions=2, damping=10.0), refresh=10**6),
    "vp_growing": drawn(),
    "vp_growing_schur": drawn(dict(images=200, directions=2, damping=10.0)),
}
chosen = arguments.methods or list(METHODS)
if set(chosen) - set(METHODS):
    parser.error(f"--methods takes {', '.join(METHODS)}; received {', '.join(sorted(set(chosen) - set(METHODS)))}.")


def accuracies(functions):
    arrays = problem.arrays(*functions)
    return {"train": problem.average.accuracy(*arrays), "test": tested.accuracy(*arrays)}


histories, inner, final = {}, {}, {}
for name in chosen:
    problem.work.counts.update(dict.fromkeys(problem.work.counts, 0.0))
    budget = 2 * arguments.work if name in ("sgd", "nesterov", "adam") else (
        arguments.newton_work if name.startswith("vp") else arguments.work)
    bar = tqdm(total=round(budget), desc=f"{name:>18}", disable=not root, file=sys.stdout, mininterval=0.5,
               bar_format="{desc} |{bar:24}| {n_fmt}/{total_fmt} WU [{elapsed}{postfix}]")

    def show(iteration, bar=bar):
        bar.update(min(round(iteration.work / unit), bar.total) - bar.n)
        bar.set_postfix_str(f"F {iteration.objective:.4f}")

    method = METHODS[name](callback=show, accuracies=accuracies)
    found = method.solve()
    bar.close()
    histories[name] = method.history
    inner[name] = getattr(method.functional, "inner_seconds", 0.0)
    final[name] = tested.accuracy(*problem.arrays(*method.functional.all_controls(found)))


# The table, and every number in it by name. An objective counts where it is that of the whole sample.
def whole(history):
    return [i for i in history.iterations if i.images == len(train)]


def reached(history, target):
    return next(((i.work / unit, i.seconds) for i in whole(history) if i.objective <= target), (np.nan, np.nan))


def at(history, budget):
    return min((i.objective for i in whole(history) if i.work <= budget * unit), default=np.nan)


targets = {}
if "joint_lbfgs" in histories:
    targets["lbfgs200"] = at(histories["joint_lbfgs"], arguments.work)
if "adam" in histories:
    targets["adam400"] = at(histories["adam"], np.inf)
figures = {f"objective_{name}": value for name, value in targets.items()}
heads = ["method", "its", "WU", "seconds", "inner %", "F", "loss", "test %"]
heads += [f"{unit}:{t[0].upper()}" for t in targets for unit in ("WU", "s")]
widths = [18, 5, 6, 8, 7, 7, 7, 7] + [6] * (len(heads) - 8)
lines = [" ".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))]
for name, history in histories.items():
    last, share = history.last, 100 * inner[name] / max(history.last.seconds, 1e-9)
    values = {
        "iterations": last.number, "work_units": last.work / unit, "seconds": last.seconds, "inner_share": share,
        "objective": last.objective, "loss": last.loss, "test_accuracy": 100 * final[name],
    }
    for target, value in targets.items():
        spent = dict(zip(("work_units", "seconds"), reached(history, value * (1 + 1e-12)), strict=True))
        values |= {f"{kind}_to_{target}_loss": number for kind, number in spent.items()}
    figures |= {f"{name}_{key}": float(value) for key, value in values.items()}
    digits = [0, 1, 1, 0, 4, 4, 2] + [1] * (len(heads) - 8)
    cells = [f"{v:{w}.{d}f}" for v, w, d in zip(values.values(), widths[1:], digits, strict=True)]
    lines.append(" ".join([f"{name:>18}", *cells]))
lines += ["", f"1 work unit: one forward propagation of the training sample ({len(train)} images, {operators.nodes} "
          f"nodes, {network.steps} layers)."]
for target, value in targets.items():
    budget = arguments.work if target == "lbfgs200" else 2 * arguments.work
    lines.append(f"{target[0].upper()}: to the training objective F = {value:.4f} of "
                 f"{'joint_lbfgs' if target == 'lbfgs200' else 'adam'} after {budget:.0f} work units.")
if root:
    print("\n" + "\n".join(lines), flush=True)

output = Path(arguments.output)
if root:
    def curves(column, abscissa):
        return {n: [([abscissa(i) for i in whole(h)], [column(i) for i in whole(h)])] for n, h in histories.items()
                if whole(h)}

    for axis, abscissa in (("work units", lambda i: i.work / unit), ("seconds", lambda i: i.seconds)):
        name = axis.replace(" ", "_")
        plot_convergence(output / f"objective_{name}.png", curves(lambda i: i.objective, abscissa), axis)
        plot_convergence(output / f"test_error_{name}.png",
                         curves(lambda i: 100 * (1 - i.accuracies["test"]) + 0.01, abscissa), axis, "test error in %")
cn.write_results(output, figures, vars(arguments), COMM_WORLD,
                 histories={name: history.as_dict() for name, history in histories.items()})
if root:
    print(f"Figures and results.json: {output}/")
