r"""One network on meshes of 14x14 to 224x224 cells, with explicit and with implicit time steps of the same size.

A reaction-diffusion network :math:`\dot Y = \sigma(\sum_j s_j(t) D_j Y + b(t)) + \nu\Delta Y`, whose operators are 1,
d/dx and d/dy, learns digits on 28x28 cells. Then it runs on coarser and finer meshes with the controls it has and the
time step it has. An explicit step is stable while :math:`h\nu` stays below a quarter of the squared mesh width: it
fails on a mesh twice or four times as fine. An implicit step, solved by Newton's method with multigrid, is not bound by
the mesh: its Newton and Krylov iterations stay few, one Krylov iteration costs about as much a node on 224x224 cells as
on 28x28, and its state converges.

The training takes IMEX steps, the cheapest. The classifier is then solved for once for each scheme, on 28x28 cells.
Accuracies are those of test images; the difference of states is that of Y(T) to the finest mesh, in the mean square
over some images, relative. A second table keeps the mesh and refines time: the same controls with 2 and 4 times the
layers. Run it with ``python demos/resolution/resolution.py``, under MPI with ``mpiexec -n 2 ...``.
"""

import argparse
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--cells", type=int, nargs="+", default=[14, 28, 56, 112, 224],
                    help="cells along each side, in increasing order, 7 times powers of 2; 28 is where it is trained")
parser.add_argument("--features", type=int, default=4)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--time", type=float, default=2.0, help="final time T")
parser.add_argument("--diffusion", type=float, default=0.45, help="nu, in squared pixels per unit of time")
parser.add_argument("--implicit", choices=["backward-euler", "implicit-midpoint"], default="implicit-midpoint")
parser.add_argument("--iterations", type=int, default=8,
                    help="quasi-Newton iterations on the whole sample, after some on drawn ones")
parser.add_argument("--classifier", type=int, default=2000, help="images the classifier of each scheme is solved on")
parser.add_argument("--control-size", type=float, default=3e-2,
                    help="weight of |s|^2 in the objective")
parser.add_argument("--train", type=int, help="training images (default: all of the shipped sample)")
parser.add_argument("--test", type=int, default=256, help="test images; the finest mesh takes most of the time")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="results/resolution")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported
TRAINED = 28
for cells in arguments.cells:
    if cells not in [7 * 2**k for k in range(1, 8)]:
        parser.error(f"--cells takes 14, 28, 56, 112, 224, received {cells}.")
if sorted(set(arguments.cells)) != arguments.cells or TRAINED not in arguments.cells:
    parser.error(f"--cells must increase and contain {TRAINED}, received {arguments.cells}.")
for name in ("features", "layers", "classifier", "test"):
    if getattr(arguments, name) < 1:
        parser.error(f"--{name} must be at least 1, received {getattr(arguments, name)}.")

import numpy as np
from firedrake import COMM_WORLD, Function, FunctionSpace, MeshHierarchy, RectangleMesh, prolong
from tqdm import tqdm

import ctrlnet as cn
from ctrlnet.data import mnist_sample
from ctrlnet.optimise import update_classifier
from ctrlnet.plotting import Panel, plot_fields, plot_panels
from ctrlnet.transfer import averaged_pixels, transferred_pixels

SIDE = 28.0  # of the domain, in pixels
root = COMM_WORLD.rank == 0


def say(*text):
    if root:
        print(*text, flush=True)


data = mnist_sample()
data = data.subset(arguments.train or len(data.train_labels), arguments.test, np.random.default_rng(arguments.seed))
train, test = cn.Sample(data.train_images, data.train_labels), cn.Sample(data.test_images, data.test_labels)

