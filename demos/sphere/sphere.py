r"""Digits on a globe: train one network on several icospheres at once, and run it on finer ones.

Pictures of digits lie on half a sphere. The network's operators are the identity, the three components of the
tangential gradient, and the Laplace-Beltrami operator; its state equation is reaction-diffusion. For each mini-batch
one of the levels is drawn (``--levels``, with shares in proportion to ``--shares``), and the same controls and the same
classifier then serve levels that they were not trained for (``--tested``).

Run it with ``python demos/sphere/sphere.py``, under MPI with ``mpiexec -n 2 python ...``; it takes the shipped sample,
or all of MNIST with ``--data folder``. The same operators on one level of 2,562 nodes have 99.23 % in print, with
61,658 parameters: Jiang, Huang, Kashinath, Prabhat, Marcus and Niessner, "Spherical CNNs on unstructured grids",
ICLR 2019. Two rules put a picture on the globe: ``--rule published`` takes its square to 1.5 times the radius in the
tangent plane, as seen from the antipode, with its corners beyond the half-sphere's rim; with ``--rule plain`` the
corners lie on the rim.

``--held-out n`` leaves n training images out and says how the network does on them: what settings are chosen by.
"""

import time

from ctrlnet.report import Column, CommandLine, Run, at_least_one, not_negative, plot_globes, positive

line = CommandLine(
    __doc__, "results/sphere", data=None, features=10, layers=6, time=4.0, diffusion=1.0, rate=0.01, batch=128,
    train=None, test=None)
line.add("levels", [2, 3, 4], "refinements of the icosahedron that are trained on", check=at_least_one)
line.add("shares", [0.25, 0.45, 0.3], "of the mini-batches that each of them gets", check=positive)
line.add("tested", [2, 3, 4, 5, 6], "levels that are tested on", check=at_least_one)
line.add("rule", "published", "how a picture is put on the globe", choices=["published", "plain"])
line.add("epochs", 30, "passes over the sample", check=at_least_one)
line.add("shift", 1, "pixels by which training images are shifted at most", check=not_negative)
line.add("held_out", 0, "training images that are left out, to choose settings by", check=not_negative)
line.add("seeds", [0])
arguments = line.parse()
line.one_each("shares", arguments.shares, arguments.levels)
if max(arguments.levels + arguments.tested) > 7:
    line.refuse("--levels and --tested end at 7, which has 163,842 nodes.")

import numpy as np
from globe import Globe, gathered

import ctrlnet as cn
from ctrlnet.fields import AugmentedSample, Shift, digit_samples
from ctrlnet.objective import Prediction
from ctrlnet.optimise import Adam, FirstOrder, JointFunctional, Limits
from ctrlnet.optimise.first_order import warm_cosine_rate
from ctrlnet.storage import write_states

run = Run(arguments)
whole, test = digit_samples(arguments.data, arguments.train, arguments.test, np.random.default_rng(0))
if arguments.held_out >= len(whole):
    line.refuse(f"--held-out leaves nothing to train on: there are {len(whole)} training images.")
order = np.random.default_rng(1).permutation(len(whole))
held_out, train = (whole.chosen(np.sort(part)) for part in np.split(order, [arguments.held_out]))
globe = Globe(arguments, max(arguments.levels + arguments.tested))
run.figures["parameters"] = globe.parameters


def trained(seed):
    """Return the problem and its controls after the training, and the seconds that it took."""
    rng, began = np.random.default_rng(seed), time.perf_counter()
    shifted = AugmentedSample(train, [Shift(arguments.shift)], rng)
    problem = globe.problem(shifted, arguments.levels, arguments.shares, rng)
    few = train.drawn(min(512, len(train)), np.random.default_rng(seed))
    start = problem.controls(np.random.default_rng(seed), scale=0.1)
    with run.progress(f"seed {seed}", arguments.epochs) as bar:
        solver = FirstOrder(
            JointFunctional(problem, start), rng, Adam(second=0.99), rate=arguments.rate, schedule=warm_cosine_rate,
            batch=min(arguments.batch, len(train)), limits=Limits(iterations=arguments.epochs),
            coordinates=problem.coordinates(weights_matrix=globe.weights_matrix), callback=bar,
            recorded=globe.mean(few, arguments.levels, arguments.shares), checkpoint=run.checkpoint(f"seed {seed}"))
        found = solver.solve()
    run.trained(solver.history)
    run.file(f"seed{seed}.h5", cn.save, problem, found, solver.history)
    return problem, found, time.perf_counter() - began


def accuracy(sample, level, problem, m):
    """Return the per cent of a sample that are classified rightly on a level; nothing of no sample."""
    return 100 * globe.average(sample, level).accuracy(*problem.point(m)) if len(sample) else None


run.say(f"{len(train)} training, {len(held_out)} held-out and {len(test)} test images, {globe.parameters} parameters, "
        f"{arguments.layers} layers, {run.ranks} rank(s)")
outcomes, example = [], None
table = run.table(
    Column("seed", 6), Column("nodes", 8), Column("trained on", 11), Column("held out %", 11, ".2f"),
    Column("test %", 8, ".2f"), Column("seconds", 8, ".0f"))
for number, seed in enumerate(arguments.seeds):
    problem, m, seconds = trained(seed)
    example = example or (problem, m)
    if number == 0:
        table.head()
    outcome = {"seconds": seconds}
    for level in arguments.tested:
        nodes = globe.space(level).dim()
        found = [accuracy(sample, level, problem, m) for sample in (held_out, test)]
        outcome |= {f"held_out_{nodes}": found[0], f"test_{nodes}": found[1]}
        table.row([str(seed), str(nodes), "yes" if level in arguments.levels else "no", *found, seconds])
    outcomes.append(outcome)

run.figures |= {name: float(np.mean([o[name] for o in outcomes])) for name in outcomes[0]
                if outcomes[0][name] is not None}
if len(outcomes) > 1:
    table = run.table(Column("nodes", 8), Column("mean of test %", 15, ".2f"), Column("spread", 8, ".2f"))
    table.head(f"Over {len(outcomes)} seeds, {run.figures['seconds']:.0f} s of training each")
    for level in arguments.tested:
        nodes = globe.space(level).dim()
        values = [o[f"test_{nodes}"] for o in outcomes]
        table.row([str(nodes), float(np.mean(values)), float(np.std(values))])

# The first test image on the globe, and what the network makes of it.
problem, m = example
finest = max(arguments.levels)
states = Prediction(
    globe.readout(finest), problem.point(m), problem.average.loss, True, projection=globe.pictures(finest)
).trajectory(test.inputs)
shown = [states[k] for k in sorted({0, len(states) // 2, len(states) - 1})]
places, fields = gathered(globe.space(finest), {
    f"Y{c}, t = {state.time:.1f}": Y for state in shown for c, Y in enumerate(state.features[:4])})
run.file("states.pvd", write_states, states)
run.figure("globe.png", plot_globes, places, fields, columns=min(4, arguments.features))
run.say("")
run.finish(seeds=outcomes)
