"""One use of the public calls, from its description: what it returns must be finite and what an oracle says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from firedrake import (
    BoxMesh,
    Function,
    FunctionSpace,
    IcosahedralSphereMesh,
    IntervalMesh,
    RectangleMesh,
    VectorFunctionSpace,
)

import ctrlnet as cn
from ctrlnet.fields import Classes, NodalClasses, NodalFields, NodalValues, Numbers
from ctrlnet.optimise import Adam, FirstOrder, JointFunctional, Limits, ProjectedFunctional, SampleSchedule
from ctrlnet.transfer import carry


class Contradiction(AssertionError):
    """A number without an exception that is not finite, or not what the oracle says."""


def check(what: str, found, expected=None, tolerance: float = 0.0) -> None:
    found = np.asarray(found, dtype=float)
    if not np.isfinite(found).all():
        raise Contradiction(f"{what} is not finite")
    if expected is not None:
        scale = max(np.abs(expected).max(initial=0.0), 1.0)
        worst = np.abs(found - expected).max(initial=0.0) / scale
        if worst > tolerance:
            raise Contradiction(f"{what} differs by {worst:.1e} from the oracle")


def mesh_of(kind: str, cells: int, factor: int = 1):
    n = cells * factor
    return {
        "interval": lambda: IntervalMesh(n, 6.0),
        "squares": lambda: RectangleMesh(n, n, 6.0, 6.0, quadrilateral=True),
        "triangles": lambda: RectangleMesh(n, n, 6.0, 6.0),
        "tetrahedra": lambda: BoxMesh(n, n, n, 6.0, 6.0, 6.0),
        "sphere": lambda: IcosahedralSphereMesh(1.0, refinement_level=min(cells - 1, 2)),
    }[kind]()


def operators_of(basis: str, space, kind: str):
    if basis == "stencils" or (basis == "stencils where they are" and kind in ("interval", "squares")):
        return cn.stencil_operators(space)
    if basis == "two by name":
        return cn.Operators(space, [cn.derivative(0), cn.laplacian])
    return cn.low_order_operators(space)


def network_of(space, d: dict, kind: str):
    operators = operators_of(d["basis"], space, kind)
    activation = {"tanh": cn.tanh, "relu": cn.relu, "identity": cn.identity,
                  "smoothed_relu": cn.smoothed_relu(0.1)}[d["activation"]]
    of_dynamics, of_scheme = d["dynamics and scheme"]
    whole = isinstance(d["features"], int)
    features = 2 * d["features"] if whole and of_dynamics == "hamiltonian" else d["features"]  # two halves
    dynamics = {
        "residual": cn.Residual, "antisymmetric": cn.Antisymmetric, "parabolic": cn.Parabolic,
        "hyperbolic": cn.Hyperbolic, "hamiltonian": cn.Hamiltonian,
        "reaction": lambda sigma: cn.ReactionDiffusion(0.1, sigma)}[of_dynamics](activation)
    integrator = {
        "euler": cn.ForwardEuler, "heun": cn.RungeKutta, "imex": cn.IMEX, "verlet": cn.StoermerVerlet,
        "backward": cn.BackwardEuler, "midpoint": cn.ImplicitMidpoint}[of_scheme]()
    controls = cn.ControlSpace(
        d["T"], d["control cells"], operators, features, degree=d["degree"], refinements=1,
        parameters=dynamics.parameters)
    opening = None if d["opening"] is None else cn.LearnedOpening(features, d["opening"])
    return cn.Network(
        operators, controls, controls.cells * d["steps a cell"], dynamics=dynamics, integrator=integrator,
        precision=d["precision"], **({} if opening is None else {"opening": opening}))


def sample_of(d: dict, space, rng: np.random.Generator):
    """A sample of pictures, or of values at the nodes, which alone a sphere takes."""
    mesh = space.mesh()
    surface = mesh.topological_dimension != mesh.geometric_dimension
    nodal = d["source"] == "nodal" or surface
    points = [space.dim()] if nodal else [d["pixels"]] * mesh.geometric_dimension
    shape = (d["count"], *([d["channels"]] if d["channels"] != 1 else []), *points)
    values = {"noise": rng.random(shape), "constant": np.ones(shape), "large": 1e3 * rng.random(shape),
              "nan": np.full(shape, np.nan), "inf": np.full(shape, np.inf), "huge": np.full(shape, 1e300)}[d["values"]]
    with np.errstate(all="ignore"):
        values = values.astype(d["dtype"])
    whole = int(d["classes"]) if d["classes"] > 0 else 1
    labels = np.arange(d["count"]) % whole
    labels = {"good": labels, "too large": labels + 1, "negative": labels - 1, "halves": labels + 0.5,
              "too few": labels[1:], "nested": labels[:, None], "words": labels.astype(str)}[d["labels"]]
    inputs = NodalValues(space, values) if nodal else values
    if d["targets"] == "labels":
        return cn.Sample(inputs, labels, d["classes"])
    return cn.Sample(inputs, targets_of(d, space, labels, whole, rng))


def targets_of(d: dict, space, labels: np.ndarray, whole: int, rng: np.random.Generator):
    """Numbers an image, or classes or fields at nodes, some of them masked; wrong labels make them wrong too."""
    nodes, seed = space.dim(), np.zeros(d["count"]) if labels.dtype.kind == "U" else labels.ravel()
    if d["targets"] == "numbers":
        return Numbers(seed[:, None] + rng.standard_normal((len(seed), whole)), relative=bool(d["mask"]))
    mask = {False: None, True: rng.random((len(seed), nodes)) < 0.5, "nothing": np.zeros((len(seed), nodes), bool)}[
        d["mask"]]
    if d["targets"] == "classes at nodes":
        at_nodes = (seed[:, None] + np.arange(nodes)) % whole if labels.ndim == 1 else labels
        return NodalClasses(space, at_nodes, d["classes"], mask=mask)
    return NodalFields(space, seed[:, None, None] + rng.standard_normal((len(seed), whole, nodes)), mask=mask)


def problem_of(network, d: dict, sample, kind: str, classes, coarse_mesh):
    space = {
        "CG": lambda: FunctionSpace(coarse_mesh, "CG", 1), "DG": lambda: FunctionSpace(coarse_mesh, "DG", 0),
        "R": lambda: FunctionSpace(coarse_mesh, "R", 0), "CG2": lambda: FunctionSpace(coarse_mesh, "CG", 2),
        "vector": lambda: VectorFunctionSpace(coarse_mesh, "CG", 1), "state's": lambda: None}[d["readout"]]()
    of_classes, at_nodes = kind in ("labels", "classes at nodes"), kind in ("classes at nodes", "fields")
    loss = {"default": None if of_classes else cn.LeastSquares(), "softmax": cn.SoftmaxCrossEntropy(),
            "least squares": cn.LeastSquares(), "logistic": cn.Logistic(), "word": "softmax"}[d["loss"]]
    more = {} if loss is None else {"loss": loss}
    components = classes if of_classes else sample.targets.components
    readout = cn.NodalReadout(network, components) if at_nodes else cn.Readout(network, components, space)
    return cn.TrainingProblem(
        readout, sample, control_size=d["control_size"], weights_size=d["weights_size"],
        weights_gradient=d["weights_gradient"], memory_limit=d["memory_limit"], **more)


ACTIVATIONS = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0.0), "identity": lambda z: z}


def euler_of_matrices(network, m, activation: str, Y0: np.ndarray) -> np.ndarray:
    """Forward Euler steps of the residual network by dense matrices, Y (nodes, C, images)."""
    D = np.stack([matrix.convert("dense").getDenseArray() for matrix in network.operators.matrices])
    layers, Y = network.in_time(m), Y0
    for s, b, h in zip(layers.coefficients, layers.biases, network.step_sizes, strict=True):
        Z = np.einsum("joc,jxy,yci->xoi", s, D, Y) + b[:, None]
        Y = Y + h * ACTIVATIONS[activation](Z)
    return Y


def difference(functional, m, direction) -> float | None:
    """The derivative along a direction by central differences; None where no two steps agree on it."""
    def quotient(step: float) -> float:
        ahead, behind = ([f.copy(deepcopy=True).assign(f + sign * step * d) for f, d in zip(m, direction, strict=True)]
                         for sign in (1, -1))
        return (float(functional(ahead)) - float(functional(behind))) / (2 * step)

    steps = (1e-5, 1e-6, 1e-7, 1e-8)  # large inputs bend the objective within the longer ones
    found = [quotient(step) for step in steps[:2]]
    for step in (*steps[2:], 0.0):
        if abs(found[-1] - found[-2]) <= 1e-4 * max(abs(found[-1]), 1.0):
            return found[-1]
        if step:
            found.append(quotient(step))
    return None


def use(d: dict) -> str:
    """Make what is described; return what was reached. Raises what the calls raise."""
    call, rng = d["call"], np.random.default_rng(d["call"]["seed"])
    mesh = mesh_of(**d["mesh"])
    space = FunctionSpace(mesh, "CG", 1)
    network = network_of(space, d["network"], d["mesh"]["kind"])
    finite = bool(np.isfinite(call["scale"]))
    m = network.control_space.random(rng, call["scale"] if finite else 0.1)
    if not finite:
        m.s.assign(call["scale"])
    name = call["name"]
    if name == "propagate":
        Y0 = Function(network.state_space(2))
        Y0.dat.data_wo[:] = rng.random(Y0.dat.data_ro.shape)
        Y = cn.propagate(network, m, Y0).dat.data_ro
        plain = tuple(d["network"]["dynamics and scheme"]) == ("residual", "euler")
        expected = None
        if plain and d["network"]["activation"] in ACTIVATIONS:
            shape = (Y0.dat.data_ro.shape[0], network.features, 2)
            expected = euler_of_matrices(
                network, m, d["network"]["activation"], Y0.dat.data_ro.reshape(shape)).reshape(Y.shape)
        check("Y(T)", Y, expected, 1e-9 if network.precision == "double" else 1e-3)
        return name
    if name == "finer":
        finer = network.control_space.finer()
        found = network.control_space.prolong(m, finer)
        check("prolonged controls", found.s.dat.data_ro)
        return name
    if name == "carry":
        target = FunctionSpace(mesh_of(d["mesh"]["kind"], d["mesh"]["cells"], 2), "CG", 1)
        other, carried = carry(network, m, target)
        check("carried controls", carried.s.dat.data_ro)
        return name
    sample = sample_of(d["sample"], space, rng)
    if name == "depth":
        check("the depth's error", cn.adapt_depth(network, sample, m, call["tolerance"], limit=16).error)
        return name
    coarse = mesh if d["mesh"]["kind"] == "sphere" else mesh_of(d["mesh"]["kind"], d["problem"]["readout cells"])
    problem = problem_of(network, d["problem"], sample, d["sample"]["targets"], d["sample"]["classes"], coarse)
    m = problem.controls(rng, call["scale"] if finite else 0.1).replace(s=m.s)
    trained(name, problem, m, call, rng, smooth=d["network"]["activation"] != "relu")
    return name


def trained(name: str, problem, m, call: dict, rng: np.random.Generator, smooth: bool) -> None:
    if name in ("derivative", "hessian"):
        functional = JointFunctional(problem, m)
        check("the objective", functional(list(m)))
        direction = [f.copy(deepcopy=True) for f in m]
        for f in direction:
            f.dat.data_wo[:] = rng.standard_normal(f.dat.data_ro.shape)
        functional(list(m))
        slope = float(functional.tlm(direction))
        check("the derivative", slope)
        if name == "hessian":
            for part in functional.hessian(direction):
                check("a Hessian product", part.dat.data_ro)
        elif problem.network.precision == "double" and call["scale"] <= 1 and smooth:  # no kinks
            expected = difference(functional, m, direction)
            if expected is not None and abs(expected) < 1e6:
                check("the derivative", slope, np.array(expected), 1e-3)
    elif name == "train":
        result = cn.train_level(problem, m, iterations=call["iterations"])
        check("the objective", result.history.last.objective)
    elif name == "drawn samples":
        result = cn.train_level(problem, m, iterations=call["iterations"], rng=rng,
                                schedule=SampleSchedule(call["batch"], 2.0, 1))
        check("the objective", result.history.last.objective)
    elif name == "adam":
        solver = FirstOrder(JointFunctional(problem, m), rng, Adam(), rate=call["rate"], batch=call["batch"],
                            limits=Limits(call["iterations"]))
        for control in solver.solve():
            check("a control", control.dat.data_ro)
    elif name == "predict":
        prediction = problem.prediction(m)
        check("scores", prediction.scores(problem.average.sample))
        if isinstance(problem.average.sample.targets, Classes):
            check("the accuracy", problem.accuracy(problem.average.sample, m))
    elif name == "save":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.h5"
            cn.save(path, problem, m)
            found = cn.load(path)
            for control, expected in zip(found.controls, m, strict=True):
                check("a control read back", control.dat.data_ro, expected.dat.data_ro, 0.0)
    else:
        functional = ProjectedFunctional(problem, m)
        check("the projected objective", functional([c.control for c in functional.controls]))
        results = cn.train_multiscale([problem, problem], m, iterations=call["iterations"])
        check("the objective", results[-1].history.last.objective)