# All meshes are those of one hierarchy, 7x7 cells the coarsest: multigrid works on it, the classifier lives on it.
hierarchy = MeshHierarchy(RectangleMesh(7, 7, SIDE, SIDE, quadrilateral=True), int(np.log2(arguments.cells[-1] // 7)))
spaces = {7 * 2**k: FunctionSpace(mesh, "CG", 1) for k, mesh in enumerate(hierarchy)}
# 14x14 cells see averages of 2x2 pixels, finer meshes the finite-element function that 28x28 cells see.
pixels = {n: averaged_pixels(spaces[n], (28, 28), 28 // n) for n in spaces if n <= 28}
pixels |= {n: transferred_pixels(pixels[28], spaces[n]) for n in spaces if n > 28}

operators = {n: cn.Operators(spaces[n], cn.low_order_operators(spaces[n]).operators[:3]) for n in arguments.cells}
controls = cn.ControlSpace(arguments.time, arguments.layers, operators[TRAINED], arguments.features)
implicit = cn.BackwardEuler() if arguments.implicit == "backward-euler" else cn.ImplicitMidpoint()
SCHEMES = {"explicit": cn.ForwardEuler(), "implicit": implicit, "imex": cn.IMEX()}
dynamics = cn.ReactionDiffusion(arguments.diffusion)
step = arguments.time / arguments.layers


def network_on(n, scheme, layers=arguments.layers):
    return cn.Network(operators[n], controls, layers, dynamics, SCHEMES[scheme], lift=np.ones(arguments.features))


def readout_on(n, scheme, layers=arguments.layers):
    return cn.Readout(network_on(n, scheme, layers), 10, spaces[7])


# Training, on 28x28 cells.
# Derivatives are free to be large, growth is not: an implicit step has a solution while h times the growth is below 1.
regularisation = dict(control_size=arguments.control_size, control_scales=[1.0, 0.3, 0.3], weights_gradient=1e-2,
                      weights_size=1e-3)
problem = cn.TrainingProblem(readout_on(TRAINED, "imex"), train, **regularisation)
bar = tqdm(desc="training", disable=not root, file=sys.stdout, mininterval=1.0,
           bar_format="{desc}: {n_fmt} iterations [{elapsed}{postfix}]")


def report(iteration):
    bar.update(iteration.number - bar.n)
    bar.set_postfix_str(f"objective {iteration.objective:.4f}", refresh=False)


began = time.perf_counter()
trained = cn.train_level(
    problem, *problem.controls(np.random.default_rng(arguments.seed), 0.3)[:2], iterations=arguments.iterations,
    rng=np.random.default_rng(arguments.seed), callback=report)
bar.close()
figures = {"seconds_training": time.perf_counter() - began, "objective": trained.history.last.objective,
           "train_accuracy": 100 * problem.accuracy(train, *trained.controls)}


def classifier_of(scheme):
    """Return the classifier solved for at the trained controls with a scheme's own final states."""
    if scheme == "imex":
        return trained.W, trained.beta
    some = train.drawn(min(arguments.classifier, len(train)), np.random.default_rng(arguments.seed))
    own = cn.TrainingProblem(readout_on(TRAINED, scheme), some, **regularisation)
    return update_classifier(own, *trained.controls)[:2]


def final_states(network, n):
    """Return Y(T) of the first test images."""
    images = min(len(test), network.sweep.image_block)
    Y0 = Function(network.state_space(images))
    nodal = pixels[n](test.values(0, images))
    network.lift_images(nodal, Y0.dat.data.reshape(-1, arguments.features, images))
    return cn.propagate(network, trained.s, trained.b, Y0)


def grid(Y, n):
    """Return the first feature of the first image on the nodes of a mesh, for a picture; on rank 0."""
    x = spaces[n].mesh().coordinates.dat.data_ro
    values = Y.dat.data_ro.reshape(len(x), -1)[:, 0]
    parts = COMM_WORLD.gather((x, values))
    if not root:
        return None
    x, values = (np.concatenate(p) for p in zip(*parts, strict=True))
    return values[np.lexsort((x[:, 0].round(6), -x[:, 1].round(6)))].reshape(n + 1, n + 1)


def run(scheme, n, W, beta, layers=arguments.layers):
    """Return what a scheme does on a mesh: measurements, and the states of the first images."""
    readout = readout_on(n, scheme, layers)
    network, measured = readout.network, {}
    try:
        with np.errstate(all="ignore"):
            Y = final_states(network, n)
            began, processor = time.perf_counter(), time.process_time()
            average = cn.SampleAverage(readout, test, projection=pixels[n])
            arrays = (*network.layers(trained.s, trained.b), readout.weights_array(W), beta.dat.data_ro.ravel())
            scores = average.scores(*arrays)
            measured["seconds"] = time.perf_counter() - began
            processor = COMM_WORLD.allreduce(time.process_time() - processor)
            average.check_finite(np.abs(scores).sum())
            measured["accuracy"] = 100 * (scores.argmax(axis=0) == test.labels).mean()
    except cn.PropagationError as error:
        say(f"{scheme} steps on {n}x{n} cells failed: {error}")
        return {"accuracy": 100 * float((test.labels == 0).mean()), "failed": 1.0}, None
    measured["nanoseconds"] = 1e9 * processor / (len(test) * network.operators.nodes * network.steps)
    measured["largest"] = float(COMM_WORLD.allreduce(np.abs(Y.dat.data_ro).max(initial=0.0), op=max))
    if scheme == "implicit":
        newton, krylov = network.sweep.solver_iterations()
        measured |= {"newton": max(newton), "krylov": max(krylov), "krylov_a_step": sum(krylov) / len(newton)}
    return measured, Y


def difference(Y, n, finest, network):
    """Return the distance of states to those on the finest mesh, relative, in the lumped L2 norm."""
    for m in (m for m in spaces if n < m <= arguments.cells[-1]):
        finer = Function(finest.function_space().reconstruct(mesh=spaces[m].mesh()))
        prolong(Y, finer)
        Y = finer
    mass = network.operators.mass[:, None]
    parts = [(mass * f**2).sum() for f in (Y.dat.data_ro - finest.dat.data_ro, finest.dat.data_ro)]
    change, size = COMM_WORLD.allreduce(np.array(parts))
    return float(np.sqrt(change / size))


say(f"\n{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers of "
    f"h = {step:g}, {COMM_WORLD.size} rank(s)")
say(f"\n{'scheme':>9} {'cells':>8} {'h nu/dx^2':>9} {'test %':>7} {'|Y - Y_finest|':>14} {'max |Y|':>9} "
    f"{'Newton':>6} {'Krylov':>6} {'seconds':>8} {'ns a node':>9}")
results, pictures, classifiers = {}, {}, {}
for scheme in SCHEMES:
    W, beta = classifiers[scheme] = classifier_of(scheme)
    finest = None
    for n in reversed(arguments.cells):  # the finest first: the others are compared with it
        found, Y = run(scheme, n, W, beta)
        if n == arguments.cells[-1]:
            finest = Y
        if Y is not None and finest is not None:
            found["difference"] = difference(Y, n, finest, network_on(arguments.cells[-1], scheme))
        if Y is not None and scheme != "imex" and n in (arguments.cells[0], TRAINED, arguments.cells[-1]):
            pictures[f"{scheme}, {n}x{n}"] = grid(Y, n)
        results[scheme, n] = found
        number = {k: f"{v:.4g}" for k, v in found.items()}
        say(f"{scheme:>9} {f'{n}x{n}':>8} {step * arguments.diffusion * (n / SIDE) ** 2:>9.3g} "
            f"{found['accuracy']:>7.2f} {number.get('difference', '-'):>14} {number.get('largest', '-'):>9} "
            f"{number.get('newton', '-'):>6} {number.get('krylov', '-'):>6} {number.get('seconds', '-'):>8} "
            f"{number.get('nanoseconds', '-'):>9}")

# Depth is a mesh of time: the same controls with more layers.
DEPTHS = [arguments.layers * factor for factor in (1, 2, 4)]
say(f"\nThe same controls on {TRAINED}x{TRAINED} cells with more layers\n{'scheme':>9} {'layers':>7} {'test %':>7} "
    f"{'|Y - Y_deepest|':>15}")
depths = {}
for scheme in SCHEMES:
    deepest = None
    for layers in reversed(DEPTHS):
        found, Y = run(scheme, TRAINED, *classifiers[scheme], layers)
        deepest = Y if layers == DEPTHS[-1] else deepest
        compared = None not in (Y, deepest)
        change = difference(Y, arguments.cells[-1], deepest, network_on(TRAINED, scheme)) if compared else np.nan
        depths[scheme, layers] = found["accuracy"], change
        say(f"{scheme:>9} {layers:>7} {found['accuracy']:>7.2f} {change:>15.4g}")

last = arguments.cells[-1]
for (scheme, n), found in results.items():
    for name, value in found.items():
        figures[f"{name}_{scheme}_{n}"] = float(value)
for (scheme, layers), (accuracy, change) in depths.items():
    figures |= {f"accuracy_{scheme}_{layers}_layers": accuracy, f"difference_{scheme}_{layers}_layers": change}
figures["newton_max"] = max(figures[f"newton_implicit_{n}"] for n in arguments.cells)
figures["krylov_max"] = max(figures[f"krylov_implicit_{n}"] for n in arguments.cells)
growth = {name: figures[f"{name}_implicit_{last}"] / figures[f"{name}_implicit_{TRAINED}"]
          for name in ("nanoseconds", "krylov_a_step")}
figures[f"cost_per_node_{last}_over_{TRAINED}"] = growth["nanoseconds"]
figures[f"cost_per_node_and_iteration_{last}_over_{TRAINED}"] = growth["nanoseconds"] / growth["krylov_a_step"]
say(f"\nAt most {figures['newton_max']:.0f} Newton iterations a step and {figures['krylov_max']:.0f} Krylov iterations "
    f"each. An implicit step costs {growth['nanoseconds']:.2f} times as much a node on {last}x{last} cells as on "
    f"{TRAINED}x{TRAINED};\nit takes {growth['krylov_a_step']:.2f} times the Krylov iterations, each of which costs "
    f"{growth['nanoseconds'] / growth['krylov_a_step']:.2f} times as much a node.")

output = Path(arguments.output)
if root:
    def curves(name):
        places = {s: [n for n in arguments.cells if results[s, n].get(name, 0.0) > 0.0] for s in SCHEMES}
        return {s: (p, [results[s, n][name] for n in p]) for s, p in places.items() if p}

    plot_panels(output / "resolution.png", [
        Panel("accuracy on test images", "cells along a side", "%", curves("accuracy")),
        Panel("distance of Y(T) to the finest mesh", "cells along a side", "relative, L2", curves("difference"), True),
        Panel("cost of a step", "cells along a side", "ns for a node of an image", curves("nanoseconds"), True),
        Panel(f"the same controls, {TRAINED}x{TRAINED} cells", "layers", "%", {
            s: (DEPTHS, [depths[s, layers][0] for layers in DEPTHS]) for s in SCHEMES}),
    ])
    plot_fields(output / "states.png", pictures, columns=max(1, len(pictures) // 2))
cn.write_results(output, figures, vars(arguments), COMM_WORLD)
say(f"\nFigures and results.json: {output}/")
