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

import importlib.util
import time

from ctrlnet.report import Column, CommandLine, Run, at_least_one, plot_convergence

line = CommandLine(
    __doc__, "results/experiment_2", data=None, levels=[7, 14, 28], features=4, layers=8, time=4.0, diffusion=1.0,
    readout=4, rate=0.01, batch=128, train=None, test=None, seed=0)
line.add("operators", "low", "all nine of the 3x3 stencil basis, or 1, d/dx, d/dy, Laplacian, which carry best",
         choices=["stencil", "low"])
line.add("newton_train", 4000, "training images of the quasi-Newton runs", check=at_least_one)
line.add("iterations", [36, 6, 6], "quasi-Newton, each level")
line.add("fine_iterations", 20, "quasi-Newton, the finest mesh alone")
line.add("epochs", None, "Adam's passes, each level (default: 3 4 6; shipped sample: 20 25 40)", kind=int, several=True)
line.add("fine_epochs", None, "Adam's passes, the finest mesh alone, and PyTorch's (default: 10; shipped sample: 65)",
         kind=int, check=at_least_one)
line.add("target", None, "test accuracy raced to, in percent (default: 98; shipped sample: 95)", kind=float)
line.add("without_torch", False)
arguments = line.parse()
arguments.epochs = arguments.epochs or ([3, 4, 6] if arguments.data else [20, 25, 40])
arguments.fine_epochs = arguments.fine_epochs or (10 if arguments.data else 65)
levels, target = arguments.levels, arguments.target or (98.0 if arguments.data else 95.0)
for name in ("iterations", "epochs"):
    line.one_each(name, getattr(arguments, name), levels)

import numpy as np
from firedrake import COMM_WORLD, Ensemble

import ctrlnet as cn
from ctrlnet.fields import SIDE, PixelProjection, as_picture, digit_samples, digit_space
from ctrlnet.optimise import Adam, FirstOrder, JointFunctional, Limits
from ctrlnet.optimise.first_order import warm_cosine_rate

run = Run(arguments)
rng = np.random.default_rng(arguments.seed)
train, test = digit_samples(arguments.data, arguments.train, arguments.test, rng)
few = train.drawn(min(arguments.newton_train, len(train)), rng)

ensemble = Ensemble(COMM_WORLD, 1)  # meshes this small are not split: ranks share the images
spaces, readout_space = [digit_space(n, ensemble.comm) for n in levels], digit_space(arguments.readout, ensemble.comm)
finest = len(levels) - 1
operators = (cn.stencil_operators if arguments.operators == "stencil" else cn.low_order_operators)(spaces[finest])
controls = cn.ControlSpace(arguments.time, arguments.layers, operators, arguments.features)
diffusing = dict(dynamics=cn.ReactionDiffusion(nu=arguments.diffusion), integrator=cn.IMEX())
reference = cn.Network(operators, controls, opening=cn.FixedOpening(np.ones(arguments.features)), precision="single",
                       **(diffusing if arguments.diffusion else {}))
readouts = [cn.Readout(network, classes=10, space=readout_space)
            for network in (*(reference.on(V) for V in spaces[:-1]), reference)]
start = controls.random(rng, scale=0.1)
image = operators.nodes * arguments.layers  # its share of a work unit, on the finest mesh


