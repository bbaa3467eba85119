r"""Learn handwritten digits on a 7x7, a 14x14 and a 28x28 mesh in turn.

A residual network is a PDE, :math:`\dot Y = \sigma(\sum_j s_j(t) D_j Y + b(t))`, whose kernels are coefficients
of differential operators. They belong to no mesh: what was learned on 7x7 cells starts the training on 14x14,
and that the training on 28x28. The same network is then trained on 28x28 alone, for the same work.

Run it with ``make demo`` or ``python demos/mnist_multiscale/mnist_multiscale.py --help``, under MPI with
``mpiexec -n 2 python ...``. Options it does not know go to PETSc: try ``-tao_monitor``.
"""

import time
from pathlib import Path

from ctrlnet.report import Column, CommandLine, Run, at_least_one, plot_convergence, plot_images, plot_stencils

line = CommandLine(
    __doc__, "results/mnist_multiscale", levels=[7, 14, 28], features=4, layers=8, time=4.0, readout=4, data=None,
    train=None, test=None, seed=0)
line.add("operators", "low", "1, d/dx, d/dy, Laplacian; or all nine of the 3x3 stencil basis",
         choices=["low", "stencil"])
line.add("iterations", [4, 8, 4], "quasi-Newton iterations on the whole sample, of all or of each level")
line.add("draw", 300, "images of the first drawn sample on the finest level; drawn samples grow to the whole one",
         check=at_least_one)
line.add("mesh", None, "a .msh file of the square [0, 28]^2 that takes the finest level's place")
arguments = line.parse()
iterations = line.one_each("iterations", arguments.iterations, arguments.levels, repeat=True)
if arguments.mesh and not Path(arguments.mesh).is_file():
    line.refuse(f"There is no mesh file {arguments.mesh}; one is meshes/square.msh.")
if arguments.mesh and arguments.operators == "stencil":
    line.refuse("--operators stencil needs quadrilaterals; use --operators low with --mesh.")

import numpy as np
from firedrake import FunctionSpace, Mesh

import ctrlnet as cn
from ctrlnet.fields import digit_samples, digit_space
from ctrlnet.optimise import SampleSchedule

run = Run(arguments)
rng = np.random.default_rng(arguments.seed)
train, test = digit_samples(arguments.data, arguments.train, arguments.test, rng)

# One network a level: the same controls, the operators assembled on each mesh.
spaces = [digit_space(cells) for cells in arguments.levels]
names = [f"{cells}x{cells}" for cells in arguments.levels]
if arguments.mesh:
    spaces[-1], names[-1] = FunctionSpace(Mesh(arguments.mesh), "CG", 1), Path(arguments.mesh).stem
basis = cn.low_order_operators if arguments.operators == "low" else cn.stencil_operators
operators = [basis(space) for space in spaces]
controls = cn.ControlSpace(arguments.time, arguments.layers, operators[0], arguments.features)
networks = [cn.Network(on_mesh, controls) for on_mesh in operators]

# The classifier lives on a coarse mesh, whatever the level.
readout_space = digit_space(arguments.readout)
# A coefficient is weighed by its operator's norm on the finest mesh: what stays small there carries over.
regularisation = dict(control_size=3e-4, control_scales=operators[-1].norms, weights_gradient=1e-2, weights_size=1e-3)


def at_level(sample, level):
    """Pixels are averaged to each level's resolution."""
    return sample.averaged(28 // arguments.levels[level])


def problem(level, work):
    readout = cn.Readout(networks[level], classes=10, space=readout_space)
    return cn.TrainingProblem(readout, at_level(train, level), work=work, **regularisation)


finest = len(spaces) - 1
unit = len(train) * operators[finest].nodes * networks[finest].steps
run.say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
        f"{len(operators[0])} operators ({', '.join(operators[0].names)}), {run.ranks} rank(s)\n")
began = time.perf_counter()
start = controls.random(rng, scale=0.1)

# Coarse to fine; on the finest level drawn, growing samples come before the whole one.
schedule = SampleSchedule(min(arguments.draw, len(train)))


def drawing():
    return dict(rng=np.random.default_rng(arguments.seed), schedule=schedule)


def steps_of(level):
    """Iterations of a level, those on drawn samples included."""
    drawn, size = 0, arguments.draw
    while level == finest and size < len(train):
        drawn, size = drawn + schedule.iterations, schedule.next_size(size, len(train))
    return drawn + iterations[level]


work = cn.Work()
with run.level_progress(names, [steps_of(level) for level in range(len(spaces))]) as bars:
    results = cn.train_multiscale(
        [problem(level, work) for level in range(len(spaces))], start, iterations=iterations, callback=bars,
        checkpoint=run.checkpoint("levels"), **drawing())
run.trained(*(r.history for r in results))

