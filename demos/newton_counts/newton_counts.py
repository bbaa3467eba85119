r"""Newton and Krylov iterations under refinement: of the mesh at fixed depth, of the depth on a fixed mesh.

The projected functional is minimised by Newton's method in a trust region, with its Hessian, to a relative gradient of
1e-3; a step's Krylov solve ends at a relative residual of 0.1. Both are measured in the metric of the controls, which
are functions of time, linear between their nodes; every mesh and depth starts from the same functions. Neither count
grows: that is what the metric is for.

Run it with ``python demos/newton_counts/newton_counts.py``, under MPI with ``mpiexec -n 2 python ...``. Options it does
not know go to PETSc.
"""

from ctrlnet.report import Column, CommandLine, Run, one_of

line = CommandLine(__doc__, "results/newton_counts", train=300, features=3, seed=0)
line.add("meshes", [14, 28, 56], "cells along each side, at 4 layers: 28 pixels, or halves or doubles of them",
         check=one_of(14, 28, 56))
line.add("depths", [4, 8, 16, 32], "layers, on the first mesh: the controls' four cells, halved again and again",
         check=one_of(4, 8, 16, 32))
arguments = line.parse()

import numpy as np

import ctrlnet as cn
from ctrlnet.fields import digit_samples, digit_space
from ctrlnet.optimise import Limits, ProjectedFunctional, TaoOptimiser, presets

CELLS, FINEST = 4, 56
run = Run(arguments)
sample = digit_samples()[0].drawn(arguments.train, np.random.default_rng(arguments.seed))
# Coefficients are weighed by the operators' norms on one mesh, whatever the mesh they are used on.
scales = cn.low_order_operators(digit_space(FINEST)).norms
readout_space = digit_space(4)


def newton(cells, layers):
    """Return the history of Newton's method on a mesh, at a depth."""
    operators = cn.low_order_operators(digit_space(cells))
    controls = cn.ControlSpace(2.0, CELLS, operators, arguments.features, degree=1, refinements=3)
    m = controls.random(np.random.default_rng(arguments.seed + 1), 0.1)
    m.s.dat.data[:] /= np.repeat(scales, arguments.features**2) / scales[0]
    while controls.cells < layers:
        finer = controls.finer()
        m, controls = controls.prolong(m, finer), finer
    problem = cn.TrainingProblem(
        cn.Readout(cn.Network(operators, controls), 10, readout_space), sample, control_size=0.1,
        control_roughness=0.1, control_scales=scales, weights_gradient=0.1, weights_size=0.01)
    functional = ProjectedFunctional(problem, m)
    optimiser = TaoOptimiser(
        functional, presets.TRUST_REGION, Limits(40, relative_gradient=1e-3), curvature="hessian", forcing=0.1,
        coordinates=problem.coordinates(functional.names, time_scale=1.0),
        checkpoint=run.checkpoint(f"{cells} cells {layers} layers"))
    optimiser.solve()
    run.trained(optimiser.history)
    return optimiser.history


cases = [(cells, CELLS) for cells in arguments.meshes]
cases += [(arguments.meshes[0], layers) for layers in arguments.depths]
cases = list(dict.fromkeys(cases))
histories = {}
with run.progress("Newton", len(cases), width=0) as bar:
    for case in cases:
        histories[case] = newton(*case)
        bar.advance()

table = run.table(
    Column("cells", 7, "d"), Column("layers", 7, "d"), Column("Newton", 7, "d", "newton_{}_cells_{}_layers"),
    Column("most Krylov", 12, "d", "most_krylov_{}_cells_{}_layers"),
    Column("mean Krylov", 12, ".1f", "mean_krylov_{}_cells_{}_layers"),
    Column("|g| / |g0|", 11, ".1e", "relative_gradient_{}_cells_{}_layers"))
table.head()
for case, history in histories.items():
    krylov = history.column("krylov")[1:]
    reduction = history.last.gradient_norm / history.iterations[0].gradient_norm
    table.row([*case, history.last.number, max(krylov), np.mean(krylov), reduction], key=case)
run.finish("\nresults.json", histories={
    f"{cells}_cells_{layers}_layers": history.as_dict() for (cells, layers), history in histories.items()})
