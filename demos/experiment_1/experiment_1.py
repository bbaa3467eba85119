r"""Experiment 1 of the seed: train on one mesh, classify on others.

A reaction-diffusion network :math:`\dot Y = \sigma(\sum_j s_j(t) D_j Y + b(t)) + \nu\Delta Y` is trained on a 28x28
mesh, on a 14x14 mesh, or on all meshes at once, one drawn for each mini-batch. Then it classifies digits at resolutions
it was not trained for, with its kernels

* *rediscretised*: the same coefficients, operators assembled on the other mesh,
* *Galerkin*: :math:`R K P` to a coarser mesh, the solution of the small linear system to a finer one,
* not moved at all: the images *interpolated* (or averaged) to the mesh of training,
* rediscretised, and the classifier *W updated* by its convex problem alone,
* rediscretised, and all *retrained* for a little while.

Run it with ``python demos/experiment_1/experiment_1.py``, under MPI with ``mpiexec -n 2 python ...``; it takes the
shipped sample, or all of MNIST with ``--data folder``. The seed, E. Haber and L. Ruthotto, "Convolution neural nets
meet PDE's", SIAM CSE 2017, has 82 % on the coarse mesh. Training images are shifted by up to one pixel, as is usual.

What carries best between scales is the default here: diffusion in the state equation; all nine operators where every
mesh is trained on, since high-order ones carry only if trained to; the low-order four where one mesh is, and a share of
its mini-batches blurred to the resolution of coarser ones (``--blur 0``: none), since an average of pixels is another
image, whatever the kernels do.
"""

import argparse
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--data", help="folder with the four IDX files of MNIST (default: the shipped sample)")
parser.add_argument("--features", type=int, default=8)
parser.add_argument("--layers", type=int, default=6)
parser.add_argument("--time", type=float, default=4.0, help="final time T")
parser.add_argument("--diffusion", type=float, default=1.0, help="nu, in squared pixels per unit of time")
parser.add_argument("--operators", choices=["stencil", "low"], default="stencil",
                    help="of the network for all meshes: the 3x3 stencil basis, or 1, d/dx, d/dy, Laplacian")
parser.add_argument("--single-operators", choices=["stencil", "low"], default="low", help="of those for one mesh")
parser.add_argument("--blur", type=float, default=0.6,
                    help="share of one mesh's mini-batches whose images have the resolution of a coarser one")
parser.add_argument("--readout", type=int, default=7, help="cells along each side of the classifier's mesh")
parser.add_argument("--epochs", type=int, default=30, help="passes over the sample of the network for all meshes")
parser.add_argument("--single-epochs", type=int,
                    help="passes of the networks for one mesh (default: a sixth; more make them worse on other meshes)")
parser.add_argument("--retrain-epochs", type=int, default=1)
parser.add_argument("--rate", type=float, default=0.01, help="Adam's largest learning rate")
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--shift", type=int, default=1, help="pixels by which training images are shifted at most")
parser.add_argument("--networks", nargs="+", default=["multilevel", "train28", "train14"],
                    choices=["multilevel", "train28", "train14"])
parser.add_argument("--train", type=int, help="training images (default: all)")
parser.add_argument("--test", type=int, help="test images (default: all)")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--output", default="results/experiment_1")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported
for name in ("features", "layers", "readout", "epochs", "batch"):
    if getattr(arguments, name) < 1:
        parser.error(f"--{name} must be at least 1, received {getattr(arguments, name)}.")
if not 0 <= arguments.blur < 1:
    parser.error(f"--blur is a share from 0 to below 1, received {arguments.blur}.")
if arguments.data and not Path(arguments.data).is_dir():
    parser.error(f"There is no folder {arguments.data}; it holds the four IDX files of MNIST.")

import numpy as np
from firedrake import COMM_WORLD, FunctionSpace, RectangleMesh
from tqdm import tqdm

import ctrlnet as cn
from ctrlnet.data import ShiftedSample, mnist, mnist_sample
from ctrlnet.metric import Coordinates
from ctrlnet.optimise import JointFunctional, Limits, update_classifier
from ctrlnet.optimise.first_order import FirstOrder, warm_cosine_rate
from ctrlnet.optimise.update_rules import Adam
from ctrlnet.plotting import plot_confusion, plot_images
from ctrlnet.transfer import (
    Averaging,
    FullWeighting,
    Linear,
    PiecewiseConstant,
    averaged_pixels,
    carry,
    galerkin,
    galerkin_prolongation,
    transferred_pixels,
)

