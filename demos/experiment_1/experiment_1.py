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

import time

from ctrlnet.report import Column, CommandLine, Run, at_least_one, confusion, plot_confusion, plot_images

line = CommandLine(
    __doc__, "results/experiment_1", data=None, features=8, layers=6, time=4.0, diffusion=1.0, readout=7, rate=0.01,
    batch=128, train=None, test=None)
line.add("operators", "stencil", "of the network for all meshes: the 3x3 stencil basis, or 1, d/dx, d/dy, Laplacian",
         choices=["stencil", "low"])
line.add("single_operators", "low", "of those for one mesh", choices=["stencil", "low"])
line.add("blur", 0.6, "share of one mesh's mini-batches whose images have the resolution of a coarser one")
line.add("epochs", 30, "passes over the sample of the network for all meshes", check=at_least_one)
line.add("single_epochs", None, "passes of the networks for one mesh (default: a sixth; more make them worse on other "
         "meshes)", kind=int)
line.add("retrain_epochs", 1)
line.add("shift", 1, "pixels by which training images are shifted at most")
line.add("networks", ["multilevel", "train28", "train14"], choices=["multilevel", "train28", "train14"])
line.add("seeds", [0])
arguments = line.parse()
if not 0 <= arguments.blur < 1:
    line.refuse(f"--blur is a share from 0 to below 1, received {arguments.blur}.")

import numpy as np
from family import MESHES, Family, pixels

import ctrlnet as cn
from ctrlnet.fields import SIDE, AugmentedSample, Shift, digit_samples
from ctrlnet.optimise import Adam, FirstOrder, JointFunctional, Limits, update_classifier
from ctrlnet.optimise.first_order import warm_cosine_rate
from ctrlnet.transfer import carry

# The mesh and the resolution that mini-batches are drawn for, with their shares: fine meshes cost, coarse ones are
# hardest to learn.
VIEWS = {
    "multilevel": {(56, 56): 0.08, (28, 28): 0.35, (14, 14): 0.25, (7, 7): 0.32},
    "train28": {(28, 28): 1 - arguments.blur, (28, 14): arguments.blur / 2, (28, 7): arguments.blur / 2},
    "train14": {(14, 14): 1 - arguments.blur / 2, (14, 7): arguments.blur / 2},
}
OWN = {"train28": 28, "train14": 14}

run = Run(arguments)
train, test = digit_samples(arguments.data, arguments.train, arguments.test, np.random.default_rng(0))

bases = {name: arguments.operators if name == "multilevel" else arguments.single_operators for name in VIEWS}
families = {basis: Family(basis, arguments) for basis in sorted(set(bases.values()))}
run.figures["parameters"] = max(family.parameters for family in families.values())


def train_network(family, title, views, start, seed, epochs, rate):
    """Train all controls by Adam, a view drawn for each mini-batch; return the controls, history and work."""
    rng, work = np.random.default_rng(seed), cn.Work()
    shifted = AugmentedSample(train, [Shift(arguments.shift)], rng)
    problem = cn.TrainingProblem(
        family.readout, shifted, control_size=1e-6, weights_gradient=1e-4, weights_size=1e-5, work=work)
    problem = problem.with_average(family.average_of_views(shifted, views, work, rng))
    few = train.drawn(min(512, len(train)), np.random.default_rng(seed))
    # A unit of W changes a score by about as much as a unit of s does.
    size = (SIDE / arguments.readout) ** 2 / 5.0
    with run.progress(title, epochs, width=24) as bar:
        solver = FirstOrder(
            JointFunctional(problem, start), rng, Adam(second=0.99), rate=rate, schedule=warm_cosine_rate,
            batch=min(arguments.batch, len(train)), limits=Limits(iterations=epochs),
            coordinates=problem.coordinates(weights_matrix=size**2 * np.eye(family.readout.space.dim())), callback=bar,
            recorded=family.average_of_views(few, views, work), checkpoint=run.checkpoint(title))
        found = solver.solve()
    run.trained(solver.history)
    return found, solver.history, work


def predicted(average, found):
    """Return the classes that a network gives the images of an average."""
    return average.scores(average.network.layers(found), *average.readout.arrays(found)).argmax(axis=0)


def best_classifier(readout, average, found):
    """Return a network with its classifier solved for anew on the images of an average."""
    problem = cn.TrainingProblem(readout, average.sample, control_size=0.0, weights_gradient=1e-2, weights_size=1e-3)
    return update_classifier(problem.with_average(average), found)[0]


def linear_reference(mesh, seed):
    """Return the predictions of a classifier of the image itself, without layers, trained on a mesh."""
    some = train.drawn(min(20_000, len(train)), np.random.default_rng(seed))
    readout, start = families[bases["train28"]].without_layers(mesh)
    on_some, on_test = (cn.SampleAverage(readout, sample, projection=pixels(mesh)) for sample in (some, test))
    return predicted(on_test, best_classifier(readout, on_some, start))


