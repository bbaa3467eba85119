r"""Controls s(t), b(t): finite-element functions of time, on a hierarchy of interval meshes.

The time meshes live on ``COMM_SELF``: every rank holds its own, identical copy, whatever the spatial mesh
does. A control is an ordinary Firedrake Function, so pyadjoint, UFL regularisation and ``prolong`` apply.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from firedrake import (
    COMM_SELF,
    Cofunction,
    Constant,
    Function,
    FunctionSpace,
    IntervalMesh,
    MeshHierarchy,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    assemble,
    dS,
    dx,
    elem_mult,
    inner,
    prolong,
)
from pyadjoint import stop_annotating

__all__ = ["BEFORE_JUMP", "ControlSpace"]

# As a share of T: a time that is so little before a jump is before it, one that is a tenth of that is at it.
BEFORE_JUMP = 1e-12


class ControlSpace:
    r"""Spaces of the coefficients s_j(t) (C x C for each of J operators) and the biases b(t) (C).

    Parameters
    ----------
    T
        Final time; time starts at 0.
    cells
        Control cells of the coarsest time mesh, at least 1. Independent of the number of time steps.
    operators
        J, the number of operators, or anything with a length.
    features
        C.
    degree
        0: piecewise constant (DG0, one value a layer: the plain ResNet). 1: continuous, piecewise linear.
    refinements
        How many times :meth:`finer` can halve the control cells.
    parameters
        Further functions of time that the dynamics learn, the last components of b; see
        :class:`~ctrlnet.ReactionDiffusion`.

    Attributes
    ----------
    s_space, b_space
        Vector spaces on the time mesh. A value of s is the C-order flattening of ``s[j, out, in]``, one of b the C
        biases and the parameters.

    Raises
    ------
    ValueError
        If T, cells, features or operators is not positive, or degree is neither 0 nor 1.
    """

    def __init__(
        self, T: float, cells: int, operators, features: int, degree: int = 0, refinements: int = 0, parameters: int = 0
    ):
        count = operators if isinstance(operators, int) else len(operators)
        if not 0 < T < np.inf:
            raise ValueError(f"The final time T must be positive and finite, received {T!r}.")
        for what, value in (("cells", cells), ("operators", count), ("features", features)):
            if value < 1:
                raise ValueError(f"A control needs at least one of {what}, received {value!r}.")
        if degree not in (0, 1):
            raise ValueError(f"degree must be 0 (piecewise constant) or 1 (continuous linear), received {degree!r}.")
        for what, value in (("refinements", refinements), ("parameters", parameters)):
            if value < 0:
                raise ValueError(f"{what} must not be negative, received {value!r}.")
        hierarchy = MeshHierarchy(IntervalMesh(cells, T, comm=COMM_SELF), refinements)
        self._setup(T, cells, count, features, degree, parameters, hierarchy, 0)

    def _setup(self, T, cells, operators, features, degree, parameters, hierarchy, level) -> None:
        self.T, self.cells, self.degree = float(T), cells, degree
        self.operators, self.features, self.parameters = operators, features, parameters
        self._hierarchy, self._level = hierarchy, level
        self.mesh = hierarchy[level]
        family = "CG" if degree else "DG"
        self.s_space = VectorFunctionSpace(self.mesh, family, degree, dim=operators * features**2)
        self.b_space = VectorFunctionSpace(self.mesh, family, degree, dim=features + parameters)

    def finer(self) -> ControlSpace:
        """Return the space with twice the control cells.

        Raises
        ------
        ValueError
            If the hierarchy has no finer mesh; build it with more ``refinements``.
        """
        if self._level + 1 >= len(self._hierarchy):
            raise ValueError(
                f"The time hierarchy ends at {self.cells} cells. Build the ControlSpace with "
                f"refinements={self._level + 1} or more."
            )
        space = object.__new__(ControlSpace)
        space._setup(
            self.T, 2 * self.cells, self.operators, self.features, self.degree, self.parameters, self._hierarchy,
            self._level + 1)
        return space

    def precedes(self, other: ControlSpace) -> bool:
        """Whether the other space is a finer level of the same hierarchy, for the same operators and features."""
        mine, theirs = ((c.operators, c.features, c.degree, c.parameters) for c in (self, other))
        return mine == theirs and self._hierarchy is other._hierarchy and other._level > self._level

    def prolong(self, s: Function, b: Function, target: ControlSpace) -> tuple[Function, Function]:
        """Prolong controls of this space to a finer one of its hierarchy: more layers, same functions of time."""
        with stop_annotating():
            fine = target.functions()
            prolong(s, fine[0])
            prolong(b, fine[1])
        return fine

    def functions(self) -> tuple[Function, Function]:
        """Return zero controls (s, b)."""
        return Function(self.s_space, name="s"), Function(self.b_space, name="b")

    def random(self, rng: np.random.Generator, scale: float = 0.1) -> tuple[Function, Function]:
        """Return controls with normal coefficients of standard deviation ``scale``; b is zero.

        The draw runs along time, so it does not depend on the mesh's numbering or on the rank count.
        """
        s, b = self.functions()
        s.dat.data[self._order] = scale * rng.standard_normal(s.dat.data_ro.shape)
        return s, b

    @cached_property
    def _duals(self):
        return self.s_space.dual(), self.b_space.dual()

    @cached_property
    def _times(self) -> np.ndarray:
        """Time of each degree of freedom, in the space's own numbering."""
        with stop_annotating():
            (time,) = SpatialCoordinate(self.mesh)
            return Function(self._scalar_space).interpolate(time).dat.data_ro.copy()

    @cached_property
    def _scalar_space(self):
        return FunctionSpace(self.mesh, "CG" if self.degree else "DG", self.degree)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self._times)

    def sampling(self, times: np.ndarray) -> np.ndarray:
        r"""Return the matrix E (times, degrees of freedom) that evaluates a control at ``times``.

        A piecewise constant control jumps; its value at a jump is the one that follows.
        """
        position = np.asarray(times) / self.T * self.cells
        out = np.zeros((position.size, self._times.size))
        cell = np.minimum(np.floor(position + 0.1 * BEFORE_JUMP * self.cells).astype(int), self.cells - 1)
        rows = np.arange(position.size)
        if self.degree == 0:
            out[rows, self._order[cell]] = 1.0
        else:
            right = np.clip(position - cell, 0.0, 1.0)
            out[rows, self._order[cell]] = 1.0 - right
            out[rows, self._order[cell + 1]] += right
        return out

    def s_layers(self, sampling: np.ndarray, s: Function) -> np.ndarray:
        """Return s at the sampled times as (layers, J, C, C)."""
        shape = (self.operators, self.features, self.features)
        return (sampling @ s.dat.data_ro.reshape(sampling.shape[1], -1)).reshape(-1, *shape)

    def b_layers(self, sampling: np.ndarray, b: Function) -> np.ndarray:
        """Return b at the sampled times as (layers, C), with parameters (layers, C + parameters)."""
        return sampling @ b.dat.data_ro.reshape(sampling.shape[1], -1)

    def cofunctions(self) -> tuple[Cofunction, Cofunction]:
        """Return zeros in S* x B*."""
        return tuple(Cofunction(dual) for dual in self._duals)

    def s_cofunction(self, sampling: np.ndarray, gradient: np.ndarray) -> Cofunction:
        """Return the derivative with respect to s: layers' derivatives (layers, J, C, C) -> s_space*."""
        return _cofunction(self._duals[0], sampling, gradient)

    def b_cofunction(self, sampling: np.ndarray, gradient: np.ndarray) -> Cofunction:
        """Return the derivative with respect to b: layers' derivatives (layers, C) -> b_space*."""
        return _cofunction(self._duals[1], sampling, gradient)

    def regularisation(self, s: Function, b: Function, size: float = 0.0, roughness: float = 0.0, scales=None):
        r"""Return the UFL form of the controls' regularisation,

        .. math:: \frac{\alpha}{2}\int \sum_j \omega_j^2|s_j|^2 + |b|^2\,dt
            + \frac{\gamma}{2}\int \sum_j \omega_j^2|\dot s_j|^2 + |\dot b|^2\,dt.

        For piecewise constant controls the second term is that of the jumps over the distance of the
        cells' midpoints, :math:`\sum |[s]|^2/\Delta t`.

        Parameters
        ----------
        size, roughness
            alpha and gamma, not negative.
        scales
            omega (J,), positive; default 1. The norm of :math:`D_j` on the finest mesh makes a coefficient
            that is small on a coarse mesh one that is small on the fine mesh too.

        Raises
        ------
        ValueError
            If a weight is negative, or the scales are not J positive numbers.
        """
        scales = np.ones(self.operators) if scales is None else self.checked_scales(scales)
        weight = Constant(np.repeat(scales**2, self.features**2))
        return Constant(0.5) * (
            self._bilinear(s, s, size, roughness, lambda u, v: inner(elem_mult(weight, u), v))
            + self._bilinear(b, b, size, roughness, inner)
        )

    def _bilinear(self, u, v, size: float, roughness: float, product):
        """Return alpha int u v + gamma int u' v' (or its jumps) for a pointwise product of u and v."""
        if size < 0 or roughness < 0:
            raise ValueError(
                f"Regularisation weights must not be negative, received size={size!r}, roughness={roughness!r}."
            )
        alpha, gamma = Constant(size), Constant(roughness)
        form = alpha * product(u, v) * dx
        if self.degree:
            form += gamma * product(u.dx(0), v.dx(0)) * dx
        elif self.cells > 1:
            form += gamma / Constant(self.T / self.cells) * product(u("+") - u("-"), v("+") - v("-")) * dS
        return form

    def regularisation_matrix(self, size: float = 0.0, roughness: float = 0.0) -> np.ndarray:
        """Return the matrix of the same form for one scalar control, over its degrees of freedom in time."""
        u, v = TrialFunction(self._scalar_space), TestFunction(self._scalar_space)
        with stop_annotating():
            return assemble(self._bilinear(u, v, size, roughness, lambda p, q: p * q)).petscmat[:, :]

    def checked_scales(self, scales) -> np.ndarray:
        """Return the operators' scales as an array, if they are J positive numbers."""
        scales = np.asarray(scales, dtype=float)
        if scales.shape != (self.operators,) or not (scales > 0).all():
            raise ValueError(f"scales must be {self.operators} positive numbers, one an operator; received {scales}.")
        return scales


def _cofunction(dual, sampling: np.ndarray, gradient: np.ndarray) -> Cofunction:
    out = Cofunction(dual)
    out.dat.data[:] = (sampling.T @ gradient.reshape(gradient.shape[0], -1)).reshape(out.dat.data_ro.shape)
    return out
