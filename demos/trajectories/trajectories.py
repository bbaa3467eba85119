r"""Path planning: the paths that the classes take through time, before and after training.

Training a network :math:`\dot Y = \sigma(\sum_j s_j(t) D_j Y + b(t))` plans paths: all images start at t = 0 as they
are, and the controls steer those of different classes to different places at t = T, where the classifier is linear.
This demo draws the paths of test images of a few classes. A state has thousands of components; the picture shows the
plane of scores, :math:`\int w_k\cdot Y(t)\,dx`, in which the means of the classes lie furthest apart at t = T: before
training with the best classifier of the random network, after it with that of the trained one, both found on training
images.

The separation is the variance of the class means over that within the classes, in the plane. Run the demo with
``python demos/trajectories/trajectories.py``, under MPI with ``mpiexec -n 2 python ...``.
"""

import argparse
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--cells", type=int, default=14, help="cells along each side of the mesh")
parser.add_argument("--features", type=int, default=4)
parser.add_argument("--layers", type=int, default=16)
parser.add_argument("--time", type=float, default=4.0, help="final time T")
parser.add_argument("--readout", type=int, default=4, help="cells along each side of the classifier's mesh")
parser.add_argument("--iterations", type=int, default=40, help="quasi-Newton iterations")
parser.add_argument("--classes", type=int, nargs="+", default=[3, 5, 8], help="digits whose paths are drawn")
parser.add_argument("--paths", type=int, default=15, help="images of each class whose paths are drawn")
parser.add_argument("--train", type=int, help="training images (default: all of the shipped sample)")
parser.add_argument("--test", type=int, help="test images (default: all)")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="results/trajectories")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported
for name in ("cells", "readout"):
    if getattr(arguments, name) < 1 or 28 % getattr(arguments, name):
        parser.error(f"28 pixels do not divide into --{name} {getattr(arguments, name)}: choose 1, 2, 4, 7, 14, 28.")
classes = arguments.classes
if len(set(classes)) < max(3, len(classes)) or not set(classes) <= set(range(10)):
    parser.error(f"--classes takes at least 3 different digits, which a plane separates; received {classes}.")
for name in ("features", "layers", "iterations", "paths"):
    if getattr(arguments, name) < 1:
        parser.error(f"--{name} must be at least 1, received {getattr(arguments, name)}.")

import numpy as np
from firedrake import COMM_WORLD, FunctionSpace, RectangleMesh
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

import ctrlnet as cn
from ctrlnet.data import mnist_sample
from ctrlnet.optimise import update_classifier
from ctrlnet.transfer import PixelProjection

SIDE = 28.0  # of the domain, in pixels of the full image
root = COMM_WORLD.rank == 0


def say(*text):
    if root:
        print(*text, flush=True)


data = mnist_sample()
data = data.subset(arguments.train or len(data.train_labels), arguments.test or len(data.test_labels),
                   np.random.default_rng(arguments.seed))
train, test = (cn.Sample(images, labels).averaged(28 // arguments.cells)
               for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)))
for digit in classes:
    for title, sample in (("training", train), ("test", test)):
        if (sample.labels == digit).sum() < 2:
            parser.error(f"There are fewer than 2 {title} images of the digit {digit}: take more.")

V, coarse = (FunctionSpace(RectangleMesh(n, n, SIDE, SIDE, quadrilateral=True), "CG", 1)
             for n in (arguments.cells, arguments.readout))
operators = cn.stencil_operators(V)
controls = cn.ControlSpace(arguments.time, arguments.layers, operators, arguments.features)
network = cn.Network(operators, controls, lift=np.ones(arguments.features))
readout = cn.Readout(network, 10, coarse)
problem = cn.TrainingProblem(readout, train, control_size=1e-4, control_scales=operators.norms, weights_gradient=1e-2,
                             weights_size=1e-3)
projection = PixelProjection(V, train.pixels)


def paths_of(sample, s, b):
    """Return the features of Y(t) at every step, (steps + 1, features, images), of the chosen classes; the labels."""
    chosen = np.flatnonzero(np.isin(sample.labels, classes))
    sweep, S_b = network.sweep, network.layers(s, b)
    block, parts = sweep.image_block, []
    trajectory = sweep.trajectory(network.steps, block)
    for first in range(0, chosen.size, block):
        images = sample.chosen(chosen[first : first + block])
        network.lift_images(projection(images.values(0, len(images))), trajectory.initial)
        sweep.forward(*S_b, network.step_sizes, trajectory)
        states = (trajectory.states[k, : trajectory.owned] for k in range(network.steps + 1))
        parts.append(np.stack([readout.restrict(Y)[:, : len(images)] for Y in states]))
    return np.concatenate(parts, axis=2), sample.labels[chosen]


