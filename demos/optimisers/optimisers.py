r"""Optimisers on one training problem: Newton-type methods beside first-order ones, by work and by seconds.

Residual network, classifier on a coarse mesh, cross-entropy, quadratic regularisation; every method starts from the
same controls. One unit of work is a forward propagation of the training sample; every sweep counts, of drawn samples
by their images. First-order methods are evaluated on the whole sample for the record alone, which does not count.

Run it with ``python demos/optimisers/optimisers.py``, under MPI with ``mpiexec -n 2 python ...``. Full MNIST, 2,000
images of it and 10,000 to test on: ``--data mnist --test 10000``. Options it does not know go to PETSc.
"""

from ctrlnet.report import Column, CommandLine, Run, at_least_one, plot_convergence, positive

line = CommandLine(__doc__, "results/optimisers", cells=28, features=4, layers=4, readout=4, data=None, train=2000,
                   test=1000, seed=0)
line.add("methods", None, "some of the methods, by the names in the table (default: all)", several=True)
line.add("work", 200.0, "work units of a method; first-order ones have twice", check=positive)
line.add("newton_work", 100.0, "work units of methods with variable projection", check=positive)
line.add("draw", 300, "images of the first drawn sample", check=at_least_one)
line.add("precision", "single", "of the states", choices=["double", "single"])
line.add("quick", False, "200 images, 14x14 cells, a tenth of the work")
arguments = line.parse()
if arguments.quick:
    arguments.cells, arguments.train, arguments.test, arguments.draw = 14, 200, 200, 50
    arguments.work, arguments.newton_work = 20.0, 20.0

import numpy as np

import ctrlnet as cn
from ctrlnet import optimise as opt
from ctrlnet.fields import digit_samples, digit_space

# The problem.
run = Run(arguments)
rng = np.random.default_rng(arguments.seed)
train, test = (sample.averaged(28 // arguments.cells) for sample in digit_samples(
    arguments.data, arguments.train, arguments.test, rng))
operators = cn.stencil_operators(digit_space(arguments.cells))
controls = cn.ControlSpace(float(arguments.layers), arguments.layers, operators, arguments.features)
network = cn.Network(operators, controls, precision=arguments.precision)
readout = cn.Readout(network, 10, digit_space(arguments.readout))
problem = cn.TrainingProblem(
    readout, train, control_size=3e-4, control_scales=operators.norms, weights_gradient=1e-2, weights_size=1e-3)
tested = problem.on_sample(test)
start = problem.controls(rng, 0.1)
unit = len(train) * operators.nodes * network.steps


# The methods. Each takes what all have in common: a callback and the measurement of accuracies. Rates and the
# coordinates of joint methods are those that served them best.
def joint(preset, euclidean=False):
    def make(**common):
        functional, limits = opt.JointFunctional(problem, start), opt.Limits(10**6, work=arguments.work * unit)
        coordinates = problem.coordinates(euclidean=euclidean)
        return opt.TaoOptimiser(functional, preset, limits, coordinates=coordinates, **common)

    return make, arguments.work


def metric(functional, schur):
    """Return the coordinates of a functional, and an initial Hessian if there are settings of one."""
    coordinates = functional.problem.coordinates(functional.names)
    return coordinates, None if schur is None else opt.SchurGaussNewton(functional, coordinates, draws(), **schur)


def projected(preset, schur=None, preconditioned=False, **settings):
    def make(**common):
        functional = opt.ProjectedFunctional(problem, start)
        coordinates, initial = metric(functional, schur)
        return opt.TaoOptimiser(
            functional, preset, opt.Limits(10**6, work=arguments.newton_work * unit), coordinates=coordinates,
            initial_hessian=initial, preconditioner=opt.KrylovPreconditioner() if preconditioned else None,
            **settings, **common)

    return make, arguments.newton_work


def drawn(schur=None):
    def solver(functional, limits, course):
        coordinates, initial = metric(functional, schur)
        return opt.TaoOptimiser(
            functional, limits=limits, course=course, coordinates=coordinates, initial_hessian=initial, refresh=10**6)

    def make(**common):
        return opt.StochasticOptimiser(
            opt.ProjectedFunctional(problem, start), draws(), opt.SampleSchedule(min(arguments.draw, len(train))),
            solver=solver, limits=opt.Limits(10**6, work=arguments.newton_work * unit), **common)

    return make, arguments.newton_work


