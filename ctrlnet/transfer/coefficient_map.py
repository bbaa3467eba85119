r"""Linear maps of operator coefficients, J_from -> J_to: what every way to move a kernel comes down to.

A kernel is :math:`\sum_j s_j D_j` with one coefficient (a C x C matrix of features) for each operator. Moving
it to another mesh, by whatever method, is linear in s and the same for every entry of the feature mixing and
at every time: :math:`s'_k = \sum_j T_{kj} s_j`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from firedrake import Cofunction, Function, VectorFunctionSpace

from ctrlnet.controls import mapped

__all__ = ["CoefficientMap", "TransferResidual", "SingularTransferError"]

# Singular values below this share of the largest one are zero.
_SINGULAR = 1e-10


class SingularTransferError(ArithmeticError):
    """A coarse kernel does not determine a fine one: the small linear system is singular."""


@dataclass(frozen=True)
class TransferResidual:
    r"""What a projection leaves over, as two quadratic forms of the coefficients s.

    Parameters
    ----------
    energy, defect
        Symmetric (J_from, J_from): :math:`s^T E s` is the squared norm of the exact transferred operator and
        :math:`s^T D s` the squared norm of what its projection to the target's operators leaves over.
    """

    energy: np.ndarray
    defect: np.ndarray

    @classmethod
    def none(cls, count: int) -> TransferResidual:
        """Return that of an exact transfer."""
        return cls(np.zeros((count, count)), np.zeros((count, count)))

    def relative(self, columns: np.ndarray) -> float:
        """Return the relative residual over all columns (J_from, columns) together."""
        size, left = (float(np.einsum("jc,jk,kc->", columns, form, columns)) for form in (self.energy, self.defect))
        return math.sqrt(max(left, 0.0) / size) if size > 0 else 0.0


@dataclass(frozen=True)
class CoefficientMap:
    r"""The map :math:`s' = T s` between the coefficients of two sets of operators.

    Parameters
    ----------
    matrix
        T, (J_to, J_from).
    source, target
        Names of the operators on either side.
    fit, operator
        Residuals of the projection in the inner product it was made in, and in the Hilbert-Schmidt norm, which counts
        rough functions like smooth ones.
    source_norms, target_norms
        Norms of the operators on either side, in which the conditioning is measured.
    parts
        The maps that this one is composed of, first to last; empty for a single one.
    """

    matrix: np.ndarray
    source: tuple[str, ...]
    target: tuple[str, ...]
    fit: TransferResidual = field(repr=False)
    operator: TransferResidual = field(repr=False)
    source_norms: np.ndarray = field(repr=False)
    target_norms: np.ndarray = field(repr=False)
    parts: tuple[CoefficientMap, ...] = field(default=(), repr=False)

    def __call__(self, s: Function) -> Function:
        """Return the moved control: a Function of time with J_to C x C coefficients, on the same time mesh. Taped.

        Raises
        ------
        ValueError
            If s does not hold C x C coefficients for each of the J_from operators.
        """
        space = s.function_space()
        copies, rest = divmod(space.value_size, len(self.source))
        if rest or math.isqrt(copies) ** 2 != copies:
            raise ValueError(
                f"A control of {len(self.source)} operators ({', '.join(self.source)}) has {len(self.source)} C^2 "
                f"components, received {space.value_size}. Give the s of a network with these operators."
            )
        same = len(self.source) == len(self.target)
        if not same:
            element = space.ufl_element().sub_elements[0]
            space = VectorFunctionSpace(space.mesh(), element, dim=len(self.target) * copies)
        def write(u: Function | Cofunction, out: Function | Cofunction, matrix: np.ndarray) -> None:
            values = u.dat.data_ro.reshape(-1, matrix.shape[1], copies)
            out.dat.data[:] = np.einsum("kj,tjc->tkc", matrix, values).reshape(out.dat.data_ro.shape)

        return mapped(
            s, Function(space, name=s.name()), lambda u, out: write(u, out, self.matrix),
            lambda g, out: write(g, out, self.matrix.T))

    def coefficients(self, s: np.ndarray) -> np.ndarray:
        """Return T s for coefficients (J_from, ...); trailing axes are carried along."""
        s = np.asarray(s, dtype=float)
        if s.shape[:1] != (len(self.source),):
            raise ValueError(
                f"Coefficients of the {len(self.source)} operators ({', '.join(self.source)}) come on the first axis; "
                f"received the shape {s.shape}."
            )
        return np.tensordot(self.matrix, s, axes=1)

    def residuals(self, s: Function | np.ndarray) -> list[dict[str, float]]:
        r"""Return the relative residuals of the projection for given coefficients, one dict a part.

        ``fit`` is :math:`\|R K_h(s) P - \sum_k s'_k D_k\| / \|R K_h(s) P\|` in the inner product of the projection,
        ``operator`` the same in the Hilbert-Schmidt norm; over all features and times together.

        Parameters
        ----------
        s
            A control, or coefficients (J_from, ...).
        """
        if isinstance(s, Function):
            s = np.moveaxis(s.dat.data_ro.reshape(s.dat.data_ro.shape[0], len(self.source), -1), 1, 0)
        columns = np.asarray(s, dtype=float).reshape(len(self.source), -1)
        out = []
        for part in self.parts or (self,):
            out.append({"fit": part.fit.relative(columns), "operator": part.operator.relative(columns)})
            columns = part.matrix @ columns
        return out

    @property
    def _scaled(self) -> np.ndarray:
        """T between operators of unit norm."""
        return self.target_norms[:, None] * self.matrix / self.source_norms

    @property
    def condition(self) -> float:
        """Condition number of T between operators scaled to unit norm; infinite if T has not full rank."""
        values = np.linalg.svd(self._scaled, compute_uv=False)
        full = self.matrix.shape[0] >= self.matrix.shape[1] and values[-1] > 0
        return float(values[0] / values[-1]) if full else math.inf

    def inverse(self) -> CoefficientMap:
        r"""Return the map back: the coefficients s with :math:`T s = s'`, one small linear system.

        From coarse to fine this is the seed's "assume the same sparsity": of the fine operators in the span of
        the :math:`D_j` there is one whose Galerkin product is the given coarse operator. With more target than
        source operators the system is solved in the sense of least squares.

        Raises
        ------
        SingularTransferError
            If the system is singular; the message names the operators that are not determined.
        """
        scaled = self._scaled
        U, values, Vt = np.linalg.svd(scaled, full_matrices=True)
        rank = int((values > _SINGULAR * values[0]).sum()) if values[0] > 0 else 0
        count = len(self.source)
        if rank < count:
            null = Vt[rank:]
            # Of each operator, its part in combinations that the transfer sends to zero.
            lost = [n for n, w in zip(self.source, np.sqrt((null**2).sum(axis=0)), strict=True) if w > 1e-6]
            raise SingularTransferError(
                f"The system of {count} unknowns from {len(self.target)} coarse coefficients has rank {rank}: "
                f"{', '.join(lost)} are not determined. Leave {count - rank} of them out of the fine operators, or "
                "take another restriction or prolongation."
            )
        back = (Vt[:rank].T / values[:rank]) @ U[:, :rank].T * self.target_norms / self.source_norms[:, None]
        parts = tuple(p.inverse() for p in reversed(self.parts))
        left = np.eye(len(self.target)) - self.matrix @ back
        weight = np.diag(self.target_norms**2)
        residual = TransferResidual(weight, left.T @ weight @ left)
        return CoefficientMap(
            back, self.target, self.source, residual, residual, self.target_norms, self.source_norms, parts)

    def __matmul__(self, first: CoefficientMap) -> CoefficientMap:
        """Return the composition, this map applied last: transfer over several levels."""
        if first.target != self.source:
            raise ValueError(
                f"These maps do not follow each other: the first one ends at the operators {', '.join(first.target)}, "
                f"the next starts from {', '.join(self.source)}."
            )
        none = TransferResidual.none(len(first.source))
        return CoefficientMap(
            self.matrix @ first.matrix, first.source, self.target, none, none, first.source_norms, self.target_norms,
            (*(first.parts or (first,)), *(self.parts or (self,))))

    def __str__(self) -> str:
        width = max(map(len, (*self.source, *self.target, "1"))) + 1
        width = max(width, 10)
        lines = [" " * width + "".join(f"{n:>{width}}" for n in self.source)]
        lines += [
            f"{name:>{width}}" + "".join(f"{v:{width}.4g}" for v in row)
            for name, row in zip(self.target, self.matrix, strict=True)
        ]
        return "\n".join([*lines, f"condition number (operators of unit norm): {self.condition:.3g}"])
