r"""Scores at every node of a network's mesh: :math:`c(x) = W^T Y(x, T) + \beta`, W a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import ufl
from firedrake import Constant, dx, inner
from firedrake.functionspaceimpl import WithGeometry

from ctrlnet.controls import Controls, ControlsLike, ReplicatedPart, numbers_space
from ctrlnet.fields.sample import Sample
from ctrlnet.network.network import Network
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.node_columns import NodeColumns, NodeReading
from ctrlnet.objective.readout_controls import ReadoutControls, check_regularisation, checked_classes

__all__ = ["NodalReadout"]


class NodalReadout(ReadoutControls):
    r"""A readout for targets at nodes: a class at every node (segmentation), or a field of K components.

    The features of a node are the C values of the final state there, and its scores
    :math:`c(x) = W^T Y(x, T) + \beta`, the same C x K matrix W at every node. As no node is special, a trained
    classifier serves every mesh unchanged.

    Parameters
    ----------
    network
        Gives C and the nodes.
    classes
        K, at least 1: classes, or the components of a field.

    Raises
    ------
    ValueError
        If there is no class.
    """

    def __init__(self, network: Network, classes: int):
        classes = checked_classes(classes)
        super().__init__(network, classes, ReplicatedPart("W", numbers_space(network.features * classes)))

    @property
    def space(self) -> WithGeometry:
        """Space of W: C*K numbers, each rank its own copy."""
        return self.weights_space

    def on(self, network: Network) -> NodalReadout:
        """Return the readout of another network."""
        return NodalReadout(network, self.classes)

    def columns(self, sample: Sample, chunks: Sequence[Chunk], split: ImageSplit, most_bytes: int) -> NodeColumns:
        """Return the columns of a sample, its images' nodes; see :class:`~ctrlnet.objective.average.FeatureReadout`."""
        self.check(sample)
        targets = sample.targets.at_nodes(self.network.space)
        return NodeColumns(self.network.operators.mass, targets, chunks, split, most_bytes)

    def reading(self, chunks: Sequence[Chunk], split: ImageSplit) -> NodeReading:
        """Return :meth:`columns` of images without targets."""
        return NodeReading(self.network.operators.mass.size, chunks)

    def regularisation(
        self, m: ControlsLike, gradient: float = 0.0, size: float = 0.0
    ) -> tuple[ufl.Form, ufl.Form]:
        r"""Return the UFL forms of the classifier's regularisation, :math:`\frac{\epsilon}{2} (|W|^2 + |\beta|^2)`.

        W is no field and has no gradient, so that ``gradient`` weighs nothing. The parts of W and beta are forms on
        different meshes: a pair.
        """
        check_regularisation(gradient, size)
        W, beta = self.control_set.controls(m)
        epsilon = Constant(size)
        return epsilon / 2 * inner(W, W) * dx, epsilon / 2 * inner(beta, beta) * dx

    def regularisation_matrix(self, gradient: float = 0.0, size: float = 0.0) -> sp.csc_matrix:
        r"""Return :math:`\epsilon`, the matrix of :meth:`regularisation` over the one row of W."""
        check_regularisation(gradient, size)
        return sp.csc_matrix(np.array([[float(size)]]))

    def prolong(self, m: ControlsLike, target: NodalReadout) -> Controls:
        """Return the classifier for another mesh's readout: the same numbers."""
        out = target.zero()
        for function, given in zip(out, self.control_set.controls(m), strict=True):
            function.assign(given)
        return out
