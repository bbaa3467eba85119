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

import time

from ctrlnet.report import Column, CommandLine, Panel, Run, at_least_one, one_of, plot_fields, plot_panels

TRAINED = 28
line = CommandLine(__doc__, "results/resolution", features=4, layers=4, time=2.0, diffusion=0.45, train=4000, test=256,
                   seed=0)
line.add("cells", [14, 28, 56, 112, 224],
         "along each side, in increasing order, 7 times powers of 2; 28 is where it is trained",
         check=one_of(*(7 * 2**k for k in range(1, 8))))
line.add("implicit", "implicit-midpoint", choices=["backward-euler", "implicit-midpoint"])
line.add("iterations", 8, "quasi-Newton iterations on the whole sample, after some on drawn ones")
line.add("classifier", 2000, "images the classifier of each scheme is solved on", check=at_least_one)
line.add("control_size", 3e-2, "weight of |s|^2 in the objective")
arguments = line.parse()
if sorted(set(arguments.cells)) != arguments.cells or TRAINED not in arguments.cells:
    line.refuse(f"--cells must increase and contain {TRAINED}, received {arguments.cells}.")

import numpy as np
from firedrake import Function, FunctionSpace, MeshHierarchy, prolong

import ctrlnet as cn
from ctrlnet.fields import SIDE, as_picture, averaged_pixels, digit_samples, digit_space, transferred_pixels
from ctrlnet.optimise import update_classifier

run = Run(arguments)
train, test = digit_samples(None, arguments.train, arguments.test, np.random.default_rng(arguments.seed))