def plane_of(F, labels, W):
    """Return the two directions (features, 2), combinations of scores, in which the class means lie furthest apart."""
    weights = readout.weights_array(W)[:, classes]
    means = np.stack([(weights.T @ F[:, labels == c]).mean(axis=1) for c in classes], axis=1)
    directions = np.linalg.svd(means - means.mean(axis=1, keepdims=True))[0][:, :2]
    return weights @ (directions * np.sign(directions[np.abs(directions).argmax(axis=0), [0, 1]]))


def separation(F, labels):
    """Return the variance of the class means over that within the classes, of features (features, images)."""
    means = np.stack([F[:, labels == c].mean(axis=1) for c in classes], axis=1)
    within = F - means[:, [classes.index(c) for c in labels]]
    return float(means.var(axis=1).sum() / ((within**2).sum() / labels.size))


def accuracy(F, labels, means):
    """Return the share of images, in percent, whose nearest class mean in the plane is that of their class."""
    nearest = np.linalg.norm(F[:, None, :] - means[:, :, None], axis=0).argmin(axis=0)
    return 100 * float((np.array(classes)[nearest] == labels).mean())


def course(s, b, W):
    """Return the test images' paths in their plane, their labels, and what is measured along them."""
    F, labels = paths_of(train, s, b)
    plane = plane_of(F[-1], labels, W)
    means = np.stack([(plane.T @ F[-1][:, labels == c]).mean(axis=1) for c in classes], axis=1)
    F, labels = paths_of(test, s, b)
    paths = np.einsum("fp,kfi->kpi", plane, F)
    return paths, labels, [separation(P, labels) for P in paths], accuracy(paths[-1], labels, means)


bar = tqdm(desc="training", disable=not root, file=sys.stdout, mininterval=0.5,
           bar_format="{desc}: {n_fmt} iterations [{elapsed}{postfix}]")


def report(iteration):
    bar.update(iteration.number - bar.n)
    bar.set_postfix_str(f"objective {iteration.objective:.4f}", refresh=False)


say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
    f"{COMM_WORLD.size} rank(s)")
start = controls.random(np.random.default_rng(arguments.seed), 0.1)
result = cn.train_level(problem, *start, iterations=arguments.iterations, callback=report)
bar.close()
courses = {"before training": course(*start, update_classifier(problem, *start)[0]),
           "after training": course(result.s, result.b, result.W)}

figures = {"objective": result.history.last.objective, "test_accuracy": 100 * problem.accuracy(test, *result.controls)}
say(f"\n{'':>16} {'separation at t = 0':>20} {'t = T/2':>9} {'t = T':>9} {'in the plane, %':>16}")
for title, (_, _, values, share) in courses.items():
    middle = values[arguments.layers // 2]
    say(f"{title:>16} {values[0]:>20.3f} {middle:>9.3f} {values[-1]:>9.3f} {share:>16.2f}")
    when = title.split()[0]
    figures |= {f"separation_start_{when}": values[0], f"separation_middle_{when}": middle,
                f"separation_{when}": values[-1], f"plane_accuracy_{when}": share}
figures["separation_gain"] = figures["separation_after"] / figures["separation_before"]
say(f"\nTraining multiplies the separation of {', '.join(map(str, classes))} at T by {figures['separation_gain']:.1f}; "
    f"{figures['test_accuracy']:.2f} % of all test images are classified rightly.")

output = Path(arguments.output)
if root:
    output.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    *panels, last = figure.subplots(1, 3)
    times = np.linspace(0.0, arguments.time, arguments.layers + 1)
    for axes, (title, (paths, labels, values, share)) in zip(panels, courses.items(), strict=True):
        for number, digit in enumerate(classes):
            own, color = paths[:, :, labels == digit], f"C{number}"
            for k in range(min(arguments.paths, own.shape[2])):
                axes.plot(*own[:, :, k].T, color=color, linewidth=0.7, alpha=0.4)
                axes.plot(*own[-1, :, k], color=color, marker="o", markersize=3, alpha=0.6)
            mean = own.mean(axis=2)
            axes.plot(*mean.T, color=color, linewidth=3, label=f"{digit}")
            axes.plot(*mean[0], color=color, marker="s", markersize=8, markeredgecolor="black")
            axes.plot(*mean[-1], color=color, marker="o", markersize=10, markeredgecolor="black")
        axes.set_title(f"{title}: {share:.1f} % told apart at T", fontsize=10)
        axes.set_xlabel("first direction of scores")
        axes.set_ylabel("second direction of scores")
        axes.legend(title="mean of", fontsize=8)
        last.plot(times, values, marker=".", label=title)
    last.set_title("variance of the means over that within classes", fontsize=10)
    last.set_xlabel("t")
    last.set_yscale("log")
    last.grid(alpha=0.3)
    last.legend(fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(output / "trajectories.png", dpi=150)
cn.write_results(output, figures, vars(arguments), COMM_WORLD, separation={t: c[2] for t, c in courses.items()})
say(f"Figure (squares: t = 0, discs: t = T) and results.json: {output}/")
