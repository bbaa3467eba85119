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

from ctrlnet.report import Column, CommandLine, Run, at_least_one

line = CommandLine(__doc__, "results/trajectories", cells=14, features=4, layers=16, time=4.0, readout=4, train=4000,
                   test=1000, seed=0)
line.add("iterations", 40, "quasi-Newton iterations", check=at_least_one)
line.add("classes", [3, 5, 8], "digits whose paths are drawn")
line.add("paths", 15, "images of each class whose paths are drawn", check=at_least_one)
arguments = line.parse()
classes = arguments.classes
if len(set(classes)) < max(3, len(classes)) or not set(classes) <= set(range(10)):
    line.refuse(f"--classes takes at least 3 different digits, which a plane separates; received {classes}.")

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import ctrlnet as cn
from ctrlnet.fields import PixelProjection, digit_samples, digit_space
from ctrlnet.optimise import update_classifier

run = Run(arguments)
train, test = (sample.averaged(28 // arguments.cells) for sample in digit_samples(
    None, arguments.train, arguments.test, np.random.default_rng(arguments.seed)))
for digit in classes:
    for title, sample in (("training", train), ("test", test)):
        if (sample.labels == digit).sum() < 2:
            line.refuse(f"There are fewer than 2 {title} images of the digit {digit}: take more.")

V = digit_space(arguments.cells)
operators = cn.stencil_operators(V)
controls = cn.ControlSpace(arguments.time, arguments.layers, operators, arguments.features)
network = cn.Network(operators, controls, opening=cn.FixedOpening(np.ones(arguments.features)))
readout = cn.Readout(network, 10, digit_space(arguments.readout))
problem = cn.TrainingProblem(readout, train, control_size=1e-4, control_scales=operators.norms, weights_gradient=1e-2,
                             weights_size=1e-3)
projection = PixelProjection(V, train.pixels)


def paths_of(sample, m):
    """Return the features of Y(t) at every step, (steps + 1, features, images), of the chosen classes; the labels."""
    chosen = np.flatnonzero(np.isin(sample.labels, classes))
    sweep, layers = network.sweep, network.layers(m)
    block, parts = sweep.image_block, []
    trajectory = sweep.trajectory(network.steps, block)
    for first in range(0, chosen.size, block):
        images = sample.chosen(chosen[first : first + block])
        network.opening.open(layers, projection(images.values(0, len(images)))[:, None], trajectory.initial)
        sweep.forward(layers, network.step_sizes, trajectory)
        states = (trajectory.states[k, : trajectory.owned] for k in range(network.steps + 1))
        parts.append(np.stack([readout.restrict(Y)[:, : len(images)] for Y in states]))
    return np.concatenate(parts, axis=2), sample.labels[chosen]


def plane_of(F, labels, m):
    """Return the two directions (features, 2), combinations of scores, in which the class means lie furthest apart."""
    weights = readout.arrays(m)[0][:, classes]
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


def course(m):
    """Return the test images' paths in their plane, their labels, and what is measured along them."""
    F, labels = paths_of(train, m)
    plane = plane_of(F[-1], labels, m)
    means = np.stack([(plane.T @ F[-1][:, labels == c]).mean(axis=1) for c in classes], axis=1)
    F, labels = paths_of(test, m)
    paths = np.einsum("fp,kfi->kpi", plane, F)
    return paths, labels, [separation(P, labels) for P in paths], accuracy(paths[-1], labels, means)


run.say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
        f"{run.ranks} rank(s)")
start = controls.random(np.random.default_rng(arguments.seed), 0.1)
with run.progress("training", shown="objective") as bar:
    result = cn.train_level(
        problem, start, iterations=arguments.iterations, callback=bar, checkpoint=run.checkpoint("training"))
run.trained(result.history)
courses = {"before training": course(update_classifier(problem, start)[0]),
           "after training": course(result.controls)}

table = run.table(
    Column("", 16), Column("separation at t = 0", 20, ".3f", "separation_start_{}"),
    Column("t = T/2", 9, ".3f", "separation_middle_{}"), Column("t = T", 9, ".3f", "separation_{}"),
    Column("in the plane, %", 16, ".2f", "plane_accuracy_{}"))
table.head()
for title, (_, _, values, share) in courses.items():
    table.row([title, values[0], values[arguments.layers // 2], values[-1], share], key=[title.split()[0]])
figures = run.figures
figures |= {"objective": result.history.last.objective, "test_accuracy": 100 * problem.accuracy(test, result.controls),
            "separation_gain": figures["separation_after"] / figures["separation_before"]}
run.say(f"\nTraining multiplies the separation of {', '.join(map(str, classes))} at T by "
        f"{figures['separation_gain']:.1f}; "
        f"{figures['test_accuracy']:.2f} % of all test images are classified rightly.")


def draw(axes, paths, labels):
    """Draw some paths of each class, and in bold that of its mean: a square at t = 0, a disc at t = T."""
    for number, digit in enumerate(classes):
        own, color = paths[:, :, labels == digit], f"C{number}"
        for k in range(min(arguments.paths, own.shape[2])):
            axes.plot(*own[:, :, k].T, color=color, linewidth=0.7, alpha=0.4)
            axes.plot(*own[-1, :, k], color=color, marker="o", markersize=3, alpha=0.6)
        mean = own.mean(axis=2)
        axes.plot(*mean.T, color=color, linewidth=3, label=f"{digit}")
        axes.plot(*mean[0], color=color, marker="s", markersize=8, markeredgecolor="black")
        axes.plot(*mean[-1], color=color, marker="o", markersize=10, markeredgecolor="black")
    axes.set_xlabel("first direction of scores")
    axes.set_ylabel("second direction of scores")
    axes.legend(title="mean of", fontsize=8)


def draw_all(path):
    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    *panels, last = figure.subplots(1, 3)
    for axes, (title, (paths, labels, values, share)) in zip(panels, courses.items(), strict=True):
        draw(axes, paths, labels)
        axes.set_title(f"{title}: {share:.1f} % told apart at T", fontsize=10)
        last.plot(np.linspace(0.0, arguments.time, arguments.layers + 1), values, marker=".", label=title)
    last.set_title("variance of the means over that within classes", fontsize=10)
    last.set_xlabel("t")
    last.set_yscale("log")
    last.grid(alpha=0.3)
    last.legend(fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


run.figure("trajectories.png", draw_all)
run.finish("Figure (squares: t = 0, discs: t = T) and results.json",
           separation={title: values for title, (_, _, values, _) in courses.items()})
