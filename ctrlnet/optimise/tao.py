"""Newton and quasi-Newton methods of PETSc's TAO on a reduced functional, in coordinates of the metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import petsctools
from firedrake import COMM_SELF
from petsc4py import PETSc
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Controls, Coordinates
from ctrlnet.optimise.course import Accuracies, Callback, Course, Limits
from ctrlnet.optimise.evaluation import Evaluation
from ctrlnet.optimise.functional import Functional
from ctrlnet.optimise.journal import Halves, Journal, State, numbering
from ctrlnet.optimise.krylov import KrylovPreconditioner
from ctrlnet.optimise.presets import QUASI_NEWTON
from ctrlnet.optimise.rounding import same_digits
from ctrlnet.storage.checkpoints import Checkpoint, checkpoint_of
from ctrlnet.storage.history import History

__all__ = ["InitialHessian", "TaoOptimiser"]

_WITH_HESSIAN = ("nls", "ntr", "ntl", "bnls", "bntr", "bntl")
_WITH_SECANTS = ("lmvm", "blmvm", "bqnls")


class InitialHessian(Protocol):
    """The matrix that quasi-Newton starts from, in a functional's coordinates, symmetric and positive definite."""

    def refresh(self) -> None:
        """Form the matrix at the functional's last point."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return the matrix times coordinates of a direction."""

    def solve(self, g: np.ndarray) -> np.ndarray:
        """Return the inverse matrix times coordinates of a derivative."""

    def over(self, functional: Functional) -> InitialHessian:
        """Return that of another sample's, or mesh's, functional, to be refreshed."""

    @property
    def generators(self) -> Sequence[np.random.Generator]:
        """What it draws by."""

    def state(self) -> State:
        """Return the matrix, for :meth:`restore`."""

    def restore(self, state: State) -> None:
        """Take the matrix of an earlier state."""


