r"""Rediscretisation: the same coefficients, the operators assembled on another mesh."""

from __future__ import annotations

import numpy as np

from ctrlnet.operators.assembled import Operators
from ctrlnet.transfer.coefficient_map import CoefficientMap, TransferResidual

__all__ = ["rediscretise"]


def rediscretise(source: Operators, target: Operators) -> CoefficientMap:
    r"""Return the map that keeps each operator's coefficient, between any two meshes, nested or not.

    Where both sides hold the same operators in the same order it is the identity, and
    :meth:`ctrlnet.Network.on` is all that is needed. Otherwise coefficients are matched by the operators' names;
    an operator that the target has and the source has not gets the coefficient 0.

    Parameters
    ----------
    source, target
        Operators on their meshes, of one dimension.

    Raises
    ------
    ValueError
        If the target lacks an operator of the source, or the dimensions differ.
    """
    dimensions = [o.mesh.geometric_dimension for o in (source, target)]
    if dimensions[0] != dimensions[1]:
        raise ValueError(
            f"Operators on a mesh of dimension {dimensions[0]} have no counterpart in dimension {dimensions[1]}. "
            "Give two meshes of one dimension."
        )
    missing = [n for n in source.names if n not in target.names]
    if missing:
        raise ValueError(
            f"The other mesh lacks the operators {', '.join(missing)}; it has {', '.join(target.names)}. Assemble "
            "them there too, for example with source.on(V), or project onto the ones it has with galerkin."
        )
    matrix = np.array([[float(to == of) for of in source.names] for to in target.names])
    none = TransferResidual.none(len(source))
    return CoefficientMap(
        matrix, tuple(source.names), tuple(target.names), none, none, source.norms, target.norms)
