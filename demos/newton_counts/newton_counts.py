r"""Newton and Krylov iterations under refinement: of the mesh at fixed depth, of the depth on a fixed mesh.

The projected functional is minimised by Newton's method in a trust region, with its Hessian, to a relative gradient of
1e-3; a step's Krylov solve ends at a relative residual of 0.1. Both are measured in the metric of the controls, which
are functions of time, linear between their nodes; every mesh and depth starts from the same functions. Neither count
grows: that is what the metric is for.

Run it with ``python demos/newton_counts/newton_counts.py``, under MPI with ``mpiexec -n 2 python ...``. Options it does
not know go to PETSc.
"""

import argparse
import sys

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
parser.add_argument("--meshes", type=int, nargs="+", default=[14, 28, 56], help="cells along each side, at 4 layers")
parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32], help="layers, on the first mesh")
parser.add_argument("--train", type=int, default=300)
parser.add_argument("--features", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="results/newton_counts")
arguments, petsc_options = parser.parse_known_args()
sys.argv[1:] = petsc_options  # PETSc reads the rest when Firedrake is imported
if any(cells not in (14, 28, 56) for cells in arguments.meshes):
    parser.error("--meshes takes 14, 28 and 56: 28 pixels, or halves or doubles of them.")
if any(layers not in (4, 8, 16, 32) for layers in arguments.depths):
    parser.error("--depths takes 4, 8, 16 and 32: the controls' four cells, halved again and again.")
if arguments.train < 1 or arguments.features < 1:
    parser.error("--train and --features must be at least 1.")

import numpy as np
from firedrake import COMM_WORLD, FunctionSpace, RectangleMesh
from tqdm import tqdm

import ctrlnet as cn
from ctrlnet.data import mnist_sample
from ctrlnet.metric import Coordinates
from ctrlnet.optimise import Limits, ProjectedFunctional, TaoOptimiser, presets

SIDE, CELLS, FINEST = 28.0, 4, 56
root = COMM_WORLD.rank == 0

data = mnist_sample()
rng = np.random.default_rng(arguments.seed)
sample = cn.Sample(data.train_images, data.train_labels).drawn(arguments.train, rng)


def square(cells):
    return FunctionSpace(RectangleMesh(cells, cells, SIDE, SIDE, quadrilateral=True), "CG", 1)


# Coefficients are weighed by the operators' norms on one mesh, whatever the mesh they are used on.
scales = cn.low_order_operators(square(FINEST)).norms
readout_space = square(4)


def newton(cells, layers):
    """Return the history of Newton's method on a mesh, at a depth."""
    operators = cn.low_order_operators(square(cells))
    controls = cn.ControlSpace(2.0, CELLS, operators, arguments.features, degree=1, refinements=3)
    s, b = controls.random(np.random.default_rng(arguments.seed + 1), 0.1)
    s.dat.data[:] /= np.repeat(scales, arguments.features**2) / scales[0]
    while controls.cells < layers:
        finer = controls.finer()
        (s, b), controls = controls.prolong(s, b, finer), finer
    problem = cn.TrainingProblem(
        cn.Readout(cn.Network(operators, controls), 10, readout_space), sample, control_size=0.1,
        control_roughness=0.1, control_scales=scales, weights_gradient=0.1, weights_size=0.01)
    functional = ProjectedFunctional(problem, s, b)
    optimiser = TaoOptimiser(
        functional, presets.TRUST_REGION, Limits(40, relative_gradient=1e-3), curvature="hessian", forcing=0.1,
        coordinates=Coordinates(problem, functional.names, time_scale=1.0))
    optimiser.solve()
    return optimiser.history


cases = [(cells, CELLS) for cells in arguments.meshes]
cases += [(arguments.meshes[0], layers) for layers in arguments.depths]
histories = {}
for case in tqdm(list(dict.fromkeys(cases)), desc="Newton", disable=not root, file=sys.stdout,
                 bar_format="{desc} |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}]"):
    histories[case] = newton(*case)

# The table, and every number in it by name.
figures = {}
heads, widths = ("cells", "layers", "Newton", "most Krylov", "mean Krylov", "|g| / |g0|"), (7, 7, 7, 12, 12, 11)
lines = [" ".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))]
for (cells, layers), history in histories.items():
    krylov = history.column("krylov")[1:]
    values = {
        "newton": history.last.number, "most_krylov": max(krylov), "mean_krylov": float(np.mean(krylov)),
        "relative_gradient": history.last.gradient_norm / history.iterations[0].gradient_norm,
    }
    figures |= {f"{name}_{cells}_cells_{layers}_layers": value for name, value in values.items()}
    lines.append(f"{cells:7d} {layers:7d} {values['newton']:7d} {values['most_krylov']:12d} "
                 f"{values['mean_krylov']:12.1f} {values['relative_gradient']:11.1e}")
if root:
    print("\n" + "\n".join(lines), flush=True)
cn.write_results(arguments.output, figures, vars(arguments), COMM_WORLD, histories={
    f"{cells}_cells_{layers}_layers": history.as_dict() for (cells, layers), history in histories.items()})
if root:
    print(f"\nresults.json: {arguments.output}/")
