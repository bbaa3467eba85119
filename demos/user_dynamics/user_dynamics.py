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

import time

from ctrlnet.report import Column, CommandLine, Run, plot_convergence, positive

line = CommandLine(__doc__, "results/user_dynamics", levels=[7, 14], features=3, layers=4, time=1.0, readout=4,
                   train=256, test=256, seed=0)
line.add("diffusion", 0.5, "epsilon, in squared pixels per unit of time", check=positive)
line.add("recovery", 0.5, "delta, the rate of the recovery", check=positive)
line.add("scheme", "backward-euler", "of order 1, 2 or 4", choices=["backward-euler", "qin-zhang", "gauss"])
line.add("iterations", [5, 2], "quasi-Newton, of all or of each level")
arguments = line.parse()
iterations = line.one_each("iterations", arguments.iterations, arguments.levels, repeat=True)

import numpy as np
from firedrake import as_vector, dx, grad, inner
from irksome import BackwardEuler, Dt, GaussLegendre, QinZhang
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import ctrlnet as cn
from ctrlnet.fields import PixelProjection, as_picture, digit_samples, digit_space

RECOVERY = 0.5  # gamma
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
run = Run(arguments)
rng = np.random.default_rng(arguments.seed)
train, test = digit_samples(None, arguments.train, arguments.test, rng)
names = [f"{n}x{n}" for n in arguments.levels]
samples = [(train.averaged(28 // n), test.averaged(28 // n)) for n in arguments.levels]
operators = [cn.low_order_operators(digit_space(n)) for n in arguments.levels]
controls = cn.ControlSpace(arguments.time, arguments.layers, operators[0], arguments.features)
opening = cn.FixedOpening(np.ones(arguments.features))
coarsest = cn.Network(operators[0], controls, dynamics=dynamics, integrator=scheme, opening=opening)
networks = [coarsest, *(coarsest.on(on_mesh.space) for on_mesh in operators[1:])]
readout_space = digit_space(arguments.readout)
regularisation = dict(control_size=3e-3, control_scales=operators[-1].norms, weights_gradient=1e-2, weights_size=1e-3)
work = cn.Work()
problems = [
    cn.TrainingProblem(cn.Readout(network, 10, readout_space), own, work=work, **regularisation)
    for network, (own, _) in zip(networks, samples, strict=True)
]

run.say(f"{len(train)} training and {len(test)} test images, {arguments.features} features, {arguments.layers} layers, "
        f"{tableau}, {run.ranks} rank(s)\n")
began = time.perf_counter()
with run.level_progress(names, iterations, width=8) as bars:
    results = cn.train_multiscale(
        problems, controls.random(rng, scale=0.05), iterations=iterations, callback=bars,
        checkpoint=run.checkpoint("levels"))
run.trained(*(result.history for result in results))
run.figures["seconds"] = time.perf_counter() - began

# A classifier of the image itself, without layers, to compare with.
image_only = cn.ControlSpace(1.0, 1, operators[-1], features=1)
bare = cn.Readout(cn.Network(operators[-1], image_only), 10, readout_space)
linear = cn.train_level(
    cn.TrainingProblem(bare, samples[-1][0], **regularisation), image_only.zero(), iterations=0)

table = run.table(
    Column("mesh", 8), Column("nodes", 6, ".0f", "nodes_{}"), Column("layers", 6, ".0f", "layers_{}"),
    Column("iter", 5, ".0f", "iterations_{}"), Column("start", 9, ".4f", "objective_start_{}"),
    Column("objective", 9, ".4f", "objective_{}"), Column("seconds", 8, ".1f", "seconds_{}"),
    Column("train %", 8, ".2f", "train_accuracy_{}"), Column("test %", 7, ".2f", "test_accuracy_{}"))
table.head()
for title, result, (_, tested) in zip(
        [*names, "linear"], [*results, linear], [*samples, samples[-1]], strict=True):
    trained, course = result.problem, result.history
    accuracies = [100 * average.accuracy(*trained.point(result.controls))
                  for average in (trained.average, trained.on_sample(tested))]
    table.row([title, trained.network.operators.nodes, trained.network.steps, course.last.number,
               course.iterations[0].objective, course.last.objective, result.seconds, *accuracies])
figures = run.figures
figures |= {name: figures[f"{name}_{names[-1]}"] for name in ("objective", "train_accuracy", "test_accuracy")}
run.say(f"\nTest accuracy {figures['test_accuracy']:.2f} %, without layers {figures['test_accuracy_linear']:.2f} %; "
        f"{figures['seconds']:.0f} s.")


# What one image does to the medium.
final, network = results[-1], networks[-1]
sweep = network.sweep
trajectory = sweep.trajectory(network.steps, sweep.image_block)
image = samples[-1][1].values(0, 1)
layers = network.layers(final.controls)
nodal = PixelProjection(network.space, image.shape[1:])(image)
network.opening.open(layers, nodal[:, None], trajectory.initial)
sweep.forward(layers, network.step_sizes, trajectory)
states = np.stack([
    as_picture(network.space, np.stack([part[..., 0] for part in trajectory.complete(k)], axis=-1).copy())
    for k in range(network.steps + 1)])


def draw_states(path):
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
    figure.savefig(path, dpi=120)


run.figure("convergence.png", plot_convergence, {
    name: [([i.number for i in result.history.iterations], result.history.column("objective"))]
    for name, result in zip(names, results, strict=True)}, xlabel="iterations")
run.figure("excitation.png", draw_states)
run.finish(histories={name: r.history.as_dict() for name, r in zip(names, results, strict=True)})
