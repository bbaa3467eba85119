r"""The classifier W as fields on a mesh: scores :math:`c_k = \int_\Omega w_k \cdot Y(T)\,dx + \beta_k`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property

import numpy as np
import scipy.sparse as sp
import ufl
from firedrake import (
    COMM_SELF,
    Constant,
    TestFunction,
    TrialFunction,
    UnitIntervalMesh,
    VectorFunctionSpace,
    assemble,
    dx,
    grad,
    inner,
)
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI
from pyadjoint import stop_annotating

from ctrlnet.controls import Controls, ControlSet, ControlsLike, DistributedPart, ReplicatedPart
from ctrlnet.fields.sample import Sample
from ctrlnet.kernels.code.row_product import RowProduct
from ctrlnet.network.network import Network
from ctrlnet.operators.forms import lumped_dx
from ctrlnet.operators.intergrid import interpolation_matrix

__all__ = ["Readout"]


class Readout:
    r"""Scores of a network's final state, with W in a readout space of its own.

    With P the interpolation from the readout space to the network's space and :math:`M_L` its lumped mass, the
    features of an image are the numbers :math:`F = P^T M_L Y(T)`, and its scores :math:`W^T F + \beta`:
    :math:`\int w_k\cdot Y\,dx` by vertex quadrature for :math:`w_k` in the readout space. A coarse readout
    space keeps a few hundred features an image whatever the network's mesh.

    Parameters
    ----------
    network
        Gives C, the space of Y and its mass.
    classes
        K, at least 2.
    space
        Scalar readout space. Default: the network's own. Otherwise one that covers the network's mesh, for example on
        a coarser mesh of the same domain; on a curved surface, on a coarser level of the mesh's own hierarchy, such as
        :func:`~ctrlnet.operators.sphere_hierarchy` makes.

    Attributes
    ----------
    weights_space
        Space of W: C*K components at each readout node, the C-order flattening of ``W[c, k]``.
    bias_space
        Space of beta: K numbers, each rank its own copy.
    control_set : ControlSet
        The controls ``W`` and ``beta``.
    nodes
        Number of readout nodes, of all ranks.

    Raises
    ------
    ValueError
        If there are fewer than 2 classes, the readout space is not scalar or is that of constants, or its mesh does
        not cover the network's.
    """

    def __init__(self, network: Network, classes: int, space: WithGeometry | None = None):
        if classes < 2:
            raise ValueError(f"A classifier needs at least 2 classes, received {classes!r}.")
        self.network = network
        self.classes = classes
        self.space = network.space if space is None else _checked(space)
        self.comm = network.comm
        C = network.features
        self.weights_space = VectorFunctionSpace(self.space.mesh(), self.space.ufl_element(), dim=C * classes)
        self.bias_space = _numbers(classes)
        part = DistributedPart("W", self.weights_space)
        self.control_set = ControlSet([part, ReplicatedPart("beta", self.bias_space)])
        self.nodes, self._first = part.rows, part.first
        self._restriction = self._assembled()

    def on(self, network: Network, space: WithGeometry | None = None) -> Readout:
        """Return the readout of another network, in ``space`` (default: this readout's space)."""
        return Readout(network, self.classes, self.space if space is None else space)

    def check(self, sample: Sample) -> None:
        """Raise a ValueError if a sample has other classes than this readout."""
        if sample.classes != self.classes:
            raise ValueError(f"The sample has {sample.classes} classes, the readout {self.classes}; they must agree.")

    @property
    def features(self) -> int:
        """Number of features an image."""
        return self.nodes * self.network.features

    def zero(self) -> Controls:
        """Return the classifier (W, beta) that is zero."""
        return self.control_set.zero()

    def arrays(self, m: ControlsLike) -> tuple[np.ndarray, np.ndarray]:
        """Return a classifier as W (features, K), in the global numbering of nodes, and beta (K,), on every rank."""
        return self.arrays_of(self.control_set.arrays(m))

    def arrays_of(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return :meth:`arrays` of degrees of freedom by name; those of other controls are left out."""
        return arrays["W"].reshape(self.features, self.classes), arrays["beta"].ravel()

    def by_name(self, W: np.ndarray, beta: np.ndarray) -> dict[str, np.ndarray]:
        """Return W (features, K) and beta (K,), or derivatives with respect to them, as arrays of degrees of freedom.

        The inverse of :meth:`arrays_of`.
        """
        return {"W": W.reshape(self.nodes, -1), "beta": beta.reshape(1, -1)}

    def classifier(self, W: np.ndarray, beta: np.ndarray) -> Controls:
        """Return the classifier of arrays W (features, K) and beta (K,)."""
        return self.control_set.functions(self.by_name(W, beta))

    # Features of a chunk and their transpose.

    def _assembled(self) -> sp.csr_matrix:
        """Return P^T M_L, (readout nodes of all ranks) x (owned nodes)."""
        mass = self.network.operators.mass
        if self.space is self.network.space:
            rows = self._first + np.arange(mass.size)
            return sp.csr_matrix((mass, (rows, np.arange(mass.size))), shape=(self.nodes, mass.size))
        start, columns, values = interpolation_matrix(self.space, self.network.space).getValuesCSR()
        P = sp.csr_matrix((values, columns, start), shape=(mass.size, self.nodes))
        return (sp.diags(mass) @ P).T.tocsr()

    @cached_property
    def restriction(self) -> RowProduct:
        """The map :meth:`restrict` of one rank: (owned, C, images) -> (readout nodes, C, images) in double."""
        return RowProduct(self._restriction, self.network.sweep.dtype, np.float64, self.comm)

    @cached_property
    def restriction_adjoint(self) -> RowProduct:
        """The transpose of :attr:`restriction`, from double precision to the sweep's."""
        return RowProduct(self._restriction.T.tocsr(), np.float64, self.network.sweep.dtype, self.comm)

    def restrict(self, Y: np.ndarray) -> np.ndarray:
        """Return the features (features, images), in double, of a chunk Y (owned, C, images), summed over ranks."""
        F = self.restriction(Y, np.empty((self.nodes, *Y.shape[1:])))
        if self.comm.size > 1:
            self.comm.Allreduce(MPI.IN_PLACE, F)
        return F.reshape(-1, Y.shape[-1])

    def restrict_adjoint(self, dF: np.ndarray, out: np.ndarray) -> None:
        """Write the adjoint state at time T, V*: dF (features, images) -> out (owned, C, images)."""
        self.restriction_adjoint(dF.reshape(self.nodes, *out.shape[1:]), out)

    # Regularisation and transfer.

    def regularisation(
        self, m: ControlsLike, gradient: float = 0.0, size: float = 0.0
    ) -> tuple[ufl.Form, ufl.Form]:
        r"""Return the UFL forms of the classifier's regularisation,

        .. math:: \frac{\rho}{2}\int|\nabla W|^2\,dx + \frac{\epsilon}{2} \Bigl(\int|W|^2\,dx + |\beta|^2\Bigr).

        The part of W is a form on the readout mesh, the part of beta one on its own: a pair.
        """
        _check_weights(gradient, size)
        W, beta = self.control_set.controls(m)
        rho, epsilon = Constant(gradient), Constant(size)
        field = rho / 2 * inner(grad(W), grad(W)) * dx + epsilon / 2 * inner(W, W) * lumped_dx()
        return field, epsilon / 2 * inner(beta, beta) * dx

    def regularisation_matrix(self, gradient: float = 0.0, size: float = 0.0) -> sp.csc_matrix:
        r"""Return :math:`\rho K + \epsilon M_L` on the readout space, all rows on every rank."""
        _check_weights(gradient, size)
        u, v = TrialFunction(self.space), TestFunction(self.space)
        form = Constant(gradient) * inner(grad(u), grad(v)) * dx + Constant(size) * u * v * lumped_dx()
        start, columns, values = assemble(form).petscmat.getValuesCSR()
        rows = self._first + np.repeat(np.arange(start.size - 1), np.diff(start))
        parts = self.comm.allgather((rows, columns, values))
        rows, columns, values = (np.concatenate(p) for p in zip(*parts, strict=True))
        return sp.csc_matrix((values, (rows, columns)), shape=(self.nodes,) * 2)

    def prolong(self, m: ControlsLike, target: Readout) -> Controls:
        """Return the classifier in another readout space: the same field, prolonged or interpolated.

        Raises
        ------
        NestingError
            If this readout's mesh does not cover the target's.
        """
        W, beta = self.control_set.controls(m)
        with stop_annotating():
            fine = target.zero()
            fine.beta.assign(beta)
            if target.space is self.space:
                fine.W.assign(W)
            else:
                P = interpolation_matrix(self.space, target.space)
                x, y = P.createVecs()
                for values, out in zip(W.dat.data_ro.T, fine.W.dat.data.T, strict=True):
                    x.array[:] = values
                    P.mult(x, y)
                    out[:] = y.array_r
        return fine


def _checked(space: WithGeometry) -> WithGeometry:
    if space.value_size != 1 or space.ufl_element().family() == "Real":
        raise ValueError(
            f"A readout needs a scalar space with nodes on a mesh, received {space.ufl_element()}. Use "
            "FunctionSpace(mesh, 'CG', 1); for the mean over all space, FunctionSpace(mesh, 'DG', 0) on a mesh of one "
            "cell that covers the domain."
        )
    return space


@cache
def _numbers(count: int) -> WithGeometry:
    """Return the space of so many numbers, one for all readouts: a classifier's biases belong to no mesh."""
    return VectorFunctionSpace(UnitIntervalMesh(1, comm=COMM_SELF), "DG", 0, dim=count)


def _check_weights(gradient: float, size: float) -> None:
    if gradient < 0 or size < 0:
        raise ValueError(f"Regularisation weights must not be negative, received gradient={gradient!r}, size={size!r}.")
