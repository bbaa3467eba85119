r"""By hand beside a library's, and a special form beside the general one: what a choice between them costs.

* Preconditioned conjugate gradients for the classifier, by hand beside PETSc's KSP, which is used, and SciPy's ``cg``.
* The L-BFGS of :class:`~ctrlnet.optimise.KrylovPreconditioner`, by hand beside PETSc's matrix (LMVM), which is used.
* The sweep of IMEX steps in the fused kernels beside the same steps operation by operation.

Both sides are timed in turn in one run, by the processor time of this process on one thread; a figure is the median of
the repetitions' ratios, the first / the second. The largest difference of the results, relative to their size, stands
beside it.

Run it with ``python tests/benchmarks/bench_libraries.py``; ``--help`` lists its arguments.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy is loaded

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.sparse.linalg
from firedrake import COMM_SELF, FunctionSpace, RectangleMesh
from petsc4py import PETSc

import ctrlnet as cn
from ctrlnet.fields import digit_samples, digit_space
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import Sweep
from ctrlnet.optimise.classifier.conjugate_gradients import conjugate_gradients
from ctrlnet.optimise.classifier.problem import ClassifierProblem
from ctrlnet.optimise.krylov import KrylovPreconditioner


class Comparison:
    """Timings of two ways to the same numbers, in turn, printed a line each."""

    def __init__(self, repeats: int, seconds: float):
        self._repeats, self._seconds = repeats, seconds

    def line(self, name: str, ours: Callable[[], np.ndarray], other: Callable[[], np.ndarray]) -> None:
        expected, found = ours(), other()
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        count = max(1, int(self._seconds / max(_seconds(ours, 1), 1e-6)))
        pairs = []
        for k in range(self._repeats):
            sides = (ours, other) if k % 2 else (other, ours)
            pair = {side: _seconds(side, count) for side in sides}
            pairs.append((pair[ours], pair[other]))
        a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:66} {1e6 * a:10.1f} {1e6 * b:10.1f} {ratio:7.2f} {difference:10.1e}", flush=True)


def _seconds(call: Callable[[], object], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - began) / count


# The classifier's conjugate gradients.


def by_hand(
    product: Callable, inverse: Callable, right: np.ndarray, rtol: float, most: int
) -> tuple[np.ndarray, int]:
    """Return what :func:`~ctrlnet.optimise.classifier.conjugate_gradients.conjugate_gradients` does, in NumPy alone."""
    x, r = np.zeros_like(right), right
    z = inverse(r)
    p, rz = z, float((r * z).sum())
    target = rtol**2 * rz
    for iteration in range(1, most + 1):
        Hp = product(p)
        step = rz / float((p * Hp).sum())
        x += step * p
        r = r - step * Hp
        z = inverse(r)
        rz, previous = float((r * z).sum()), rz
        if rz <= target:
            return x, iteration
        p = z + rz / previous * p
    return x, most


def by_scipy(product: Callable, inverse: Callable, right: np.ndarray, count: int) -> np.ndarray:
    """Return the solution after so many iterations: SciPy's test, of the residual's norm, is left out."""
    A, M = (
        scipy.sparse.linalg.LinearOperator(
            (right.size,) * 2, lambda x, f=f: f(x.reshape(right.shape)).ravel(), dtype=float)
        for f in (product, inverse))
    return scipy.sparse.linalg.cg(A, right.ravel(), rtol=0.0, maxiter=count, M=M)[0].reshape(right.shape)


def classifier_problem(cells: int, features: int, images: int | None, readout: int) -> ClassifierProblem:
    """Return a classifier's problem like those of ``make demo``, of the features at random controls."""
    rng = np.random.default_rng(0)
    sample, _ = digit_samples(train=images, test=None if images is None else 10, rng=rng)
    operators = cn.low_order_operators(digit_space(cells))
    network = cn.Network(operators, cn.ControlSpace(4.0, 8, operators, features))
    problem = cn.TrainingProblem(
        cn.Readout(network, classes=10, space=digit_space(readout)), sample.averaged(28 // cells), control_size=3e-4,
        weights_gradient=1e-2, weights_size=1e-3)
    values = problem.average.at(network.layers(network.control_space.random(rng, 0.1))).features(keep=False)
    penalty = problem.regularisation
    return ClassifierProblem(values, penalty.weights_matrix, penalty.ridge, problem.average.loss, network.comm)


def compare_conjugate_gradients(comparison: Comparison) -> None:
    for cells, features, images, readout in ((28, 4, None, 4), (14, 4, 300, 4), (7, 2, 200, 2), (7, 1, 100, 1)):
        problem = classifier_problem(cells, features, images, readout)
        nodes, count = problem.features.values.shape
        solution = problem.solve(np.zeros((nodes, 10)), np.zeros(10), tolerance=1e-3)
        W, beta = solution.W, solution.beta
        problem.inverse = problem._factorise_or_fail(problem._scores(W, beta))
        # As by a factorisation of another point: a few iterations more than by the point's own.
        W = W * 1.5
        scores, g = problem._scores(W, beta), problem.gradient(W, beta)
        maps = problem._hessian_at(scores, problem.features.values), problem.inverse
        for rtol in (1e-1, 1e-6):
            iterations = by_hand(*maps, -g, rtol, 200)[1]
            assert conjugate_gradients(*maps, -g, rtol, 200)[1] == iterations
            where = f"{nodes + 1} x 10 unknowns, {count} images, {iterations} iterations"
            hand = partial(by_hand, *maps, -g, rtol, 200)
            petsc = partial(conjugate_gradients, *maps, -g, rtol, 200)
            comparison.line(f"PCG by hand / KSP: {where}", lambda f=hand: f()[0], lambda f=petsc: f()[0])
            comparison.line(f"PCG by hand / SciPy: {where}", lambda f=hand: f()[0],
                            partial(by_scipy, *maps, -g, iterations))


# The preconditioner of Newton's Krylov solves.


class TwoLoops:
    """What :class:`~ctrlnet.optimise.KrylovPreconditioner` does, in NumPy alone: L-BFGS in two loops."""

    def __init__(self, base: Callable[[np.ndarray], np.ndarray], pairs: list[tuple[np.ndarray, np.ndarray]]):
        p, q = pairs[-1]
        self._base, self._factor = base, float(p @ q) / float(q @ base(q))
        self._pairs = [(p, q, float(p @ q)) for p, q in pairs]

    def solve(self, x: np.ndarray) -> np.ndarray:
        r, alphas = x.copy(), []
        for p, q, pq in reversed(self._pairs):
            alphas.append((p @ r) / pq)
            r -= alphas[-1] * q
        out = self._factor * self._base(r)
        for (p, q, pq), alpha in zip(self._pairs, reversed(alphas), strict=True):
            out += (alpha - (q @ out) / pq) * p
        return out


def pairs_of(H: Callable, solve: Callable, b: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the directions and products of preconditioned conjugate gradients."""
    r, z, p, out = b.copy(), solve(b), solve(b), []
    rz = float(r @ z)
    for _ in range(count):
        q = H(p)
        out.append((p.copy(), q.copy()))
        r = r - rz / float(p @ q) * q
        z = solve(r)
        rz, before = float(r @ z), rz
        p = z + rz / before * p
    return out


def compare_preconditioners(comparison: Comparison) -> None:
    rng = np.random.default_rng(1)
    operators = cn.low_order_operators(digit_space(7))
    sample, _ = digit_samples(train=100, test=10, rng=rng)
    for features in (2, 4):
        network = cn.Network(operators, cn.ControlSpace(4.0, 8, operators, features))
        problem = cn.TrainingProblem(
            cn.Readout(network, classes=10, space=digit_space(4)), sample.averaged(4), control_size=3e-4,
            weights_gradient=1e-2, weights_size=1e-3)
        for names in (("s", "b"), ("s", "b", "W", "beta")):
            coordinates = problem.coordinates(names)
            size, scale = coordinates.size, np.geomspace(1e-4, 1.0, coordinates.size)
            U = rng.standard_normal((size, 30)) / np.sqrt(size)
            base = coordinates.regularisation_solver(1e-3)
            H = lambda x, U=U, scale=scale: scale * x + U @ (U.T @ x)  # noqa: E731
            for count in (5, 20):
                pairs = pairs_of(H, base, rng.standard_normal(size), count)
                library = KrylovPreconditioner(base, 20)
                for pair in pairs:
                    library.saw(*pair)
                library.renew()
                x = rng.standard_normal(size)
                comparison.line(
                    f"L-BFGS by hand / LMVM: {size} unknowns, {count} pairs", partial(TwoLoops(base, pairs).solve, x),
                    partial(library.solve, x))


# The fused sweep of IMEX steps.


def compare_sweeps(comparison: Comparison) -> None:
    rng = np.random.default_rng(2)
    V = FunctionSpace(RectangleMesh(28, 28, 28.0, 28.0, quadrilateral=True, comm=COMM_SELF), "CG", 1)
    operators, layers = cn.low_order_operators(V), 4
    for features in (4, 8):
        network = cn.Network(
            operators, cn.ControlSpace(1.0, layers, operators, features), dynamics=cn.ReactionDiffusion(0.5),
            integrator=cn.IMEX())
        controls = network.layers(network.control_space.random(rng, 0.1))
        fused, traced = network._engine.sweep, network._engine._traced()
        images = 32
        initial = rng.standard_normal((operators.mass.size, features, images))
        ways = [_Sweeps(sweep, controls, network.step_sizes, initial) for sweep in (fused, traced)]
        where = f"28 x 28 cells, {features} features, {layers} layers, {images} images"
        comparison.line(f"fused / traced IMEX, forward: {where}", ways[0].forward, ways[1].forward)
        comparison.line(f"fused / traced IMEX, adjoint: {where}", ways[0].adjoint, ways[1].adjoint)


class _Sweeps:
    """One sweep's forward and adjoint runs from the same initial states."""

    def __init__(self, sweep: Sweep, controls: LayerControls, h: np.ndarray, initial: np.ndarray):
        self._sweep, self._controls, self._h, self._initial = sweep, controls, h, initial
        self._trajectory = sweep.trajectory(len(h), initial.shape[-1])
        self._lam = sweep.field(initial.shape[-1])

    def forward(self) -> np.ndarray:
        self._trajectory.initial[:] = self._initial
        return self._sweep.forward(self._controls, self._h, self._trajectory)

    def adjoint(self) -> np.ndarray:
        self._lam[:] = self._initial
        return self._sweep.adjoint(self._controls, self._h, self._trajectory, self._lam).coefficients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05, help="of one repetition of one side, at least a call")
    parser.add_argument("--parts", nargs="+", choices=list(_PARTS), default=list(_PARTS))
    arguments = parser.parse_args()
    PETSc.Options().setValue("options_left", "no")  # PETSc sees the command line as well
    print(f"{'':66} {'us':>10} {'us':>10} {'ratio':>7} {'difference':>10}")
    for part in arguments.parts:
        _PARTS[part](Comparison(arguments.repeats, arguments.seconds))


_PARTS = {"cg": compare_conjugate_gradients, "lbfgs": compare_preconditioners, "imex": compare_sweeps}


if __name__ == "__main__":
    main()
