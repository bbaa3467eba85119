r"""Dynamics of one's own: an excitable network, written as a UFL form.

The FitzHugh-Nagumo equations describe nerve fibres and heart muscle. Here each of C features is such a medium, which
the image excites and the network's operators couple,

.. math::
    \dot Y = \epsilon\Delta Y + Y - Y^3 - R + \sum_j s_j(t) D_j Y + b(t), \qquad \dot R = \delta\,(Y - \gamma R),

with the recovery R starting at rest. It is not among the built-in dynamics: the function :func:`excitable` below is
all that is needed. Irksome makes a Runge-Kutta step of it, pyadjoint tapes that step, and problem, optimiser and
multiscale training are those of any network. Learned on a coarse mesh first, then on a finer one.

Run it with ``python demos/user_dynamics/user_dynamics.py``, under MPI with ``mpiexec -n 2 python ...``. The first run
compiles the form and its derivatives, which takes a while; they are kept for the next one.

Source of the equations: FitzHugh, "Impulses and physiological states in theoretical models of nerve membrane", 1961.
"""

import argparse
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--levels", type=int, nargs="+", default=[7, 14], help="cells along each side, coarsest first")
parser.add_argument("--features", type=int, default=3)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--time", type=float, default=1.0, help="final time T")
parser.add_argument("--diffusion", type=float, default=0.5, help="epsilon, in squared pixels per unit of time")
parser.add_argument("--recovery", type=float, default=0.5, help="delta, the rate of the recovery")
parser.add_argument("--scheme", choices=["backward-euler", "qin-zhang", "gauss"], default="backward-euler",
                    help="of order 1, 2 or 4")
parser.add_argument("--train", type=int, default=256, help="training images of the shipped sample")
parser.add_argument("--test", type=int, default=256, help="test images")
parser.add_argument("--iterations", type=int, nargs="+", default=[5, 2], help="quasi-Newton, of all or of each level")
parser.add_argument("--readout", type=int, default=4, help="cells along each side of the classifier's mesh")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="results/user_dynamics")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported

import numpy as np
from firedrake import (
    COMM_WORLD,
    Function,
    FunctionSpace,
    RectangleMesh,
    SpatialCoordinate,
    as_vector,
    dx,
    grad,
    inner,
)
from irksome import BackwardEuler, Dt, GaussLegendre, QinZhang
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

import ctrlnet as cn
from ctrlnet.data import mnist_sample
from ctrlnet.plotting import plot_convergence
from ctrlnet.transfer import PixelProjection

SIDE = 28.0  # of the domain, in pixels of the full image
RECOVERY = 0.5  # gamma
root = COMM_WORLD.rank == 0


def say(*text):
    if root:
        print(*text, flush=True)


# What can be wrong with the arguments is said before anything is computed.
for cells in (*arguments.levels, arguments.readout):
    if cells < 1 or 28 % cells:
        parser.error(f"28 pixels do not divide into {cells} cells: choose among 1, 2, 4, 7, 14, 28.")
iterations = arguments.iterations
if len(iterations) == 1:
    iterations = iterations * len(arguments.levels)
elif len(iterations) != len(arguments.levels):
    parser.error(f"--iterations takes one number, or one for each of the {len(arguments.levels)} levels.")
for name in ("features", "layers", "train", "test"):
    if getattr(arguments, name) < 1:
        parser.error(f"--{name} must be at least 1, received {getattr(arguments, name)}.")
for name in ("time", "diffusion", "recovery"):
    if not getattr(arguments, name) > 0:
        parser.error(f"--{name} must be positive, received {getattr(arguments, name)}.")

lumped = dx(scheme="KMV", degree=1)  # the operators' own quadrature, which makes the mass diagonal


def excitable(state, test, layer):
    """The equations, all terms on one side, for one image: its features Y, their recovery R, and test functions."""
    (Y, R), (v, w) = state, test
    reaction = as_vector([y - y**3 for y in Y])
    excitation = inner(Dt(Y) - reaction + R, v) + arguments.diffusion * inner(grad(Y), grad(v))
    recovery = inner(Dt(R) - arguments.recovery * (Y - RECOVERY * R), w)
    return (excitation + recovery) * lumped - layer.affine(Y, v)


dynamics = cn.UserDynamics(excitable, parts=2)
tableau = {"backward-euler": BackwardEuler(), "qin-zhang": QinZhang(), "gauss": GaussLegendre(2)}[arguments.scheme]
scheme = cn.Irksome(tableau, images=min(128, arguments.train))