def first_order(rule, rate):
    def make(**common):
        passes = max(1, round(2 * arguments.work / 3))
        return opt.FirstOrder(
            opt.JointFunctional(problem, start), draws(), rule, rate=rate, batch=min(64, len(train)),
            limits=opt.Limits(passes), evaluate_every=max(1, passes // 30), **common)

    return make, 2 * arguments.work


def draws():
    return np.random.default_rng(arguments.seed + 1)


# Each method with its budget of work units.
METHODS = {
    "sgd": first_order(opt.GradientDescent(), 1e-2),
    "nesterov": first_order(opt.Nesterov(), 1e-3),
    "adam": first_order(opt.Adam(), 1e-2),
    "joint_cg": joint(opt.presets.CONJUGATE_GRADIENT, euclidean=True),
    "joint_lbfgs": joint(opt.presets.QUASI_NEWTON, euclidean=True),
    "joint_gauss_newton": joint(opt.presets.TRUST_REGION),
    "vp_gauss_newton": projected(opt.presets.TRUST_REGION, preconditioned=True),
    "vp_newton": projected(opt.presets.TRUST_REGION, preconditioned=True, curvature="hessian"),
    "vp_lbfgs": projected(opt.presets.QUASI_NEWTON),
    "vp_lbfgs_schur": projected(
        opt.presets.QUASI_NEWTON, dict(images=max(20, len(train) // 10), directions=2, damping=10.0), refresh=10**6),
    "vp_growing": drawn(),
    "vp_growing_schur": drawn(dict(images=200, directions=2, damping=10.0)),
}
chosen = arguments.methods or list(METHODS)
if set(chosen) - set(METHODS):
    line.refuse(f"--methods takes {', '.join(METHODS)}; received {', '.join(sorted(set(chosen) - set(METHODS)))}.")


def accuracies(m):
    arrays = problem.point(m)
    return {"train": problem.average.accuracy(*arrays), "test": tested.accuracy(*arrays)}


histories, inner, final = {}, {}, {}
for name in chosen:
    problem.work.counts.update(dict.fromkeys(problem.work.counts, 0.0))
    make, budget = METHODS[name]
    with run.progress(name, round(budget), shown="objective", label="F", unit="WU", width=18,
                      position=lambda i: round(i.work / unit)) as bar:
        method = make(callback=bar, accuracies=accuracies, checkpoint=run.checkpoint(name))
        found = method.solve()
    run.trained(method.history)
    histories[name] = method.history
    inner[name] = getattr(method.functional, "inner_seconds", 0.0)
    final[name] = tested.accuracy(*problem.point(method.functional.all_controls(found)))


# The table. An objective counts where it is that of the whole sample.
def whole(history):
    return [i for i in history.iterations if i.images == len(train)]


def reached(history, target):
    return next(((i.work / unit, i.seconds) for i in whole(history) if i.objective <= target), (np.nan, np.nan))


def at(history, budget):
    return min((i.objective for i in whole(history) if i.work <= budget * unit), default=np.nan)


targets = {}  # name of a target -> (method, work units, its objective by then)
for target, name, budget in (("lbfgs200", "joint_lbfgs", arguments.work), ("adam400", "adam", 2 * arguments.work)):
    if name in histories:
        targets[target] = name, budget, at(histories[name], budget if name == "joint_lbfgs" else np.inf)
run.figures |= {f"objective_{target}": value for target, (_, _, value) in targets.items()}
table = run.table(
    Column("method", 18), Column("its", 5, ".0f", "{}_iterations"), Column("WU", 6, ".1f", "{}_work_units"),
    Column("seconds", 8, ".1f", "{}_seconds"), Column("inner %", 7, ".0f", "{}_inner_share"),
    Column("F", 7, ".4f", "{}_objective"), Column("loss", 7, ".4f", "{}_loss"),
    Column("test %", 7, ".2f", "{}_test_accuracy"),
    *(Column(f"{short}:{target[0].upper()}", 6, ".1f", f"{{}}_{kind}_to_{target}_loss")
      for target in targets for short, kind in (("WU", "work_units"), ("s", "seconds"))))
table.head()
for name, history in histories.items():
    last, share = history.last, 100 * inner[name] / max(history.last.seconds, 1e-9)
    spent = [number for _, _, value in targets.values() for number in reached(history, value * (1 + 1e-12))]
    table.row([name, last.number, last.work / unit, last.seconds, share, last.objective, last.loss, 100 * final[name],
               *spent])
run.say(f"\n1 work unit: one forward propagation of the training sample ({len(train)} images, {operators.nodes} "
        f"nodes, {network.steps} layers).")
for target, (name, budget, value) in targets.items():
    run.say(f"{target[0].upper()}: to the training objective F = {value:.4f} of {name} after {budget:.0f} work units.")


def curves(column, abscissa):
    return {name: [([abscissa(i) for i in whole(history)], [column(i) for i in whole(history)])]
            for name, history in histories.items() if whole(history)}


for axis, abscissa in (("work units", lambda i: i.work / unit), ("seconds", lambda i: i.seconds)):
    for title, name, column in (
            ("training objective", "objective", lambda i: i.objective),
            ("test error in %", "test_error", lambda i: 100 * (1 - i.accuracies["test"]) + 0.01)):
        run.figure(f"{name}_{axis.replace(' ', '_')}.png", plot_convergence, curves(column, abscissa), axis, title)
run.finish(histories={name: history.as_dict() for name, history in histories.items()})
