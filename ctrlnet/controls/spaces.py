r"""Controls s(t), b(t) and learned parameters: finite-element functions of time, on a hierarchy of interval meshes.

The time meshes live on ``COMM_SELF``: every rank holds its own, identical copy, whatever the spatial mesh
does. A control is an ordinary Firedrake Function, so pyadjoint, UFL regularisation and ``prolong`` apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any
from zlib import crc32

import numpy as np
import ufl
from firedrake import (
    CellVolume,
    Constant,
    Function,
    FunctionSpace,
    MeshHierarchy,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    assemble,
    avg,
    dS,
    dx,
    elem_mult,
    inner,
    prolong,
    restrict,
)
from pyadjoint import stop_annotating

from ctrlnet.controls.control_set import ControlSet
from ctrlnet.controls.controls import Controls, ControlsLike
from ctrlnet.controls.linear_map import array_products, mapped
from ctrlnet.controls.own_meshes import own_mesh
from ctrlnet.controls.parts import ReplicatedPart
from ctrlnet.controls.times import checked_times, divided, time_mesh
from ctrlnet.errors import NotPickled, finite

__all__ = ["BEFORE_JUMP", "ControlSpace"]

# As a share of T: a time that is so little before a jump is before it, one that is a tenth of that is at it.
BEFORE_JUMP = 1e-12


class ControlSpace(NotPickled):
    r"""Spaces of the coefficients s_j(t) (C x C for each of J operators), the biases b(t) (C) and learned parameters.

    Parameters
    ----------
    T
        Final time; time starts at 0.
    cells
        Control cells of the coarsest time mesh, at least 1, of equal size; or the times
        :math:`0 = \tau_0 < \dots < \tau_M = T` between which they lie. Independent of the time steps.
    operators
        J, the number of operators, or anything with a length.
    features
        C.
    degree
        0: piecewise constant (DG0, one value a layer: the plain ResNet). 1: continuous, piecewise linear.
    refinements
        How many times :meth:`finer` can halve the control cells.
    parameters
        Names of further functions of time that the dynamics learn, scalar controls of their own; see
        :class:`~ctrlnet.ReactionDiffusion`.

    Attributes
    ----------
    s_space, b_space
        Vector spaces on the time mesh. A value of s is the C-order flattening of ``s[j, out, in]``.
    control_set : ControlSet
        The controls ``s``, ``b`` and the parameters, by their names.
    cells : int
        M.
    times
        Of the cells' ends, (M + 1,).
    depth
        M where the cells are of equal size, and else the times.
    mesh
        Of time, on every rank the whole of it. Its name is the same in every process, so that Firedrake's
        CheckpointFile can load onto it: ``s.assign(file.load_function(space.mesh, "s"))``.

    Raises
    ------
    ValueError
        If T, cells, features or operators is not positive, a count is no integer, degree is neither 0 nor 1, or times
        of cells do not run from 0 to T.
    """

    def __init__(
        self, T: float, cells: int | Sequence[float] | np.ndarray, operators: int | Sequence, features: int,
        degree: int = 0, refinements: int = 0, parameters: Sequence[str] = (),
    ):
        count: Any = operators if isinstance(operators, int | Integral) else len(operators)
        if not (finite(T) and T > 0):
            raise ValueError(f"The final time T must be positive and finite, received {T!r}.")
        ends = None
        if isinstance(cells, Sequence | np.ndarray) and not isinstance(cells, str):
            ends = checked_times(cells, "the control cells", T)
            cells = len(ends) - 1
        for what, value in (("cells", cells), ("features", features), ("refinements", refinements)):
            if not isinstance(value, Integral):
                raise ValueError(f"A control space needs a whole number of {what}, received {value!r}.")
        for what, value in (("cells", cells), ("operators", count), ("features", features)):
            if value < 1:
                raise ValueError(f"A control needs at least one of {what}, received {value!r}.")
        if degree not in (0, 1):
            raise ValueError(f"degree must be 0 (piecewise constant) or 1 (continuous linear), received {degree!r}.")
        if refinements < 0:
            raise ValueError(f"refinements must not be negative, received {refinements!r}.")
        if isinstance(parameters, str | Integral):
            raise ValueError(
                f"parameters are a sequence of names, such as ('log_diffusivity',); received {parameters!r}.")
        hierarchy = MeshHierarchy(time_mesh(float(T), int(cells), ends), int(refinements))
        depth = int(cells) if ends is None else ends
        self._setup(T, depth, int(count), int(features), int(degree), tuple(parameters), hierarchy, 0)

    def _setup(self, T, depth, operators, features, degree, parameters, hierarchy, level) -> None:
        equal = isinstance(depth, int)
        cells = depth if equal else len(depth) - 1
        self.T, self.cells, self.degree, self.depth = float(T), cells, degree, depth
        self.times = self.T / cells * np.arange(cells + 1) if equal else depth
        self.operators, self.features, self.parameters = operators, features, parameters
        self._hierarchy, self._level = hierarchy, level
        # A finer level has the parts of its coarser ones' cells in another order than a mesh of as many cells.
        mark = "" if equal else f"_{crc32(depth.tobytes()):08x}"
        self.mesh = own_mesh(hierarchy[level], f"ctrlnet_time_{self.T!r}_{cells >> level}x{2**level}{mark}")
        family = "CG" if degree else "DG"
        self._scalar_space = FunctionSpace(self.mesh, family, degree)
        self.s_space = VectorFunctionSpace(self.mesh, family, degree, dim=operators * features**2)
        self.b_space = VectorFunctionSpace(self.mesh, family, degree, dim=features)
        self.control_set = ControlSet([
            ReplicatedPart("s", self.s_space), ReplicatedPart("b", self.b_space),
            *(ReplicatedPart(name, self._scalar_space) for name in parameters)])

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
        depth = 2 * self.cells if isinstance(self.depth, int) else divided(self.depth, 2)
        space._setup(
            self.T, depth, self.operators, self.features, self.degree, self.parameters, self._hierarchy,
            self._level + 1)
        return space

    def precedes(self, other: ControlSpace) -> bool:
        """Whether the other space is a finer level of the same hierarchy, for the same operators and features."""
        mine, theirs = ((c.operators, c.features, c.degree, c.parameters) for c in (self, other))
        return mine == theirs and self._hierarchy is other._hierarchy and other._level > self._level

    def prolong(self, m: ControlsLike, target: ControlSpace) -> Controls:
        """Prolong controls of this space to a finer one of its hierarchy: more layers, same functions of time.

        Taped: a derivative goes through it.
        """
        fine = target.control_set.zero()
        self.control_set.check_finite(m)
        for coarse, function in zip(self.control_set.controls(m), fine, strict=True):
            mapped(coarse, function, prolong, restrict)
        return fine

    def with_cells(self, cells: int | Sequence[float] | np.ndarray) -> ControlSpace:
        """Return the space of the same controls with other control cells, the first of a time hierarchy of its own."""
        return ControlSpace(
            self.T, cells, self.operators, self.features, self.degree, parameters=self.parameters)

    def interpolate(self, m: ControlsLike, target: ControlSpace) -> Controls:
        """Return controls of this space in another one of the same time: its nodes' values, of cells their midpoints'.

        The functions of time stay as they are where the target's cells divide this space's. Taped.
        """
        self.control_set.check_finite(m)
        E = self.sampling(target._times)
        out = target.control_set.zero()
        for mine, theirs in zip(self.control_set.controls(m), out, strict=True):
            mapped(mine, theirs, *array_products(E))
        return out

    def ordered(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return degrees of freedom by name with the rows of controls in time in the order of their times."""
        return {n: a[self._order] if n in self.control_set.names else a for n, a in arrays.items()}

    def numbered(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what :meth:`ordered` was given: rows in the numbering of this very space."""
        number = np.argsort(self._order)
        return {n: a[number] if n in self.control_set.names else a for n, a in arrays.items()}

    def zero(self) -> Controls:
        """Return controls in time that are zero."""
        return self.control_set.zero()

    def random(self, rng: np.random.Generator, scale: float = 0.1) -> Controls:
        """Return controls with normal coefficients s of standard deviation ``scale``; the others are zero.

        The draw runs along time, so it does not depend on the mesh's numbering or on the rank count.

        Raises
        ------
        ValueError
            If the standard deviation is negative or not finite.
        """
        if not (finite(scale) and scale >= 0):
            raise ValueError(f"Coefficients are drawn with a standard deviation from 0, received scale={scale!r}.")
        out = self.zero()
        out.s.dat.data[self._order] = scale * rng.standard_normal(out.s.dat.data_ro.shape)
        return out

    @cached_property
    def _times(self) -> np.ndarray:
        """Time of each degree of freedom, in the space's own numbering."""
        with stop_annotating():
            (time,) = SpatialCoordinate(self.mesh)
            return Function(self._scalar_space).interpolate(time).dat.data_ro.copy()

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self._times)

    def sampling(self, times: np.ndarray) -> np.ndarray:
        r"""Return the matrix E (times, degrees of freedom) that evaluates a control at ``times``.

        A piecewise constant control jumps; its value at a jump is the one that follows.
        """
        times, ends = np.asarray(times), self.times
        out = np.zeros((times.size, self._times.size))
        cell = np.searchsorted(ends, times + 0.1 * BEFORE_JUMP * self.T, side="right") - 1
        cell = np.clip(cell, 0, self.cells - 1)
        rows = np.arange(times.size)
        if self.degree == 0:
            out[rows, self._order[cell]] = 1.0
        else:
            right = np.clip((times - ends[cell]) / (ends[cell + 1] - ends[cell]), 0.0, 1.0)
            out[rows, self._order[cell]] = 1.0 - right
            out[rows, self._order[cell + 1]] += right
        return out

    def sampled(
        self, sampling: np.ndarray, arrays: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the controls at the sampled times.

        Parameters
        ----------
        sampling
            See :meth:`sampling`.
        arrays
            Degrees of freedom by name, as :meth:`ControlSet.arrays` gives them; others besides are left out.

        Returns
        -------
        coefficients, biases, parameters
            (times, J, C, C), indexed ``[time, j, out, in]``; (times, C); and (times, P) for P learned parameters.
        """
        s, b, *learned = (sampling @ arrays[name] for name in self.control_set.names)
        parameters = np.concatenate(learned, axis=1) if learned else np.zeros((sampling.shape[0], 0))
        return s.reshape(-1, self.operators, self.features, self.features), b, parameters

    def sampled_adjoint(
        self, sampling: np.ndarray, coefficients: np.ndarray, biases: np.ndarray, parameters: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return derivatives with respect to the controls from those with respect to their values at sampled times.

        The arrays are those of :meth:`sampled`; they may all have a last axis more, which is carried along.

        Returns
        -------
        dict
            By name, (rows, components) as :meth:`ControlSet.cofunctions` takes them.
        """
        trailing = biases.shape[2:]
        columns = [
            coefficients.reshape(len(coefficients), -1, *trailing), biases,
            *(parameters[:, k : k + 1] for k in range(parameters.shape[1]))]
        return {
            name: np.tensordot(sampling.astype(values.dtype, copy=False), values, axes=(0, 0))
            for name, values in zip(self.control_set.names, columns, strict=True)}

    def regularisation(
        self, m: ControlsLike, size: float = 0.0, roughness: float = 0.0,
        scales: Sequence[float] | None = None,
    ) -> ufl.Form:
        r"""Return the UFL form of the controls' regularisation,

        .. math:: \frac{\alpha}{2}\int \sum_j \omega_j^2|s_j|^2 + |b|^2\,dt
            + \frac{\gamma}{2}\int \sum_j \omega_j^2|\dot s_j|^2 + |\dot b|^2\,dt,

        learned parameters as b. For piecewise constant controls the second term is that of the jumps over the
        distance of the cells' midpoints, :math:`\sum |[s]|^2/\Delta t`.

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
        s, *others = self.control_set.controls(m)
        omega = np.ones(self.operators) if scales is None else self.checked_scales(scales)
        weight = Constant(np.repeat(omega**2, self.features**2))
        form = self._bilinear(s, s, size, roughness, lambda u, v: inner(elem_mult(weight, u), v))
        for other in others:
            form += self._bilinear(other, other, size, roughness, inner)
        return Constant(0.5) * form

    def _bilinear(self, u, v, size: float, roughness: float, product: Callable) -> ufl.Form:
        """Return alpha int u v + gamma int u' v' (or its jumps) for a pointwise product of u and v."""
        if not (finite(size, roughness) and min(size, roughness) >= 0):
            raise ValueError(
                f"Regularisation weights must not be negative, and finite; received size={size!r}, "
                f"roughness={roughness!r}."
            )
        alpha, gamma = Constant(size), Constant(roughness)
        form = alpha * product(u, v) * dx
        if self.degree:
            form += gamma * product(u.dx(0), v.dx(0)) * dx
        elif self.cells > 1:
            form += gamma / avg(CellVolume(self.mesh)) * product(u("+") - u("-"), v("+") - v("-")) * dS
        return form

    def regularisation_matrix(self, size: float = 0.0, roughness: float = 0.0) -> np.ndarray:
        """Return the matrix of the same form for one scalar control, over its degrees of freedom in time."""
        u, v = TrialFunction(self._scalar_space), TestFunction(self._scalar_space)
        with stop_annotating():
            return assemble(self._bilinear(u, v, size, roughness, lambda p, q: p * q)).petscmat[:, :]

    def checked_scales(self, scales: Sequence[float]) -> np.ndarray:
        """Return the operators' scales as an array, if they are J positive numbers."""
        omega = np.asarray(scales, dtype=float)
        if omega.shape != (self.operators,) or not ((omega > 0) & (omega < np.inf)).all():
            raise ValueError(
                f"scales must be {self.operators} positive, finite numbers, one an operator; received {omega}.")
        return omega