# All meshes are those of one hierarchy, 7x7 cells the coarsest: multigrid works on it, the classifier lives on it.
coarsest, finest = arguments.cells[0], arguments.cells[-1]
hierarchy = MeshHierarchy(digit_space(7).mesh(), int(np.log2(finest // 7)))
spaces = {7 * 2**k: FunctionSpace(mesh, "CG", 1) for k, mesh in enumerate(hierarchy)}
# 14x14 cells see averages of 2x2 pixels, finer meshes the finite-element function that 28x28 cells see.
pixels = {n: averaged_pixels(spaces[n], (28, 28), 28 // n) for n in spaces if n <= 28}
pixels |= {n: transferred_pixels(pixels[28], spaces[n]) for n in spaces if n > 28}

operators = {n: cn.Operators(spaces[n], cn.low_order_operators(spaces[n]).operators[:3]) for n in arguments.cells}
controls = cn.ControlSpace(arguments.time, arguments.layers, operators[TRAINED], arguments.features)
implicit = cn.BackwardEuler() if arguments.implicit == "backward-euler" else cn.ImplicitMidpoint()
SCHEMES = {"explicit": cn.ForwardEuler(), "implicit": implicit, "imex": cn.IMEX()}
dynamics, opening = cn.ReactionDiffusion(arguments.diffusion), cn.FixedOpening(np.ones(arguments.features))
step = arguments.time / arguments.layers


def readout_on(n, scheme, layers=arguments.layers):
    network = cn.Network(operators[n], controls, layers, dynamics, SCHEMES[scheme], opening)
    return cn.Readout(network, 10, spaces[7])


# Derivatives may be large, growth may not: an implicit step has a solution while h times the growth is below 1.
regularisation = dict(control_size=arguments.control_size, control_scales=[1.0, 0.3, 0.3], weights_gradient=1e-2,
                      weights_size=1e-3)
problem = cn.TrainingProblem(readout_on(TRAINED, "imex"), train, **regularisation)
began = time.perf_counter()
with run.progress("training", shown="objective") as bar:
    trained = cn.train_level(
        problem, problem.controls(np.random.default_rng(arguments.seed), 0.3), iterations=arguments.iterations,
        rng=np.random.default_rng(arguments.seed), callback=bar, checkpoint=run.checkpoint("training"))
run.trained(trained.history)
run.figures |= {"seconds_training": time.perf_counter() - began, "objective": trained.history.last.objective,
                "train_accuracy": 100 * problem.accuracy(train, trained.controls)}


def classified_by(scheme):
    """Return the trained controls with the classifier solved for with a scheme's own final states."""
    if scheme == "imex":
        return trained.controls
    some = train.drawn(min(arguments.classifier, len(train)), np.random.default_rng(arguments.seed))
    own = cn.TrainingProblem(readout_on(TRAINED, scheme), some, **regularisation)
    return update_classifier(own, trained.controls)[0]


def final_states(network, n):
    """Return Y(T) of the first test images."""
    images = min(len(test), network.sweep.image_block)
    Y0 = Function(network.state_space(images))
    nodal, opened = pixels[n](test.values(0, images)), Y0.dat.data.reshape(-1, arguments.features, images)
    network.opening.open(network.layers(trained.controls), nodal[:, None], opened)
    return cn.propagate(network, trained.controls, Y0)


def measure(scheme, n, m, layers=arguments.layers):
    """Return what a scheme does on a mesh: measurements, the states of the first images (None if it fails)."""
    readout = readout_on(n, scheme, layers)
    network = readout.network
    try:
        with np.errstate(all="ignore"):
            Y = final_states(network, n)
            began, processor = time.perf_counter(), time.process_time()
            average = cn.SampleAverage(readout, test, projection=pixels[n])
            scores = average.scores(network.layers(m), *readout.arrays(m))
            seconds = time.perf_counter() - began
            processor = run.comm.allreduce(time.process_time() - processor)
            if not np.isfinite(scores).all():
                raise cn.PropagationError("the scores are not finite")
    except cn.PropagationError as error:
        run.say(f"{scheme} steps on {n}x{n} cells failed: {error}")
        return {"accuracy": 100 * float((test.labels == 0).mean()), "failed": 1.0}, None
    found = {
        "seconds": seconds, "accuracy": 100 * float((scores.argmax(axis=0) == test.labels).mean()),
        "nanoseconds": 1e9 * processor / (len(test) * network.operators.nodes * network.steps),
        "largest": float(run.comm.allreduce(np.abs(Y.dat.data_ro).max(initial=0.0), op=max)),
    }
    if scheme == "implicit":
        newton, krylov = network.sweep.solver_iterations()
        found |= {"newton": max(newton), "krylov": max(krylov), "krylov_a_step": sum(krylov) / len(newton)}
    return found, Y


def difference(Y, n, reference, m):
    """Return the distance of states on n cells to those on m, relative, in the lumped L2 norm."""
    for finer in (k for k in spaces if n < k <= m):
        coarse, Y = Y, Function(reference.function_space().reconstruct(mesh=spaces[finer].mesh()))
        prolong(coarse, Y)
    mass = operators[m].mass[:, None]
    parts = [(mass * f**2).sum() for f in (Y.dat.data_ro - reference.dat.data_ro, reference.dat.data_ro)]
    change, size = run.comm.allreduce(np.array(parts))
    return float(np.sqrt(change / size))


run.say(f"\n{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} "
        f"layers of h = {step:g}, {run.ranks} rank(s)")
table = run.table(
    Column("scheme", 9), Column("cells", 8), Column("h nu/dx^2", 9, ".3g"),
    Column("test %", 7, ".2f", "accuracy_{}_{}"), Column("|Y - Y_finest|", 14, ".4g", "difference_{}_{}"),
    Column("max |Y|", 9, ".4g", "largest_{}_{}"), Column("Newton", 6, ".4g", "newton_{}_{}"),
    Column("Krylov", 6, ".4g", "krylov_{}_{}"), Column("seconds", 8, ".4g", "seconds_{}_{}"),
    Column("ns a node", 9, ".4g", "nanoseconds_{}_{}"))
MEASURED = ("accuracy", "difference", "largest", "newton", "krylov", "seconds", "nanoseconds")
table.head()
results, pictures, controls_of = {}, {}, {}
for scheme in SCHEMES:
    controls_of[scheme], reference = classified_by(scheme), None
    for n in reversed(arguments.cells):  # the finest first: the others are compared with it
        found, Y = measure(scheme, n, controls_of[scheme])
        reference = Y if n == finest else reference
        found |= {} if Y is None or reference is None else {"difference": difference(Y, n, reference, finest)}
        if Y is not None and scheme != "imex" and n in (coarsest, TRAINED, finest):
            one = Y.dat.data_ro.reshape(spaces[n].node_set.size, -1)[:, 0]  # a feature of an image
            pictures[f"{scheme}, {n}x{n}"] = as_picture(spaces[n], one)
        results[scheme, n] = found
        table.row([scheme, f"{n}x{n}", step * arguments.diffusion * (n / SIDE) ** 2, *map(found.get, MEASURED)],
                  key=[scheme, n])
        run.figures |= {f"{name}_{scheme}_{n}": value for name, value in found.items() if name not in MEASURED}

# Depth is a mesh of time: the same controls with more layers.
depths = [arguments.layers * factor for factor in (1, 2, 4)]
table = run.table(
    Column("scheme", 9), Column("layers", 7, "d"), Column("test %", 7, ".2f", "accuracy_{}_{}_layers"),
    Column("|Y - Y_deepest|", 15, ".4g", "difference_{}_{}_layers"))
table.head(f"\nThe same controls on {TRAINED}x{TRAINED} cells with more layers")
for scheme in SCHEMES:
    deepest = None
    for layers in reversed(depths):
        found, Y = measure(scheme, TRAINED, controls_of[scheme], layers)
        deepest = Y if layers == depths[-1] else deepest
        change = np.nan if None in (Y, deepest) else difference(Y, TRAINED, deepest, TRAINED)
        table.row([scheme, layers, found["accuracy"], change], key=[scheme, layers])

figures = run.figures
figures |= {f"{k}_max": max(figures[f"{k}_implicit_{n}"] for n in arguments.cells) for k in ("newton", "krylov")}
cost, krylov = (figures[f"{name}_implicit_{finest}"] / figures[f"{name}_implicit_{TRAINED}"]
                for name in ("nanoseconds", "krylov_a_step"))
figures |= {f"cost_per_node_{finest}_over_{TRAINED}": cost,
            f"cost_per_node_and_iteration_{finest}_over_{TRAINED}": cost / krylov}
run.say(f"\nAt most {figures['newton_max']:.0f} Newton iterations a step and {figures['krylov_max']:.0f} Krylov "
        f"iterations each. An implicit step costs {cost:.2f} times as much a node on {finest}x{finest} cells as on "
        f"{TRAINED}x{TRAINED};\nit takes {krylov:.2f} times the Krylov iterations, each of which costs "
        f"{cost / krylov:.2f} times as much a node.")


def curves(name):
    places = {s: [n for n in arguments.cells if results[s, n].get(name, 0.0) > 0.0] for s in SCHEMES}
    return {s: (p, [results[s, n][name] for n in p]) for s, p in places.items() if p}


run.figure("resolution.png", plot_panels, [
    Panel("accuracy on test images", "cells along a side", "%", curves("accuracy")),
    Panel("distance of Y(T) to the finest mesh", "cells along a side", "relative, L2", curves("difference"), True),
    Panel("cost of a step", "cells along a side", "ns for a node of an image", curves("nanoseconds"), True),
    Panel(f"the same controls, {TRAINED}x{TRAINED} cells", "layers", "%", {
        s: (depths, [figures[f"accuracy_{s}_{layers}_layers"] for layers in depths]) for s in SCHEMES}),
])
run.figure("states.png", plot_fields, pictures, columns=max(1, len(pictures) // 2))
run.finish("\nFigures and results.json")