def on_level(sample, level):
    return sample.averaged(28 // levels[level])


tests = cn.SampleAverage(readouts[finest], on_level(test, finest), ensemble=ensemble)


def problem(level, sample, work, control_scales=None):
    return cn.TrainingProblem(
        readouts[level], on_level(sample, level), work=work, ensemble=ensemble, control_size=3e-4,
        control_scales=control_scales, weights_gradient=1e-2, weights_size=1e-3)


def test_accuracy(found):
    return 100 * tests.accuracy(reference.layers(found), *readouts[finest].arrays(found))


# Each method returns its course, as (level, work units, seconds, objective, ...), and the final test accuracy.
def newton(multilevel):
    """Quasi-Newton with variable projection, the objective that of the level's own mesh."""
    work = cn.Work()
    chosen = range(len(levels)) if multilevel else [finest]
    results = cn.train_multiscale(
        [problem(k, few, work, operators.norms) for k in chosen], start,
        iterations=arguments.iterations if multilevel else [arguments.fine_iterations], carry_secants=True,
        checkpoint=run.checkpoint(f"newton {'multilevel' if multilevel else 'fine'}"))
    run.trained(*(result.history for result in results))
    seconds, points = 0.0, []
    for level, result in zip(chosen, results, strict=True):
        points += [(level, i.work / (len(few) * image), seconds + i.seconds, i.objective)
                   for i in result.history.iterations]
        seconds += result.seconds
    return points, test_accuracy(results[-1].controls)


def adam(multilevel):
    """Adam, a level's best judged on its own mesh; some images' objective on the finest is recorded beside it."""
    work, generator = cn.Work(), np.random.default_rng(arguments.seed)
    monitor = problem(finest, few, cn.Work())

    def judge(controls):
        return {"test": test_accuracy(controls), "objective": float(monitor.functional(controls))}

    found, points, spent = start.extended(readouts[finest].zero()), [], 0.0
    size = (SIDE / arguments.readout) ** 2 / 5.0  # a unit of W changes a score by about as much as one of s
    plan = zip(range(len(levels)), arguments.epochs, strict=True) if multilevel else [(finest, arguments.fine_epochs)]
    for level, epochs in plan:
        at = problem(level, train, work)
        solver = FirstOrder(
            JointFunctional(at, found), generator, Adam(second=0.99), rate=arguments.rate, schedule=warm_cosine_rate,
            batch=min(arguments.batch, len(train)), limits=Limits(iterations=epochs),
            recorded=cn.SampleAverage(readouts[level], on_level(few, level), work=work, ensemble=ensemble),
            coordinates=at.coordinates(weights_matrix=size**2 * np.eye(readout_space.dim())),
            accuracies=judge, checkpoint=run.checkpoint(f"adam {'multilevel' if multilevel else 'fine'} {level}"))
        found = solver.solve()
        run.trained(solver.history)
        points += [(level, i.work / (len(train) * image), spent + i.seconds, i.accuracies["objective"],
                    i.accuracies["test"]) for i in solver.history.iterations]
        spent = points[-1][2]
    return points, test_accuracy(found)


def twin():
    """PyTorch's course as (seconds, test accuracy in percent), on rank 0 with as many threads as there are ranks."""
    project = PixelProjection(spaces[finest], (levels[finest],) * 2)
    # Stencils are indexed by offsets in x and y, PyTorch's kernels by rows (y) and columns (x), y upwards.
    basis = cn.interior_stencil(operators, np.eye(len(operators))).swapaxes(1, 2)
    order = as_picture(spaces[finest], np.arange(operators.nodes))[::-1]

    def nodal(sample):
        return np.moveaxis(project(on_level(sample, finest).values(0, len(sample)))[order], -1, 0)

    def train_it():
        from torch_twin import train as train_twin

        return [(t, 100 * a) for t, a in train_twin(
            nodal(train), train.labels, nodal(test), test.labels, features=arguments.features,
            layers=arguments.layers, T=arguments.time, diffusion=arguments.diffusion, readout=arguments.readout,
            side=SIDE, epochs=arguments.fine_epochs, batch=min(arguments.batch, len(train)), rate=arguments.rate,
            seed=arguments.seed, basis=basis, threads=run.ranks)]

    return run.alone(train_it)


def told(number, digits=1):
    return "not reached" if np.isnan(number) else f"{number:.{digits}f}"


run.say(f"{len(train)} training images ({len(few)} for quasi-Newton) and {len(test)} test images, {arguments.features} "
        f"features, {arguments.layers} layers, levels {levels}, {run.ranks} rank(s)")
figures, histories, curves = run.figures, {}, {}
table = run.table(
    Column("method", 28), Column("objective", 10, ".4f", "objective_{}"), Column("test %", 7, ".2f", "accuracy_{}"),
    Column("work", 8, ".1f", "work_units_{}"), Column("seconds", 8, ".1f", "seconds_{}"))
table.head()
for name, method, prefix in (("newton", newton, ""), ("adam", adam, "adam_")):
    for kind in ("multilevel", "fine"):
        began = time.perf_counter()
        points, accuracy = method(kind == "multilevel")
        figures[f"wall_seconds_{name}_{kind}"] = time.perf_counter() - began
        histories[f"{name}_{kind}"] = points
        table.row([f"{name} {kind}", points[-1][3], accuracy, *points[-1][1:3]], key=[f"{name}_{kind}"])
        curves[f"{name} {kind}"] = [tuple(zip(*((p[1], p[3]) for p in points if p[0] == k), strict=True))
                                    for k in sorted({p[0] for p in points})]
    # Work and time to the objective on the finest mesh that this mesh alone ends with.
    goal, comparable = points[-1][3] * (1 + 1e-12), {finest} if method is newton else set(range(len(levels)))
    reached = (next((p[1:3] for p in histories[f"{name}_{kind}"] if p[3] <= goal and p[0] in comparable),
                    (np.nan, np.nan)) for kind in ("multilevel", "fine"))
    for what, multilevel, fine in zip(("work_units", "seconds"), *reached, strict=True):
        figures[f"{prefix}{what}_ratio_multilevel_over_fine"] = multilevel / (fine or np.nan)
    figures[f"accuracy_gain_{name}"] = figures[f"accuracy_{name}_multilevel"] - figures[f"accuracy_{name}_fine"]

# The race to a test accuracy.
raced = not arguments.without_torch and importlib.util.find_spec("torch") is not None
if raced:
    histories["torch"] = course = twin()
    table.row(["PyTorch adam fine", "", course[-1][1], "", course[-1][0]], key=["torch"])
else:
    run.say("PyTorch's twin is left out." if arguments.without_torch else
            "PyTorch is not installed, so its twin is left out: pip install -e '.[bench]' adds it.")
times = {kind: next((p[2] for p in histories[f"adam_{kind}"] if p[4] >= target), np.nan)
         for kind in ("multilevel", "fine")}
times["torch"] = next((seconds for seconds, accuracy in histories.get("torch", []) if accuracy >= target), np.nan)
label = f"{target:g}".replace(".", "_")
race = times["multilevel"] / (times["torch"] or np.nan)
figures |= {"target_accuracy": target, f"seconds_to_{label}_over_torch": race}
figures |= {f"seconds_to_{label}_{kind}": value for kind, value in times.items()}
run.say(f"\nWork to the fine mesh's final objective, multilevel over fine alone: "
        f"{told(figures['work_units_ratio_multilevel_over_fine'], 2)} (quasi-Newton), "
        f"{told(figures['adam_work_units_ratio_multilevel_over_fine'], 2)} (Adam).\n"
        f"Seconds to {target:g} %: {told(times['multilevel'])} multilevel, {told(times['fine'])} fine alone"
        + (f", {told(times['torch'])} PyTorch" if raced else "")
        + (f"; ratio {race:.2f}." if np.isfinite(race) else "."))
run.figure("convergence.png", plot_convergence, curves)
run.finish(histories=histories)
