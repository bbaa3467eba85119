r"""The classifier W as fields on a mesh: scores :math:`c_k = \int_\Omega w_k \cdot Y(T)\,dx + \beta_k`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import ufl
from firedrake import (
    Constant,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    assemble,
    dx,
    grad,
    inner,
)
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI
from pyadjoint.tape import no_annotations

from ctrlnet.controls import Controls, ControlsLike, DistributedPart, mapped, products_of
from ctrlnet.fields.sample import Sample
from ctrlnet.kernels.code.row_product import RowProduct
from ctrlnet.network.network import Network
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.columns import ReadInKernels
from ctrlnet.objective.image_columns import ImageColumns, ImageReading
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.readout_controls import ReadoutControls, check_regularisation, checked_classes
from ctrlnet.operators.forms import lumped_dx
from ctrlnet.operators.halo import destroy_what_waits
from ctrlnet.operators.intergrid import interpolation_matrix

__all__ = ["Readout"]


class Readout(ReadoutControls):
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
        K, at least 1: classes, or the components of a target that is a vector of numbers.
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
        If there is no class, the readout space is not scalar, is of a degree above 1 or that of constants, or its mesh
        does not cover the network's.
    """

    def __init__(self, network: Network, classes: int, space: WithGeometry | None = None):
        classes = checked_classes(classes)
        self.space = network.space if space is None else _checked(space)
        components = network.features * classes
        part = DistributedPart("W", VectorFunctionSpace(self.space.mesh(), self.space.ufl_element(), dim=components))
        super().__init__(network, classes, part)
        self._first = part.first
        self._restriction = self._assembled()

    def on(self, network: Network, space: WithGeometry | None = None) -> Readout:
        """Return the readout of another network, in ``space`` (default: this readout's space)."""
        return Readout(network, self.classes, self.space if space is None else space)

    def columns(self, sample: Sample, chunks: Sequence[Chunk], split: ImageSplit, most_bytes: int) -> ImageColumns:
        """Return the columns of a sample, its images; see :class:`~ctrlnet.objective.average.FeatureReadout`."""
        self.check(sample)
        return ImageColumns(self, sample.targets.of_images(), chunks, split, most_bytes)

    def reading(self, chunks: Sequence[Chunk], split: ImageSplit) -> ImageReading:
        """Return :meth:`columns` of images without targets."""
        return ImageReading(self, chunks, split)

    # Features of a chunk and their transpose.

    @no_annotations
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
    def in_kernels(self) -> ReadInKernels:
        """One rank's part of :meth:`restrict` and of its transpose."""
        kind = self.network.sweep.dtype
        return ReadInKernels(
            RowProduct(self._restriction, kind, np.float64, self.comm),
            RowProduct(self._restriction.T.tocsr(), np.float64, kind, self.comm))

    def restrict(self, Y: np.ndarray) -> np.ndarray:
        """Return the features (features, images), in double, of a chunk Y (owned, C, images), summed over ranks."""
        F = self.in_kernels.forward(Y, np.empty((self.nodes, *Y.shape[1:])))
        if self.comm.size > 1:
            self.comm.Allreduce(MPI.IN_PLACE, F)
        return F.reshape(-1, Y.shape[-1])

    def restrict_adjoint(self, dF: np.ndarray, out: np.ndarray) -> None:
        """Write the adjoint state at time T, V*: dF (features, images) -> out (owned, C, images)."""
        self.in_kernels.adjoint(dF.reshape(self.nodes, *out.shape[1:]), out)

    # Regularisation and transfer.

    def regularisation(
        self, m: ControlsLike, gradient: float = 0.0, size: float = 0.0
    ) -> tuple[ufl.Form, ufl.Form]:
        r"""Return the UFL forms of the classifier's regularisation,

        .. math:: \frac{\rho}{2}\int|\nabla W|^2\,dx + \frac{\epsilon}{2} \Bigl(\int|W|^2\,dx + |\beta|^2\Bigr).

        The part of W is a form on the readout mesh, the part of beta one on its own: a pair.
        """
        check_regularisation(gradient, size)
        W, beta = self.control_set.controls(m)
        rho, epsilon = Constant(gradient), Constant(size)
        field = rho / 2 * inner(grad(W), grad(W)) * dx + epsilon / 2 * inner(W, W) * lumped_dx()
        return field, epsilon / 2 * inner(beta, beta) * dx

    @no_annotations
    def regularisation_matrix(self, gradient: float = 0.0, size: float = 0.0) -> sp.csc_matrix:
        r"""Return :math:`\rho K + \epsilon M_L` on the readout space, all rows on every rank."""
        check_regularisation(gradient, size)
        destroy_what_waits(self.comm)
        u, v = TrialFunction(self.space), TestFunction(self.space)
        form = Constant(gradient) * inner(grad(u), grad(v)) * dx + Constant(size) * u * v * lumped_dx()
        start, columns, values = assemble(form).petscmat.getValuesCSR()
        rows = self._first + np.repeat(np.arange(start.size - 1), np.diff(start))
        parts = self.comm.allgather((rows, columns, values))
        rows, columns, values = (np.concatenate(p) for p in zip(*parts, strict=True))
        return sp.csc_matrix((values, (rows, columns)), shape=(self.nodes,) * 2)

    def prolong(self, m: ControlsLike, target: Readout) -> Controls:
        """Return the classifier in another readout space: the same field, prolonged or interpolated. Taped.

        Raises
        ------
        NestingError
            If this readout's mesh does not cover the target's.
        """
        W, beta = self.control_set.controls(m)
        fine = target.zero()
        fine.beta.assign(beta)
        if target.space is self.space:
            fine.W.assign(W)
        else:
            mapped(W, fine.W, *products_of(interpolation_matrix(self.space, target.space)))
        return fine


def _checked(space: WithGeometry) -> WithGeometry:
    if space.value_shape or space.ufl_element().family() == "Real":
        raise ValueError(
            f"A readout needs a scalar space with nodes on a mesh, received {space.ufl_element()}. Use "
            "FunctionSpace(mesh, 'CG', 1); for the mean over all space, FunctionSpace(mesh, 'DG', 0) on a mesh of one "
            "cell that covers the domain."
        )
    if np.max(space.ufl_element().degree()) > 1:
        raise ValueError(
            "A readout is regularised by a lumped mass, which spaces of degree 0 and 1 have; received "
            f"{space.ufl_element()}. Use FunctionSpace(mesh, 'CG', 1), on a finer mesh for more detail.")
    return space
