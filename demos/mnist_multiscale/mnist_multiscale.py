r"""Learn handwritten digits on a 7x7, a 14x14 and a 28x28 mesh in turn.

A residual network is a PDE, :math:`\dot Y = \sigma(\sum_j s_j(t) D_j Y + b(t))`, whose kernels are coefficients
of differential operators. They belong to no mesh: what was learned on 7x7 cells starts the training on 14x14,
and that the training on 28x28. The same network is then trained on 28x28 alone, for the same work.

Run it with ``make demo`` or ``python demos/mnist_multiscale/mnist_multiscale.py --help``, under MPI with
``mpiexec -n 2 python ...``. Options it does not know go to PETSc: try ``-tao_monitor``.
"""

import argparse
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--levels", type=int, nargs="+", default=[7, 14, 28], help="cells along each side, coarsest first")
parser.add_argument("--features", type=int, default=4)
parser.add_argument("--layers", type=int, default=8)
parser.add_argument("--time", type=float, default=4.0, help="final time T")
parser.add_argument("--operators", choices=["low", "stencil"], default="low",
                    help="1, d/dx, d/dy, Laplacian; or all nine of the 3x3 stencil basis")
parser.add_argument("--readout", type=int, default=4, help="cells along each side of the classifier's mesh")
parser.add_argument("--train", type=int, help="training images (default: all)")
parser.add_argument("--test", type=int, help="test images (default: all)")
parser.add_argument("--iterations", type=int, nargs="+", default=[4, 8, 4],
                    help="quasi-Newton iterations on the whole sample, of all or of each level")
parser.add_argument("--draw", type=int, default=300,
                    help="images of the first drawn sample on the finest level; drawn samples grow to the whole one")
parser.add_argument("--data", help="folder with the four IDX files of MNIST (default: the shipped sample)")
parser.add_argument("--mesh", help="a .msh file of the square [0, 28]^2 that takes the finest level's place")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="results/mnist_multiscale")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported

import numpy as np
from firedrake import COMM_WORLD, FunctionSpace, Mesh, RectangleMesh
from tqdm import tqdm

import ctrlnet as cn
from ctrlnet.data import mnist, mnist_sample
from ctrlnet.optimise import SampleSchedule
from ctrlnet.plotting import plot_convergence, plot_images, plot_stencils

SIDE = 28.0  # of the domain, in pixels of the full image
root = COMM_WORLD.rank == 0


def say(*text):
    if root:
        print(*text, flush=True)


def quadrilaterals(cells):
    return RectangleMesh(cells, cells, SIDE, SIDE, quadrilateral=True)


# What can be wrong with the arguments is said before anything is computed.
if arguments.mesh and not Path(arguments.mesh).is_file():
    parser.error(f"There is no mesh file {arguments.mesh}; one is meshes/square.msh.")
if arguments.mesh and arguments.operators == "stencil":
    parser.error("--operators stencil needs quadrilaterals; use --operators low with --mesh.")
iterations = arguments.iterations
if len(iterations) == 1:
    iterations = iterations * len(arguments.levels)
elif len(iterations) != len(arguments.levels):
    parser.error(f"--iterations takes one number, or one for each of the {len(arguments.levels)} levels.")

# The data: pixels are averaged to each level's resolution.
for cells in (*arguments.levels, arguments.readout):
    if cells < 1 or 28 % cells:
        parser.error(f"28 pixels do not divide into {cells} cells: choose among 1, 2, 4, 7, 14, 28.")
data = mnist(root=arguments.data) if arguments.data else mnist_sample()
rng = np.random.default_rng(arguments.seed)
if arguments.train or arguments.test:
    data = data.subset(arguments.train or len(data.train_labels), arguments.test or len(data.test_labels), rng)
train = cn.Sample(data.train_images, data.train_labels)
test = cn.Sample(data.test_images, data.test_labels)

# One network a level: the same controls, the operators assembled on each mesh.
meshes = [quadrilaterals(cells) for cells in arguments.levels]
names = [f"{cells}x{cells}" for cells in arguments.levels]
if arguments.mesh:
    meshes[-1], names[-1] = Mesh(arguments.mesh), Path(arguments.mesh).stem