SIDE = 28.0  # of the domain, in pixels of the full image
MESHES = (7, 14, 28, 56)
# How often a mesh is drawn for a mini-batch: fine ones cost, coarse ones are hardest to learn.
SHARES = {56: 0.08, 28: 0.35, 14: 0.25, 7: 0.32}
# The mesh and the resolution that mini-batches are drawn for, with their shares.
VIEWS = {
    "multilevel": {(n, n): share for n, share in SHARES.items()},
    "train28": {(28, 28): 1 - arguments.blur, (28, 14): arguments.blur / 2, (28, 7): arguments.blur / 2},
    "train14": {(14, 14): 1 - arguments.blur / 2, (14, 7): arguments.blur / 2},
}
OWN = {"train28": 28, "train14": 14}
METHODS = ("rediscretised", "galerkin", "interpolated", "W_updated", "retrained")
root = COMM_WORLD.rank == 0
single_epochs = arguments.single_epochs or max(1, arguments.epochs // 6)


def say(*text):
    if root:
        print(*text, flush=True)


data = mnist(root=arguments.data) if arguments.data else mnist_sample()
if arguments.train or arguments.test:
    data = data.subset(arguments.train or len(data.train_labels), arguments.test or len(data.test_labels),
                       np.random.default_rng(0))
train, test = cn.Sample(data.train_images, data.train_labels), cn.Sample(data.test_images, data.test_labels)

# One space a mesh, and what a picture of that many pixels looks like there: coarse pixels are averages of fine ones;
# the 56x56 mesh sees the finite-element function of the 28x28 one.
spaces = {n: FunctionSpace(RectangleMesh(n, n, SIDE, SIDE, quadrilateral=True), "CG", 1) for n in MESHES}
pixels = {n: averaged_pixels(spaces[n], (28, 28), 28 // n) for n in MESHES if n <= 28}
pixels[56] = transferred_pixels(pixels[28], spaces[56])
readout_space = FunctionSpace(RectangleMesh(arguments.readout, arguments.readout, SIDE, SIDE, quadrilateral=True),
                              "CG", 1)

class Family:
    """The networks of one set of operators: the same controls and classifier on every mesh."""

    def __init__(self, make_operators):
        self.operators = make_operators(spaces[28])
        self.controls = cn.ControlSpace(arguments.time, arguments.layers, self.operators, arguments.features)
        reference = cn.Network(
            self.operators, self.controls, dynamics=cn.ReactionDiffusion(nu=arguments.diffusion), integrator=cn.IMEX(),
            lift=np.ones(arguments.features), precision="single")
        self.networks = {n: reference if n == 28 else reference.on(spaces[n]) for n in MESHES}
        self.readout = cn.Readout(reference, classes=10, space=readout_space)
        self.readouts = {n: self.readout if n == 28 else self.readout.on(self.networks[n]) for n in MESHES}

    @property
    def parameters(self):
        return sum(f.function_space().dim() for f in (*self.controls.functions(), *self.readout.functions()))

    def average(self, sample, mesh, seen=None, work=None):
        """Return the average loss of a sample on a mesh, seen at the resolution of another one."""
        projection = pixels[mesh]
        if seen is not None and seen != mesh:
            transfer = Linear() if seen < mesh else FullWeighting()
            projection = transferred_pixels(pixels[seen], spaces[mesh], transfer)
        return cn.SampleAverage(self.readouts[mesh], sample, work=work, projection=projection)

    def average_of_views(self, sample, views, work=None, rng=None):
        """Return the mean over meshes and resolutions, of which mini-batches draw one."""
        chosen = {view: share for view, share in views.items() if share}
        averages = [self.average(sample, mesh, seen, work) for mesh, seen in chosen]
        return cn.MultilevelAverage(averages, list(chosen.values()), rng)


BASES = {"stencil": cn.stencil_operators, "low": cn.low_order_operators}
chosen_bases = {
    name: arguments.operators if name == "multilevel" else arguments.single_operators for name in VIEWS}
families = {basis: Family(BASES[basis]) for basis in sorted(set(chosen_bases.values()))}
family_of = {name: families[basis] for name, basis in chosen_bases.items()}
parameters = max(family.parameters for family in families.values())


def training_problem(family, views, sample, rng, work):
    problem = cn.TrainingProblem(
        family.readout, sample, control_size=1e-6, weights_gradient=1e-4, weights_size=1e-5, work=work)
    return problem.with_average(family.average_of_views(sample, views, work, rng))


def train_network(family, title, views, start, seed, epochs, rate):
    """Train (s, b, W, beta) by Adam, a view drawn for each mini-batch; return the controls, history and work."""
    rng, work = np.random.default_rng(seed), cn.Work()
    shifted = ShiftedSample(data.train_images, data.train_labels, 10, arguments.shift, rng)
    problem = training_problem(family, views, shifted, rng, work)
    few = train.drawn(min(512, len(train)), np.random.default_rng(seed))
    recorded = family.average_of_views(few, views, work)
    # A unit of W changes a score by about as much as a unit of s does.
    size = (SIDE / arguments.readout) ** 2 / 5.0
    coordinates = Coordinates(problem, weights_matrix=size**2 * np.eye(readout_space.dim()))
    bar = tqdm(total=epochs, desc=f"{title:>24}", disable=not root, file=sys.stdout, mininterval=0.5,
               bar_format="{desc} |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]")

    def report(iteration):
        bar.update(iteration.number - bar.n)
        bar.set_postfix_str(f"loss {iteration.loss:.4f}")

    solver = FirstOrder(
        JointFunctional(problem, *start), rng, Adam(second=0.99), rate=rate, schedule=warm_cosine_rate,
        batch=min(arguments.batch, len(train)), limits=Limits(iterations=epochs), coordinates=coordinates,
        callback=report, recorded=recorded)
    found = solver.solve()
    bar.close()
    return found, solver.history, work


def predictions(family, mesh, found, seen=None, kernels=None):
    """Return the predicted classes of the test images on a mesh."""
    s, b, W, beta = found
    if kernels is not None:
        s = kernels(s)
    on = family.average(test, mesh, seen)
    arrays = (*family.networks[mesh].layers(s, b), family.readout.weights_array(W), beta.dat.data_ro.ravel())
    return on.scores(*arrays).argmax(axis=0)


def galerkin_map(family, trained, mesh):
    """Return the map of coefficients over one or two halvings or doublings of the mesh width."""
    chain = [n for n in MESHES if min(trained, mesh) <= n <= max(trained, mesh)]
    steps = list(zip(chain, chain[1:], strict=False))
    result = None
    for coarse, fine in steps if mesh > trained else reversed(steps):
        here = family.networks[coarse].operators, family.networks[fine].operators
        step = (galerkin_prolongation(*here, Averaging(), PiecewiseConstant()) if mesh > trained
                else galerkin(*here[::-1], Averaging(), PiecewiseConstant()))
        result = step if result is None else step @ result
    return result


def updated(family, mesh, found, seed):
    """Return the network with its classifier solved for anew on up to 10,000 images at this resolution."""
    some = train.drawn(min(10_000, len(train)), np.random.default_rng(seed))
    problem = cn.TrainingProblem(
        family.readouts[mesh], some, control_size=0.0, weights_gradient=1e-2, weights_size=1e-3)
    problem = problem.with_average(family.average(some, mesh))
    W, beta, _ = update_classifier(problem, *found)
    return (*found[:2], W, beta)


def linear_reference(mesh, seed):
    """Return a classifier of the image itself, without layers, and its accuracies on all meshes."""
    family = family_of["train28"]
    one = cn.ControlSpace(1.0, 1, family.operators, features=1)
    few = train.drawn(min(20_000, len(train)), np.random.default_rng(seed))
    flat = {n: cn.Readout(cn.Network(family.networks[n].operators, one), 10, readout_space) for n in MESHES}
    problem = cn.TrainingProblem(flat[mesh], few, control_size=0.0, weights_gradient=1e-2, weights_size=1e-3)
    problem = problem.with_average(cn.SampleAverage(flat[mesh], few, projection=pixels[mesh]))
    W, beta, _ = update_classifier(problem, *one.functions())
    return {n: float((cn.SampleAverage(flat[n], test, projection=pixels[n]).scores(
        *flat[n].network.layers(*one.functions()), flat[n].weights_array(W), beta.dat.data_ro.ravel()
    ).argmax(axis=0) == test.labels).mean() * 100) for n in MESHES}


def elsewhere(network, found, seed):
    """Return, for each way to another mesh, the function that maps the mesh to the predictions there."""
    family, own = family_of[network], OWN[network]

    def carried(mesh):
        return (*carry(family.networks[own], *found[:2], spaces[mesh])[1:], *found[2:])

    def retrained(mesh):
        title = f"seed {seed}: {network} at {mesh}"
        again = train_network(
            family, title, {(mesh, mesh): 1.0}, carried(mesh), seed, arguments.retrain_epochs, 0.3 * arguments.rate)
        return predictions(family, mesh, again[0])

    return {
        "galerkin": lambda mesh: predictions(family, mesh, found, kernels=galerkin_map(family, own, mesh)),
        "interpolated": lambda mesh: predictions(family, own, found, seen=mesh),
        "W_updated": lambda mesh: predictions(family, mesh, updated(family, mesh, carried(mesh), seed)),
        "retrained": retrained,
    }


# Everything that is run for one seed, as (network, method) -> {mesh: accuracy}.
def run(seed):
    cells, kept, course = {}, {}, {}

    def note(network, method, mesh, predicted):
        cells.setdefault((network, method), {})[mesh] = 100 * float((predicted == test.labels).mean())
        kept[network, method, mesh] = predicted

    for mesh in MESHES:
        cells.setdefault(("linear", "rediscretised"), {})[mesh] = linear_reference(mesh, seed)[mesh]
    for network in arguments.networks:
        family = family_of[network]
        start = (*family.controls.random(np.random.default_rng(seed), scale=0.1), *family.readout.functions())
        epochs = arguments.epochs if network == "multilevel" else single_epochs
        began = time.perf_counter()
        found, history, work = train_network(
            family, f"seed {seed}: {network}", VIEWS[network], start, seed, epochs, arguments.rate)
        course[network] = dict(
            seconds=time.perf_counter() - began, loss=history.last.loss,
            work=work.units(len(train), family.operators.nodes, arguments.layers))
        if root:
            # What was trained can be used without training it again.
            Path(arguments.output).mkdir(parents=True, exist_ok=True)
            np.savez(Path(arguments.output) / f"{network}_seed{seed}.npz", *(f.dat.data_ro for f in found[:2]))
        for mesh in MESHES:
            note(network, "rediscretised", mesh, predictions(family, mesh, found))
        say_row(network, "rediscretised", cells[network, "rediscretised"])
        if network == "multilevel":
            continue
        for method, predict in elsewhere(network, found, seed).items():
            for mesh in (n for n in MESHES if n != OWN[network]):
                note(network, method, mesh, predict(mesh))
            say_row(network, method, cells[network, method])
    return cells, kept, course


def say_row(network, method, row, spread=None):
    numbers = [f"{row[n]:8.2f}" + (f" ±{spread[n]:.2f}" if spread else "") if n in row else " " * 8 for n in MESHES]
    say(f"{network:>12} {method:>14} " + " ".join(f"{x:>14}" for x in numbers))


say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
    f"{parameters} parameters, {COMM_WORLD.size} rank(s)\n")
say(f"{'trained':>12} {'kernels':>14} " + " ".join(f"{f'{n}x{n} %':>14}" for n in MESHES))
outcomes = [run(seed) for seed in arguments.seeds]

# The table over seeds, and every number in it by name.
figures = {"parameters": float(parameters)}
if len(outcomes) > 1:
    say(f"\nMean and standard deviation over {len(outcomes)} seeds")
for network, method in outcomes[0][0]:
    rows = [o[0][network, method] for o in outcomes]
    mean = {n: float(np.mean([r[n] for r in rows])) for n in rows[0]}
    spread = {n: float(np.std([r[n] for r in rows])) for n in rows[0]}
    if len(outcomes) > 1 or network == "linear":
        say_row(network, method, mean, spread)
    for n in mean:
        figures[f"accuracy_{network}_test{n}_{method}"] = mean[n]
        figures[f"spread_{network}_test{n}_{method}"] = spread[n]
for network in arguments.networks:
    for what in ("seconds", "work", "loss"):
        figures[f"{what}_{network}"] = float(np.mean([o[2][network][what] for o in outcomes]))

kept = outcomes[0][1]
output = Path(arguments.output)
if root:
    matrices = {}
    for network in (n for n in arguments.networks if n != "multilevel"):
        for mesh in (n for n in MESHES if n != OWN[network]):
            for method in METHODS:
                matrix = np.zeros((10, 10), dtype=int)
                np.add.at(matrix, (test.labels, kept[network, method, mesh]), 1)
                matrices[f"{network} at {mesh}x{mesh}, {method}"] = matrix
    if matrices:
        plot_confusion(output / "confusion.png", matrices, columns=len(METHODS))
    network, mesh = arguments.networks[-1], 7
    predicted = kept[network, "rediscretised", mesh]
    wrong, right = np.flatnonzero(predicted != test.labels)[:20], np.flatnonzero(predicted == test.labels)[:20]
    shown = np.concatenate([right, wrong])
    plot_images(output / "digits.png", test.averaged(28 // mesh).images[shown], predicted[shown], test.labels[shown])
cn.write_results(output, figures, vars(arguments), COMM_WORLD, seeds=[
    {f"{network} {method}": row for (network, method), row in o[0].items()} | o[2] for o in outcomes])
say(f"\nFigures and results.json: {output}/")
