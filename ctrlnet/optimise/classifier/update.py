r"""The convex update of the classifier alone, for controls that stay as they are."""

from __future__ import annotations

from ctrlnet.controls import Controls, ControlsLike
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.optimise.classifier.problem import ClassifierProblem, ClassifierSolution
from ctrlnet.optimise.projection import inner_tolerance_of

__all__ = ["update_classifier"]


def update_classifier(
    problem: TrainingProblem, m: ControlsLike, tolerance: float | None = None
) -> tuple[Controls, ClassifierSolution]:
    """Return controls with the best classifier for those in time, and the certificate of its convex solve.

    That is what a network carried to another mesh needs least: one propagation of the sample and no derivative
    of it.

    Parameters
    ----------
    problem
        Mesh, sample and regularisation; ``weights_size`` must be positive.
    m
        Controls. Those in time stay as they are; a classifier among them is the start of the solve, which is zero by
        default.
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
    m = problem.with_classifier(m)
    features = problem.average.at(problem.network.layers(m)).features(keep=False)
    inner = ClassifierProblem(
        features, regularisation.weights_matrix, regularisation.ridge, problem.average.loss, problem.network.comm,
        precision=problem.network.sweep.dtype)
    W, beta = readout.arrays(m)
    solution = inner.solve(
        W.copy(), beta.copy(), tolerance=inner_tolerance_of(problem) if tolerance is None else tolerance)
    return m.replace(**readout.classifier(solution.W, solution.beta).by_name()), solution