basis = cn.low_order_operators if arguments.operators == "low" else cn.stencil_operators
operators = [basis(FunctionSpace(mesh, "CG", 1)) for mesh in meshes]
controls = cn.ControlSpace(arguments.time, arguments.layers, operators[0], arguments.features)
networks = [cn.Network(on_mesh, controls) for on_mesh in operators]

# The classifier lives on a coarse mesh, whatever the level.
readout_space = FunctionSpace(quadrilaterals(arguments.readout), "CG", 1)
# A coefficient is weighed by its operator's norm on the finest mesh: what stays small there carries over.
regularisation = dict(control_size=3e-4, control_scales=operators[-1].norms, weights_gradient=1e-2, weights_size=1e-3)
work = cn.Work()


def problem(level, counter):
    readout = cn.Readout(networks[level], classes=10, space=readout_space)
    averaged = train.averaged(28 // arguments.levels[level])
    return cn.TrainingProblem(readout, averaged, work=counter, **regularisation)


def evaluate(level, result):
    averaged = test.averaged(28 // arguments.levels[level])
    trained = result.problem
    return trained.average.accuracy(*trained.arrays(*result.controls)), trained.accuracy(averaged, *result.controls)


finest = len(meshes) - 1
unit = len(train) * operators[finest].nodes * networks[finest].steps


class Bar:
    """A progress bar on rank 0."""

    def __init__(self, title, total):
        self.bar = tqdm(total=total, desc=f"{title:>14}", disable=not root, file=sys.stdout,
                        mininterval=0.5, bar_format="{desc} |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]")

    def show(self, position, iteration):
        self.bar.update(min(position, self.bar.total) - self.bar.n)
        self.bar.set_postfix_str(f"loss {iteration.loss:.4f}")


say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
    f"{len(operators[0])} operators ({', '.join(operators[0].names)}), {COMM_WORLD.size} rank(s)\n")
began = time.perf_counter()
start = controls.random(rng, scale=0.1)



# On the finest level drawn, growing samples come before the whole one.
schedule = SampleSchedule(min(arguments.draw, len(train)))


def drawing():
    return dict(rng=np.random.default_rng(arguments.seed), schedule=schedule)


# Coarse to fine.
bars = {}


def steps_of(level):
    """Iterations of a level, those on drawn samples included."""
    drawn, size = 0, arguments.draw
    while level == finest and size < len(train):
        drawn, size = drawn + schedule.iterations, schedule.next_size(size, len(train))
    return drawn + iterations[level]


def report(level, iteration):
    if level not in bars:
        bars[level] = Bar(names[level], steps_of(level))
    bars[level].show(iteration.number, iteration)
    if iteration.number == steps_of(level):
        bars[level].bar.close()


results = cn.train_multiscale(
    [problem(k, work) for k in range(len(meshes))], *start, iterations=iterations, callback=report,
    **drawing())

# The finest mesh alone, from the same start, for the same work.
alone_bar = Bar(f"{names[-1]} only", round(work.total / unit))
alone_problem = problem(finest, cn.Work())
alone = cn.train_level(
    alone_problem, *start, iterations=10**6, work_budget=work.total, **drawing(),
    callback=lambda iteration: alone_bar.show(round(alone_problem.work.total / unit), iteration))
alone_bar.bar.close()

# The linear reference: no layers, a classifier of the image itself with a field of full resolution.
image_only = cn.ControlSpace(arguments.time, 1, operators[finest], features=1)
linear = cn.train_level(
    cn.TrainingProblem(
        cn.Readout(cn.Network(operators[finest], image_only), classes=10),
        train.averaged(28 // arguments.levels[finest]), **regularisation),
    *image_only.functions(), iterations=0)
seconds = time.perf_counter() - began

# The table, and every number in it by name.
figures = {}
columns = ("mesh", "nodes", "layers", "iter", "fwd", "adj", "work", "seconds", "train %", "test %")
widths = (14, 6, 6, 5, 5, 5, 7, 8, 8, 7)
say("\n" + " ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True)))


def row(title, key, level, result):
    sample = (len(train), operators[level].nodes, result.problem.network.steps)
    accuracies = evaluate(level, result)
    values = {
        "nodes": sample[1], "layers": sample[2], "iterations": result.history.last.number,
        "forward_sweeps": result.work.sweeps("forward", *sample),
        "adjoint_sweeps": result.work.sweeps("adjoint", *sample), "work_units": result.work.total / unit,
        "seconds": result.seconds, "train_accuracy": 100 * accuracies[0], "test_accuracy": 100 * accuracies[1],
    }
    digits = (0, 0, 0, 0, 0, 1, 1, 2, 2)
    cells = [f"{v:{w}.{d}f}" for v, w, d in zip(values.values(), widths[1:], digits, strict=True)]
    say(" ".join([f"{title:>14}", *cells]))
    last = result.history.last
    values |= {"objective": last.objective, "loss": last.loss, "classifier_seconds": result.inner_seconds}
    figures.update({f"{name}_{key}": float(value) for name, value in values.items()})


for level, result in enumerate(results):
    row(names[level], f"level_{names[level]}", level, result)
row(f"{names[-1]} only", "fine_only", finest, alone)
row("linear", "linear", finest, linear)


# Work to the same training objective on the finest mesh: the larger of the two final ones.
def units_to(target, history, spent_before):
    return next(((spent_before + i.work) / unit for i in history.iterations
                 if i.images == len(train) and i.objective <= target), float("nan"))


target = max(results[-1].history.last.objective, alone.history.last.objective) * (1 + 1e-12)
figures |= {
    "test_accuracy": figures[f"test_accuracy_level_{names[-1]}"],
    "train_accuracy": figures[f"train_accuracy_level_{names[-1]}"],
    "seconds": seconds,
    "objective_reached_by_both": target,
    "work_units_multiscale": units_to(target, results[-1].history, 0.0),
    "work_units_fine_only": units_to(target, alone.history, 0.0),
    "work_units_total": work.total / unit,
}
say(f"\n1 work unit: one forward propagation of the training sample on {names[-1]} "
    f"({operators[finest].nodes} nodes, {networks[finest].steps} layers).\n"
    f"Work units to the training objective {target:.4f} on {names[-1]}: "
    f"{figures['work_units_multiscale']:.1f} multiscale, {figures['work_units_fine_only']:.1f} on {names[-1]} alone.\n"
    f"Test accuracy {figures['test_accuracy']:.2f} %, the linear reference {figures['test_accuracy_linear']:.2f} %; "
    f"{seconds:.0f} s.")

# The figures.
final = results[-1]
sample_average = final.problem.on_sample(test.averaged(28 // arguments.levels[-1]))
predicted = sample_average.scores(*final.problem.arrays(*final.controls)).argmax(axis=0)
output = Path(arguments.output)
layer = min(1, arguments.layers - 1)
shown = [(o, i) for o in range(min(2, arguments.features)) for i in range(min(4, arguments.features))]
stencils = {}
for level, result in enumerate(results[: len(meshes) - bool(arguments.mesh)]):
    S = networks[level].layers(result.s, result.b)[0][layer]
    stencils[names[level]] = cn.interior_stencil(operators[level], np.stack([S[:, o, i] for o, i in shown], axis=1))


def curve(history):
    """Work and objective, where it is that of the whole sample."""
    whole = [i for i in history.iterations if i.images == len(train)]
    return [i.work / unit for i in whole], [i.objective for i in whole]


if root:
    plot_convergence(output / "convergence.png", {
        "multiscale": [curve(r.history) for r in results], f"{names[-1]} only": [curve(alone.history)]})
    if stencils:
        plot_stencils(output / "stencils.png", stencils, [f"feature {i} to {o}" for o, i in shown])
    plot_images(output / "digits.png", test.images[:40], predicted[:40], test.labels[:40])
cn.write_results(output, figures, vars(arguments), COMM_WORLD, histories={
    "multiscale": [r.history.as_dict() for r in results], "fine_only": alone.history.as_dict()})
say(f"Figures and results.json: {output}/")