# The rest is what it is for built-in dynamics: data, networks on all meshes, a problem for each.
rng = np.random.default_rng(arguments.seed)
data = mnist_sample().subset(arguments.train, arguments.test, rng)
train, test = cn.Sample(data.train_images, data.train_labels), cn.Sample(data.test_images, data.test_labels)
meshes = [RectangleMesh(n, n, SIDE, SIDE, quadrilateral=True) for n in arguments.levels]
operators = [cn.low_order_operators(FunctionSpace(mesh, "CG", 1)) for mesh in meshes]
controls = cn.ControlSpace(arguments.time, arguments.layers, operators[0], arguments.features)
coarsest = cn.Network(operators[0], controls, dynamics=dynamics, integrator=scheme, lift=np.ones(arguments.features))
networks = [coarsest, *(coarsest.on(on_mesh.space) for on_mesh in operators[1:])]
readout_mesh = RectangleMesh(arguments.readout, arguments.readout, SIDE, SIDE, quadrilateral=True)
readout_space = FunctionSpace(readout_mesh, "CG", 1)
regularisation = dict(control_size=3e-3, control_scales=operators[-1].norms, weights_gradient=1e-2, weights_size=1e-3)
work = cn.Work()
problems = [
    cn.TrainingProblem(cn.Readout(network, 10, readout_space), train.averaged(28 // n), work=work, **regularisation)
    for network, n in zip(networks, arguments.levels, strict=True)
]

say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
    f"{tableau}, {COMM_WORLD.size} rank(s)\n")
bars = {}


def report(level, iteration):
    if level not in bars:
        title = f"{arguments.levels[level]}x{arguments.levels[level]}"
        bars[level] = tqdm(total=iterations[level], desc=f"{title:>8}", disable=not root, file=sys.stdout,
                           mininterval=0.5, bar_format="{desc} |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]")
    bars[level].update(iteration.number - bars[level].n)
    bars[level].set_postfix_str(f"loss {iteration.loss:.4f}")
    if iteration.number == iterations[level]:
        bars[level].close()


began = time.perf_counter()
start = controls.random(rng, scale=0.05)
results = cn.train_multiscale(problems, *start, iterations=iterations, callback=report)
seconds = time.perf_counter() - began

# A classifier of the image itself, without layers, to compare with.
image_only = cn.ControlSpace(1.0, 1, operators[-1], features=1)
bare = cn.Readout(cn.Network(operators[-1], image_only), 10, readout_space)
linear = cn.train_level(
    cn.TrainingProblem(bare, train.averaged(28 // arguments.levels[-1]), **regularisation),
    *image_only.functions(), iterations=0)

# The table, and every number in it by name.
figures = {"seconds": seconds}
columns = ("mesh", "nodes", "layers", "iter", "start", "objective", "seconds", "train %", "test %")
widths = (8, 6, 6, 5, 9, 9, 8, 8, 7)
say("\n" + " ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True)))


def row(title, cells, result):
    trained, history = result.problem, result.history
    values = {
        "nodes": trained.network.operators.nodes, "layers": trained.network.steps,
        "iterations": history.last.number, "objective_start": history.iterations[0].objective,
        "objective": history.last.objective, "seconds": result.seconds,
        "train_accuracy": 100 * trained.average.accuracy(*trained.arrays(*result.controls)),
        "test_accuracy": 100 * trained.accuracy(test.averaged(28 // cells), *result.controls),
    }
    digits = (0, 0, 0, 4, 4, 1, 2, 2)
    cells = [f"{v:{w}.{d}f}" for v, w, d in zip(values.values(), widths[1:], digits, strict=True)]
    say(" ".join([f"{title:>8}", *cells]))
    figures.update({f"{name}_{title}": float(value) for name, value in values.items()})


for n, result in zip(arguments.levels, results, strict=True):
    row(f"{n}x{n}", n, result)
row("linear", arguments.levels[-1], linear)
finest = f"{arguments.levels[-1]}x{arguments.levels[-1]}"
figures |= {name: figures[f"{name}_{finest}"] for name in ("objective", "train_accuracy", "test_accuracy")}
say(f"\nTest accuracy {figures['test_accuracy']:.2f} %, without layers {figures['test_accuracy_linear']:.2f} %; "
    f"{seconds:.0f} s.")


# The figures: the course of the training, and what one image does to the medium.
def on_the_grid(space, values):
    """Return nodal values (owned, ...) as (rows, columns, ...) of the uniform mesh, on every rank."""
    x, y = SpatialCoordinate(space.mesh())
    places = [Function(space).interpolate(c).dat.data_ro.copy() for c in (x, y)]
    parts = COMM_WORLD.allgather((*places, values))
    x, y, values = (np.concatenate(p) for p in zip(*parts, strict=True))
    n = int(round(np.sqrt(x.size)))
    return values[np.lexsort((x.round(6), -y.round(6)))].reshape(n, n, *values.shape[1:])


final, network = results[-1], networks[-1]
sweep = network.sweep
trajectory = sweep.trajectory(network.steps, sweep.image_block)
image = test.averaged(28 // arguments.levels[-1]).values(0, 1)
network.lift_images(PixelProjection(network.space, image.shape[1:])(image), trajectory.initial)
sweep.forward(*network.layers(final.s, final.b), network.step_sizes, trajectory)
states = np.stack([
    on_the_grid(network.space, np.stack([part[..., 0] for part in trajectory.complete(k)], axis=-1).copy())
    for k in range(network.steps + 1)])
output = Path(arguments.output)
if root:
    pieces = {}
    for n, result in zip(arguments.levels, results, strict=True):
        history = result.history
        pieces[f"{n}x{n}"] = [([i.number for i in history.iterations], history.column("objective"))]
    plot_convergence(output / "convergence.png", pieces, xlabel="iterations")
    figure = Figure(figsize=(1.4 * (network.steps + 1), 2.9 * network.features), layout="constrained")
    axes = figure.subplots(2 * network.features, network.steps + 1, squeeze=False)
    for feature in range(network.features):
        for part, name in enumerate(("Y", "R")):
            shown = states[:, :, :, feature, part]
            for k, axis in enumerate(axes[2 * feature + part]):
                axis.imshow(shown[k], cmap="RdBu_r", vmin=-np.abs(shown).max(), vmax=np.abs(shown).max())
                axis.set_xticks([])
                axis.set_yticks([])
                if feature == part == 0:
                    axis.set_title(f"t = {k * arguments.time / network.steps:.2f}", fontsize=8)
            axes[2 * feature + part, 0].set_ylabel(f"{name}, feature {feature}", fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(output / "excitation.png", dpi=120)
cn.write_results(
    output, figures, vars(arguments), COMM_WORLD,
    histories={f"{n}x{n}": r.history.as_dict() for n, r in zip(arguments.levels, results, strict=True)})
say(f"Figures and results.json: {output}/")