# The finest mesh alone, from the same start, for the same work.
with run.progress(f"{names[-1]} only", round(work.total / unit), position=lambda i: round(i.work / unit)) as bar:
    alone = cn.train_level(
        problem(finest, cn.Work()), start, iterations=10**6, work_budget=work.total, callback=bar,
        checkpoint=run.checkpoint("finest alone"), **drawing())
run.trained(alone.history)

# The linear reference: no layers, a classifier of the image itself with a field of full resolution.
image_only = cn.ControlSpace(arguments.time, 1, operators[finest], features=1)
linear = cn.train_level(
    cn.TrainingProblem(
        cn.Readout(cn.Network(operators[finest], image_only), classes=10), at_level(train, finest), **regularisation),
    image_only.zero(), iterations=0)
seconds = time.perf_counter() - began

# What each level took and reached.
table = run.table(
    Column("mesh", 14), Column("nodes", 6, ".0f", "nodes_{}"), Column("layers", 6, ".0f", "layers_{}"),
    Column("iter", 5, ".0f", "iterations_{}"), Column("fwd", 5, ".0f", "forward_sweeps_{}"),
    Column("adj", 5, ".0f", "adjoint_sweeps_{}"), Column("work", 7, ".1f", "work_units_{}"),
    Column("seconds", 8, ".1f", "seconds_{}"), Column("train %", 8, ".2f", "train_accuracy_{}"),
    Column("test %", 7, ".2f", "test_accuracy_{}"))
table.head()


def row(title, key, level, result):
    trained, last = result.problem, result.history.last
    nodes, layers = trained.network.operators.nodes, trained.network.steps
    sweeps = [result.work.sweeps(kind, len(train), nodes, layers) for kind in ("forward", "adjoint")]
    accuracies = [100 * average.accuracy(*trained.point(result.controls))
                  for average in (trained.average, trained.on_sample(at_level(test, level)))]
    table.row([title, nodes, layers, last.number, *sweeps, result.work.total / unit, result.seconds, *accuracies],
              key=[key])
    run.figures |= {f"objective_{key}": last.objective, f"loss_{key}": last.loss,
                    f"classifier_seconds_{key}": result.inner_seconds}


for level, result in enumerate(results):
    row(names[level], f"level_{names[level]}", level, result)
row(f"{names[-1]} only", "fine_only", finest, alone)
row("linear", "linear", finest, linear)


# Work to the same training objective on the finest mesh: the larger of the two final ones.
def units_to(target, history):
    return next((i.work / unit for i in history.iterations if i.images == len(train) and i.objective <= target),
                float("nan"))


target = max(results[-1].history.last.objective, alone.history.last.objective) * (1 + 1e-12)
figures = run.figures
figures |= {f"{name}_accuracy": figures[f"{name}_accuracy_level_{names[-1]}"] for name in ("test", "train")}
figures |= {
    "seconds": seconds, "objective_reached_by_both": target,
    "work_units_multiscale": units_to(target, results[-1].history),
    "work_units_fine_only": units_to(target, alone.history), "work_units_total": work.total / unit,
}
run.say(
    f"\n1 work unit: one forward propagation of the training sample on {names[-1]} "
    f"({operators[finest].nodes} nodes, {networks[finest].steps} layers).\n"
    f"Work units to the training objective {target:.4f} on {names[-1]}: "
    f"{figures['work_units_multiscale']:.1f} multiscale, {figures['work_units_fine_only']:.1f} on {names[-1]} alone.\n"
    f"Test accuracy {figures['test_accuracy']:.2f} %, the linear reference {figures['test_accuracy_linear']:.2f} %; "
    f"{seconds:.0f} s.")

# The learned stencils of one layer, some classified images, and the course of both trainings.
layer = min(1, arguments.layers - 1)
shown = [(o, i) for o in range(min(2, arguments.features)) for i in range(min(4, arguments.features))]
stencils = {}
for level, result in enumerate(results[: len(spaces) - bool(arguments.mesh)]):
    S = networks[level].layers(result.controls).coefficients[layer]
    stencils[names[level]] = cn.interior_stencil(operators[level], np.stack([S[:, o, i] for o, i in shown], axis=1))
final = results[-1]
tested = final.problem.on_sample(at_level(test, finest))
predicted = tested.scores(*final.problem.point(final.controls)).argmax(axis=0)


def curve(history):
    """Work and objective, where it is that of the whole sample."""
    whole = [i for i in history.iterations if i.images == len(train)]
    return [i.work / unit for i in whole], [i.objective for i in whole]


run.figure("convergence.png", plot_convergence, {
    "multiscale": [curve(r.history) for r in results], f"{names[-1]} only": [curve(alone.history)]})
if stencils:
    run.figure("stencils.png", plot_stencils, stencils, [f"feature {i} to {o}" for o, i in shown])
run.figure("digits.png", plot_images, test.images[:40], predicted[:40], test.labels[:40])
run.finish(histories={
    "multiscale": [r.history.as_dict() for r in results], "fine_only": alone.history.as_dict()})
