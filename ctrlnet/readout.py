r"""The classifier W as fields on a mesh: scores :math:`c_k = \int_\Omega w_k \cdot Y(T)\,dx + \beta_k`."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import scipy.sparse as sp
from firedrake import (
    COMM_SELF,
    Cofunction,
    Constant,
    Function,
    TestFunction,
    TrialFunction,
    UnitIntervalMesh,
    VectorFunctionSpace,
    assemble,
    dx,
    grad,
    inner,
    interpolate,
)
from mpi4py import MPI
from pyadjoint import stop_annotating

from ctrlnet.kernels import RowProduct
from ctrlnet.network import Network
from ctrlnet.operators import lumped_dx

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
        Scalar readout space. Default: the network's own. Otherwise one that Firedrake interpolates from,
        for example on a coarser mesh of the same domain.

    Attributes
    ----------
    weights_space
        Space of W: C*K components at each readout node, the C-order flattening of ``W[c, k]``.
    bias_space
        Space of beta: K numbers, each rank its own copy.
    nodes
        Number of readout nodes, of all ranks.
    """

    def __init__(self, network: Network, classes: int, space=None):
        if classes < 2:
            raise ValueError(f"A classifier needs at least 2 classes, received {classes!r}.")
        self.network = network
        self.classes = classes
        self.space = network.space if space is None else space
        self.comm = network.comm
        C = network.features
        self.weights_space = VectorFunctionSpace(self.space.mesh(), self.space.ufl_element(), dim=C * classes)
        self.bias_space = VectorFunctionSpace(UnitIntervalMesh(1, comm=COMM_SELF), "DG", 0, dim=classes)
        self.nodes = self.space.dim()
        owned = self.space.dof_dset.size
        self._counts = np.array(self.comm.allgather(owned))
        self._first = int(self._counts[: self.comm.rank].sum())

    def on(self, network: Network, space=None) -> Readout:
        """Return the readout of another network, in ``space`` (default: this readout's space)."""
        return Readout(network, self.classes, self.space if space is None else space)

    @property
    def features(self) -> int:
        """Number of features an image."""
        return self.nodes * self.network.features

    def functions(self) -> tuple[Function, Function]:
        """Return a zero classifier (W, beta)."""
        return Function(self.weights_space, name="W"), Function(self.bias_space, name="beta")

    # Between Functions, distributed over the mesh, and arrays, the same on every rank.

    def weights_array(self, W: Function) -> np.ndarray:
        """Return W as (features, K) in the global numbering of nodes, on every rank."""
        return self._gather(W.dat.data_ro).reshape(self.features, self.classes)

    def _gather(self, own: np.ndarray) -> np.ndarray:
        if self.comm.size == 1:
            return own
        own = np.ascontiguousarray(own)
        out = np.empty((int(self._counts.sum()), *own.shape[1:]))
        width = int(np.prod(own.shape[1:]))
        self.comm.Allgatherv(own, (out, self._counts * width))
        return out

    def _own(self, array: np.ndarray) -> np.ndarray:
        """Return this rank's rows of an array over readout nodes."""
        count = self._counts[self.comm.rank]
        return array.reshape(self.nodes, -1)[self._first : self._first + count]

    def set_weights(self, target: Function | Cofunction, array: np.ndarray):
        """Write (features, K) into a Function of, or a Cofunction on, ``weights_space``; return it."""
        target.dat.data[:] = self._own(array).reshape(target.dat.data_ro.shape)
        return target

    @cached_property
    def _duals(self):
        return self.weights_space.dual(), self.bias_space.dual()

    def cofunctions(self, gW: np.ndarray, gbeta: np.ndarray) -> tuple[Cofunction, Cofunction]:
        """Return derivatives (features, K) and (K,) as Cofunctions in the duals of W's and beta's spaces."""
        W, beta = (Cofunction(dual) for dual in self._duals)
        beta.dat.data[:] = gbeta.reshape(beta.dat.data_ro.shape)
        return self.set_weights(W, gW), beta

    # Features of a chunk and their transpose.

    @cached_property
    def _restriction(self) -> sp.csr_matrix:
        """P^T M_L, (readout nodes of all ranks) x (owned nodes)."""
        mass = self.network.operators.mass
        if self.space is self.network.space:
            rows = self._first + np.arange(mass.size)
            return sp.csr_matrix((mass, (rows, np.arange(mass.size))), shape=(self.nodes, mass.size))
        with stop_annotating():
            matrix = assemble(interpolate(TrialFunction(self.space), self.network.space)).petscmat
        start, columns, values = matrix.getValuesCSR()
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

    def regularisation(self, W: Function, beta: Function, gradient: float = 0.0, size: float = 0.0):
        r"""Return the UFL forms of the classifier's regularisation,

        .. math:: \frac{\rho}{2}\int|\nabla W|^2\,dx + \frac{\epsilon}{2} \Bigl(\int|W|^2\,dx + |\beta|^2\Bigr).

        The part of W is a form on the readout mesh, the part of beta one on its own: a pair.
        """
        _check_weights(gradient, size)
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

    def prolong(self, W: Function, beta: Function, target: Readout) -> tuple[Function, Function]:
        """Return the classifier in another readout space: the same field, prolonged or interpolated."""
        with stop_annotating():
            fine, bias = target.functions()
            bias.dat.data[:] = beta.dat.data_ro
            if target.space is self.space:
                fine.assign(W)
            else:
                fine.interpolate(W)
        return fine, bias


def _check_weights(gradient: float, size: float) -> None:
    if gradient < 0 or size < 0:
        raise ValueError(f"Regularisation weights must not be negative, received gradient={gradient!r}, size={size!r}.")
