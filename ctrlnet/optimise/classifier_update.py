r"""The convex update of the classifier alone, for controls that stay as they are."""

from __future__ import annotations

from firedrake import Function

from ctrlnet.optimise.classifier import ClassifierProblem, ClassifierSolution
from ctrlnet.optimise.projection import inner_tolerance_of
from ctrlnet.problem import TrainingProblem

__all__ = ["update_classifier"]


def update_classifier(
    problem: TrainingProblem, s: Function, b: Function, W: Function | None = None, beta: Function | None = None,
    tolerance: float | None = None,
) -> tuple[Function, Function, ClassifierSolution]:
    """Return the best classifier (W, beta) of a problem for given s, b, and the certificate of its convex solve.

    That is what a network carried to another mesh needs least: one propagation of the sample and no derivative
    of it.

    Parameters
    ----------
    problem
        Mesh, sample and regularisation; ``weights_size`` must be positive.
    s, b
        Controls, which stay as they are.
    W, beta
        Start of the solve; default zero.
    tolerance
        As the inner tolerance of :class:`~ctrlnet.optimise.ProjectedFunctional`.

    Raises
    ------
    ValueError
        If the problem is not strongly convex in W.
    InnerSolveError
        If the solve does not reach its tolerance.
    """
    regularisation, readout = problem.regularisation, problem.readout
    if not regularisation.ridge > 0:
        raise ValueError(
            "The classifier has a unique best value only with weights_size > 0; "
            f"received {regularisation.ridge!r}."
        )
    zero = readout.functions()
    features = problem.average.features(*problem.network.layers(s, b), keep=False)
    inner = ClassifierProblem(
        features, regularisation.weights_matrix, regularisation.ridge, problem.average.loss, problem.network.comm,
        precision=problem.network.sweep.dtype)
    solution = inner.solve(
        readout.weights_array(W or zero[0]), (beta or zero[1]).dat.data_ro.ravel().copy(),
        tolerance=inner_tolerance_of(problem) if tolerance is None else tolerance)
    W, beta = readout.functions()
    readout.set_weights(W, solution.W)
    beta.dat.data[:] = solution.beta.reshape(beta.dat.data_ro.shape)
    return W, beta, solution