def elsewhere(network, found, seed):
    """Return, for each way to another mesh, the function that maps the mesh to the predictions there."""
    family, own = families[bases[network]], OWN[network]

    def carried(mesh):
        return carry(family.networks[own], found, family.networks[mesh].space)[1]

    def on_galerkin_kernels(mesh):
        return predicted(family.average(test, mesh), found.replace(s=family.galerkin(own, mesh)(found.s)))

    def with_classifier(mesh):
        some = train.drawn(min(10_000, len(train)), np.random.default_rng(seed))
        best = best_classifier(family.readouts[mesh], family.average(some, mesh), carried(mesh))
        return predicted(family.average(test, mesh), best)

    def retrained(mesh):
        again, _, _ = train_network(family, f"seed {seed}: {network} at {mesh}", {(mesh, mesh): 1.0}, carried(mesh),
                                    seed, arguments.retrain_epochs, 0.3 * arguments.rate)
        return predicted(family.average(test, mesh), again)

    return {"galerkin": on_galerkin_kernels, "interpolated": lambda mesh: predicted(
        family.average(test, own, seen=mesh), found), "W_updated": with_classifier, "retrained": retrained}


def outcome(seed):
    """Run everything for one seed: (network, method) -> {mesh: predictions}, and what each training took."""
    classes, course = {("linear", "rediscretised"): {n: linear_reference(n, seed) for n in MESHES}}, {}
    for network in arguments.networks:
        family = families[bases[network]]
        start = family.controls.random(np.random.default_rng(seed), scale=0.1).extended(family.readout.zero())
        epochs = arguments.epochs if network == "multilevel" else (
            arguments.single_epochs or max(1, arguments.epochs // 6))
        began = time.perf_counter()
        found, history, work = train_network(
            family, f"seed {seed}: {network}", VIEWS[network], start, seed, epochs, arguments.rate)
        course[network] = dict(
            seconds=time.perf_counter() - began, loss=history.last.loss,
            work=work.units(len(train), family.operators.nodes, arguments.layers))
        run.file(f"{network}_seed{seed}.h5", cn.save, family.problem(train), found, history)
        ways = {"rediscretised": lambda mesh, on=family, m=found: predicted(on.average(test, mesh), m)}
        ways |= elsewhere(network, found, seed) if network in OWN else {}
        for method, way in ways.items():
            meshes = [n for n in MESHES if method == "rediscretised" or n != OWN[network]]
            classes[network, method] = {n: way(n) for n in meshes}
            table.row([network, method, *(accuracy(classes[network, method], n) for n in MESHES)])
    return classes, course


def accuracy(classes, mesh):
    return 100 * float((classes[mesh] == test.labels).mean()) if mesh in classes else ""


run.say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
        f"{run.figures['parameters']} parameters, {run.ranks} rank(s)")
table = run.table(Column("trained", 12), Column("kernels", 14), *(Column(f"{n}x{n} %", 14, ".2f") for n in MESHES))
table.head()
outcomes = [outcome(seed) for seed in arguments.seeds]

# The table over seeds.
if len(outcomes) > 1:
    run.say(f"\nMean and standard deviation over {len(outcomes)} seeds")
table = run.table(Column("trained", 12), Column("kernels", 14), *(
    Column(f"{n}x{n} %", 14, ".2f", f"accuracy_{{}}_test{n}_{{}}", f"spread_{{}}_test{n}_{{}}") for n in MESHES))
for way, classes in outcomes[0][0].items():
    values = {n: [accuracy(o[0][way], n) for o in outcomes] for n in classes}
    cells = [(float(np.mean(values[n])), float(np.std(values[n]))) if n in classes else "" for n in MESHES]
    table.row([*way, *cells], key=way, printed=len(outcomes) > 1 or way[0] == "linear")
run.figures |= {f"{what}_{network}": float(np.mean([o[1][network][what] for o in outcomes]))
                for network in arguments.networks for what in ("seconds", "work", "loss")}

classes = outcomes[0][0]
matrices = {f"{network} at {n}x{n}, {method}": confusion(test.labels, classes[network, method][n], 10)
            for network in arguments.networks if network in OWN for n in MESHES if n != OWN[network]
            for method in (m for owner, m in classes if owner == network)}
guesses = classes[arguments.networks[-1], "rediscretised"][7]
if matrices:
    run.figure("confusion.png", plot_confusion, matrices, columns=5)
shown = np.concatenate([np.flatnonzero(guesses == test.labels)[:20], np.flatnonzero(guesses != test.labels)[:20]])
run.figure("digits.png", plot_images, test.averaged(4).images[shown], guesses[shown], test.labels[shown])
run.say("")
run.finish(seeds=[
    {" ".join(way): {n: accuracy(c, n) for n in c} for way, c in o[0].items()} | o[1] for o in outcomes])