class TaoOptimiser:
    r"""Minimise a reduced functional with TAO.

    TAO sees coordinates in which the metric is the Euclidean product, a sequential vector on each rank; value and
    derivatives are those of all ranks, so the ranks stay in lockstep, and W may be distributed over its mesh.
    Where a state or an inner solve is not finite the value is large and finite, so that a line search shortens
    its step and a trust region shrinks.

    Parameters
    ----------
    functional
        A :class:`~ctrlnet.optimise.ProjectedFunctional` or :class:`~ctrlnet.optimise.JointFunctional`, for example.
    parameters
        TAO options, for example a preset of :mod:`ctrlnet.optimise.presets`.
    limits
        When to end.
    coordinates
        Of the functional's controls. Default: L2 in time, the regularisation's product for W.
    curvature
        The matrix in Newton's methods: ``"gauss_newton"`` or ``"hessian"``.
    forcing
        Relative residual of the Krylov solves; or a function of the gradient's norm over its first value.
    preconditioner
        Of the Krylov solves: a :class:`~ctrlnet.optimise.krylov.KrylovPreconditioner` or None.
    initial_hessian
        Quasi-Newton's: an :class:`InitialHessian`, for example a :class:`~ctrlnet.optimise.SchurGaussNewton`.
        Default: a multiple of the metric.
    refresh
        Iterations after which the initial Hessian is formed anew.
    callback, accuracies
        See :class:`~ctrlnet.optimise.course.Course`.
    course
        A record to continue, of runs on other samples.
    checkpoint
        A :class:`~ctrlnet.storage.Checkpoint`, or its path: what the run goes on from when it is started again. With a
        ``course``, its journal serves.
    options_prefix
        Of the PETSc options that override the parameters.
    """

    def __init__(
        self, functional: Functional, parameters: Mapping = QUASI_NEWTON, limits: Limits | None = None, *,
        coordinates: Coordinates | None = None, curvature: str = "gauss_newton",
        forcing: float | Callable[[float], float] = 0.1, preconditioner: KrylovPreconditioner | None = None,
        initial_hessian: InitialHessian | None = None, refresh: int = 5,
        callback: Callback | None = None, accuracies: Accuracies | None = None,
        course: Course | None = None, checkpoint: Checkpoint | str | Path | None = None, options_prefix: str = "",
    ):
        if curvature not in ("gauss_newton", "hessian"):
            raise ValueError(f"curvature must be 'gauss_newton' or 'hessian', received {curvature!r}.")
        if refresh < 1:
            raise ValueError(f"refresh must be at least 1 iteration, received {refresh!r}.")
        self.functional = functional
        self.coordinates = functional.problem.coordinates(functional.names) if coordinates is None else coordinates
        self._limits = Limits() if limits is None else limits
        self.course = course or Course(
            self._limits, functional.work, functional.comm, callback, accuracies,
            self._journal(checkpoint, initial_hessian, dict(parameters)))
        self._curvature = curvature
        self._forcing = forcing if callable(forcing) else (lambda _: forcing)
        self._preconditioner, self._initial, self._refresh = preconditioner, initial_hessian, refresh
        self._products, self._offset, self._started = 0, 0, 0
        self._reason: str | None = None
        self._raised: BaseException | None = None
        self._evaluation = Evaluation(functional, self.coordinates, self.course)
        self._settings = dict(parameters), options_prefix
        with same_digits():
            self._create(*self._settings)
        self._continues = False

    @property
    def history(self) -> History:
        return self.course.history

    def over(self, functional: Functional, limits: Limits, course: Course | None = None) -> TaoOptimiser:
        """Return this optimiser for another sample's, or mesh's, functional; its next solve has the last one's secants.

        That is so for ``tao_lmvm_recycle``, where it starts from the last iterate; otherwise it starts afresh. It goes
        on with its own record unless it is given another ``course``.
        """
        self.functional, self._limits, self._reason = functional, limits, None
        self.course = course or self.course
        self._evaluation, self._continues = Evaluation(functional, self.coordinates, self.course), True
        if self._initial is not None:
            self._initial = self._initial.over(functional)
        return self

    def _journal(
        self, checkpoint: Checkpoint | str | Path | None, initial: InitialHessian | None, options: dict
    ) -> Journal:
        """Return the journal of this run alone."""
        functional = self.functional
        if checkpoint is None:
            return Journal(None, functional.comm)
        x = self.coordinates.array([c.control for c in Enlist(functional.controls)])
        return Journal(
            checkpoint_of(checkpoint), functional.comm,
            {"controls": ", ".join(functional.names), "images": functional.images, "start": x,
             "options": str(sorted(options.items())), **numbering(functional.problem)},
            [*functional.problem.average.generators, *([] if initial is None else initial.generators)])

    # What a journal keeps and restores.

    def state(self) -> Halves:
        """Return what the next answer depends on; see :class:`~ctrlnet.optimise.journal.Resumable`."""
        shared, own = self.functional.state()
        initial = {} if self._initial is None else self._initial.state()
        return {"functional": shared, "initial": initial}, own

    def restore(self, shared: State, own: State) -> None:
        """Go back to a state; see :class:`~ctrlnet.optimise.journal.Resumable`."""
        self.functional.restore(shared["functional"], own)
        if self._initial is not None:
            self._initial.restore(shared["initial"])

    def revive(self) -> None:
        """Propagate what was propagated in that state."""
        with self.course.uncounted():
            self.functional.revive()

    # PETSc objects.

    def _create(self, parameters: dict, prefix: str) -> None:
        size = self.coordinates.size
        self._x = PETSc.Vec().createSeq(size, comm=COMM_SELF)
        self._tao = tao = PETSc.TAO().create(comm=COMM_SELF)
        tao.setObjectiveGradient(self._keeping(self._objective_gradient))
        tao.setObjective(self._keeping(lambda _, x: self._evaluation.value(x.array_r)))
        tao.setGradient(self._keeping(lambda _, x, g: g.setArray(self._evaluation.gradient(x.array_r))))
        petsctools.set_from_options(
            tao, parameters=parameters | {"tao_max_it": 10**8, "tao_max_funcs": 10**8}, options_prefix=prefix)
        kind = tao.getType()
        if kind in _WITH_HESSIAN:
            self._hessian = _symmetric(size, _Shell(self._keeping(self._product)))
            tao.setHessian(self._keeping(self._new_hessian), self._hessian)
            pc = tao.getKSP().getPC()
            if self._preconditioner is not None:
                pc.setType(PETSc.PC.Type.PYTHON)
                pc.setPythonContext(self._preconditioner)
            else:
                pc.setType(PETSc.PC.Type.NONE)
        if self._initial is not None:
            if kind not in _WITH_SECANTS:
                raise ValueError(
                    f"An initial Hessian belongs to a quasi-Newton method ({', '.join(_WITH_SECANTS)}), "
                    f"received tao_type {kind!r}.")
            self._J0 = _symmetric(size, _Shell(
                self._answered(lambda x: self._initial.apply(x)), self._answered(lambda g: self._initial.solve(g))))
            self._J0.setOption(PETSc.Mat.Option.SPD, True)
            tao.setUpdate(self._keeping(self._update))
        tao.setMonitor(self._keeping(self._monitor))
        tao.setConvergenceTest(self._keeping(self._test))
        tao.setSolution(self._x)
        if self._initial is not None and kind != "bqnls":
            tao.setLMVMH0(self._J0)
        with petsctools.inserted_options(tao):
            tao.setUp()
        if self._initial is not None and kind == "bqnls":
            tao.getLMVMMat().setLMVMJ0(self._J0)

    # Callbacks.

    def _keeping(self, callback: Callable) -> Callable:
        """Return a callback of PETSc's that keeps what it raises, of which PETSc passes on a number alone."""
        def kept(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except BaseException as error:
                self._raised = error
                raise

        return kept

    def _answered(self, compute: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """Return a map whose values the journal keeps."""
        return self._keeping(lambda x: self.course.journal.answer(lambda: compute(x)))

    def _objective_gradient(self, _, x: PETSc.Vec, g: PETSc.Vec) -> float:
        value = self._evaluation.value(x.array_r)
        g.setArray(self._evaluation.gradient(x.array_r))
        return value

    def _product(self, x: np.ndarray) -> np.ndarray:
        self._products += 1
        out = self.course.journal.answer(lambda: self.coordinates.dual_array(
            Enlist(getattr(self.functional, self._curvature)(self.coordinates.functions(x)))))
        if self._preconditioner is not None:
            self._preconditioner.saw(x, out)
        return out

    def _new_hessian(self, tao: PETSc.TAO, x: PETSc.Vec, H: PETSc.Mat, P: PETSc.Mat) -> None:
        self._evaluation.value(x.array_r)
        H.getPythonContext().unshift()
        first, last = self.history.iterations[self.course.first], self.history.last
        tao.getKSP().setTolerances(rtol=float(self._forcing(last.gradient_norm / first.gradient_norm)))
        if self._preconditioner is not None:
            self._preconditioner.renew()

    def _update(self, tao: PETSc.TAO, iteration: int) -> None:
        if iteration % self._refresh == 0:
            self._evaluation.value(self._x.array_r)
            self.course.journal.answer(self._refreshed)
            self._J0.stateIncrease()  # its products are kept until it says that it changed

    def _refreshed(self) -> np.ndarray:
        """Form the initial Hessian anew; it is part of the state, and there is no number to answer."""
        self._initial.refresh()
        return np.empty(0)

    def _monitor(self, tao: PETSc.TAO) -> None:
        number, objective, gradient_norm, _, step, _ = tao.getSolutionStatus()
        x = self._x.array_r.copy()
        self._evaluation.value(x)
        self.course.record(
            x, lambda: self._all_controls(x), objective, self._evaluation.loss, gradient_norm, step,
            self._number(number), self._products, self.functional.images)
        self._products = 0

    def _number(self, of_tao: int) -> int:
        """Return the iteration's number in the whole course; a search that starts anew has made a step."""
        again = len(self.history.iterations) > self.course.first and self._offset > self._started
        return self._offset + of_tao + again

    def _all_controls(self, x: np.ndarray) -> Controls:
        return self.functional.all_controls(self.coordinates.functions(x))

    def _test(self, tao: PETSc.TAO) -> None:
        self._reason = self.course.reason_to_stop(self._limits)
        self.course.journal.keep(now=self._reason is not None)
        if self._reason is not None:
            tao.setConvergedReason(PETSc.TAO.ConvergedReason.CONVERGED_USER)

    def _start(self) -> None:
        """Set the starting point; a difference of points and gradients must not be one of two samples."""
        x = self.coordinates.array([c.control for c in Enlist(self.functional.controls)])
        if self._continues:
            if np.abs(x - self._x.array_r).max() <= 1e-12 * np.abs(x).max():
                return
            with same_digits():
                self._create(*self._settings)
        self._x.setArray(x)

    def solve(self) -> Controls:
        """Minimise from the controls' values and return the best controls; :attr:`history` says how it went.

        A limit, Ctrl-C, or a search that finds no descent ends the run; none of them is an error. The functional is
        left evaluated at the controls returned.

        Raises
        ------
        EvaluationError
            If the starting point itself cannot be evaluated.
        """
        self.course.begin()
        self._offset = self._started = self.history.last.number if self.history.iterations else 0
        self.course.journal.attend(self)
        self._start()
        self._evaluation.require(self._x.array_r)
        with self.course, same_digits(), petsctools.inserted_options(self._tao):
            while True:
                self._search()
                self._offset, (value, x) = self.history.last.number, self._evaluation.least
                # A search that stopped short, at the edge of what can be evaluated for example, may have got lower.
                if self._reason is not None or not value < self.course.least - 1e-10 * abs(value):
                    break
                self._x.setArray(x)
        if self._reason is None:
            code = self._tao.getConvergedReason()
            self._reason = _REASONS.get(code, f"TAO reason {code}")
        self.history.reason = self._reason
        self._evaluation.value(self.course.best)
        self.course.journal.settle()
        return self.coordinates.functions(self.course.best)

    def _search(self) -> None:
        self._raised = None
        try:
            self._tao.solve()
        except PETSc.Error:
            if self._raised is None:
                raise
            raise self._raised from None


_REASONS = {
    PETSc.TAO.ConvergedReason.DIVERGED_LS_FAILURE: "line search found no descent",
    PETSc.TAO.ConvergedReason.DIVERGED_TR_REDUCTION: "trust region found no descent",
    PETSc.TAO.ConvergedReason.CONVERGED_STEPTOL: "step too small",
}


def _symmetric(size: int, shell: _Shell) -> PETSc.Mat:
    out = PETSc.Mat().createPython(((size, size), (size, size)), shell, comm=COMM_SELF)
    out.setOption(PETSc.Mat.Option.SYMMETRIC, True)
    out.setUp()
    return out


class _Shell:
    """A matrix of PETSc's by its products, and by its inverse where it has one; TAO's line searches shift it."""

    def __init__(self, apply: Callable, solve: Callable | None = None):
        self._apply, self._shift = apply, 0.0
        if solve is not None:
            self.solve = lambda _, b, x: x.setArray(solve(b.array_r))

    def mult(self, _, x: PETSc.Vec, y: PETSc.Vec) -> None:
        y.setArray(self._apply(x.array_r) + self._shift * x.array_r)

    def shift(self, _, amount: float) -> None:
        self._shift += amount

    def unshift(self) -> None:
        self._shift = 0.0
