"""Limited-memory quasi-Newton (TAO's LMVM) on a reduced functional, through pyadjoint's TAOSolver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import petsctools
from firedrake import COMM_SELF, Function
from firedrake.adjoint import MinimizationProblem, TAOSolver
from petsc4py import PETSc
from pyadjoint.reduced_functional import AbstractReducedFunctional

from ctrlnet.optimise.classifier import InnerSolveError
from ctrlnet.optimise.history import History, Iteration
from ctrlnet.sample_average import PropagationError
from ctrlnet.work import Work

__all__ = ["QuasiNewton"]

PARAMETERS = {
    "tao_type": "lmvm",
    "tao_lmvm_mat_lmvm_hist_size": 30,
    "tao_ls_type": "more-thuente",
    "tao_ls_max_funcs": 20,
    "tao_gatol": 0.0,
    "tao_gttol": 0.0,
    "tao_grtol": 0.0,
}


class QuasiNewton:
    """Minimise a reduced functional whose controls every rank holds a copy of.

    TAO runs on ``COMM_SELF``, the same on each rank; the functional's value and derivative are those of
    all ranks, so the ranks stay in lockstep.

    ======================================  =====================================================
    option                                  meaning (default)
    ======================================  =====================================================
    ``tao_type``                            ``lmvm``; ``cg``, ``blmvm`` run too
    ``tao_max_it``                          iterations (argument ``iterations``)
    ``tao_lmvm_mat_lmvm_hist_size``         secant pairs (30)
    ``tao_ls_type``, ``tao_ls_max_funcs``   line search (``more-thuente``, 20)
    ``tao_gatol``, ``tao_grtol``            absolute, relative gradient tolerance (0, 0)
    ======================================  =====================================================

    Parameters
    ----------
    functional
        For example a :class:`~ctrlnet.optimise.ProjectedFunctional`.
    iterations
        The most iterations; 0 evaluates the start.
    relative_gradient
        Stop when the gradient norm has fallen by this factor; 0: never.
    work
        Counter whose total is recorded each iteration.
    work_budget
        Stop after the iteration in which the counter passes this (image-node-layers). None: no limit.
    parameters
        TAO options over the defaults above.
    callback
        Called with each :class:`Iteration`, for progress bars.
    loss
        Returns the mean loss at the last evaluation, for the history.
    """

    def __init__(
        self, functional: AbstractReducedFunctional, iterations: int = 50, *, relative_gradient: float = 0.0,
        work: Work | None = None, work_budget: float | None = None, parameters: Mapping | None = None,
        callback: Callable[[Iteration], None] | None = None, loss: Callable[[], float] | None = None,
    ):
        if iterations < 0:
            raise ValueError(f"iterations must not be negative, received {iterations!r}.")
        self.functional = functional
        self.history = History()
        self._work = Work() if work is None else work
        self._budget = work_budget
        self._callback = callback
        self._loss = loss
        limits = {"tao_max_it": max(iterations, 1), "tao_grtol": relative_gradient}
        self._solver = TAOSolver(
            MinimizationProblem(_GuardedFunctional(functional)), PARAMETERS | limits | dict(parameters or {}),
            options_prefix="", comm=COMM_SELF,
        )
        self._solver.tao.setMonitor(self._monitor)
        self._solver.tao.setConvergenceTest(self._test)
        self._evaluates_only = iterations == 0  # TAO itself takes no limit below 1

    def _monitor(self, tao: PETSc.TAO) -> None:
        number, objective, gradient_norm, _, step, _ = tao.getSolutionStatus()
        loss = objective if self._loss is None else self._loss()
        iteration = Iteration(
            number, float(objective), float(loss), float(gradient_norm), float(step), self._work.total,
            time.perf_counter() - self._began,
        )
        self.history.append(iteration)
        if self._callback is not None:
            self._callback(iteration)

    def _test(self, tao: PETSc.TAO) -> None:
        number, _, gradient_norm, _, _, _ = tao.getSolutionStatus()
        first = self.history.iterations[0].gradient_norm if self.history.iterations else gradient_norm
        _, relative, _ = tao.getTolerances()
        if number > 0 and gradient_norm <= relative * first:
            tao.setConvergedReason(PETSc.TAO.ConvergedReason.CONVERGED_GRTOL)
        elif number >= tao.getMaximumIterations() or self._evaluates_only:
            tao.setConvergedReason(PETSc.TAO.ConvergedReason.DIVERGED_MAXITS)
        elif self._budget is not None and self._work.total >= self._budget:
            tao.setConvergedReason(PETSc.TAO.ConvergedReason.CONVERGED_USER)

    def solve(self) -> list[Function]:
        """Minimise from the controls' values and return the best controls; :attr:`history` says how it went.

        A limit (iterations, work) or a line search that finds no descent ends the run; neither is an error.
        """
        self._began = time.perf_counter()
        tao, x, vectors = self._solver.tao, self._solver.x, self._solver._vec_interface
        controls = [c.control._ad_copy() for c in self.functional.controls]
        # TAOSolver.solve raises on a limit, which here is an outcome: run its TAO directly.
        with petsctools.inserted_options(tao):
            vectors.to_petsc(x, controls)
            tao.solve()
            vectors.from_petsc(x, controls)
        code = tao.getConvergedReason()
        self.history.reason = _REASONS.get(code, f"TAO reason {code}")
        self.functional(controls)
        return controls


_REASONS = {
    PETSc.TAO.ConvergedReason.CONVERGED_GRTOL: "relative gradient tolerance",
    PETSc.TAO.ConvergedReason.CONVERGED_GATOL: "absolute gradient tolerance",
    PETSc.TAO.ConvergedReason.CONVERGED_USER: "work budget",
    PETSc.TAO.ConvergedReason.DIVERGED_MAXITS: "iteration limit",
    PETSc.TAO.ConvergedReason.DIVERGED_LS_FAILURE: "line search found no descent",
}


class _GuardedFunctional(AbstractReducedFunctional):
    """A functional that is large and flat where the propagation is not finite, so that a line search steps back.

    Not infinite: TAO's line searches give up on an infinite trial value instead of shortening the step.
    """

    def __init__(self, functional: AbstractReducedFunctional):
        self._functional = functional
        self._penalty = 1e6

    @property
    def controls(self):
        return self._functional.controls

    def __call__(self, values):
        self._failed = False
        try:
            value = self._functional(values)
            self._penalty = 10.0 * (1.0 + abs(float(value)))
            return value
        except (PropagationError, InnerSolveError):
            self._failed = True
            return self._penalty

    def derivative(self, adj_input=1.0, apply_riesz=False):
        if self._failed:
            zeros = [c.control._ad_init_zero(dual=not apply_riesz) for c in self.controls]
            return self.controls.delist(zeros)
        return self._functional.derivative(adj_input=adj_input, apply_riesz=apply_riesz)

    def hessian(self, m_dot, hessian_input=None, evaluate_tlm=True, apply_riesz=False):
        return self._functional.hessian(m_dot, hessian_input, evaluate_tlm, apply_riesz)

    def tlm(self, m_dot):
        return self._functional.tlm(m_dot)
