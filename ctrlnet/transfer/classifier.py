r"""The classifier on a coarser readout space. To a finer one it goes by :meth:`ctrlnet.Readout.prolong`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrlnet.controls import Controls, ControlsLike, mapped, products_of
from ctrlnet.operators.intergrid import Restriction, check_levels, checked_pair

if TYPE_CHECKING:
    from ctrlnet.objective.readout import Readout

__all__ = ["restrict_classifier"]


def restrict_classifier(
    readout: Readout, m: ControlsLike, target: Readout, restriction: Restriction | None = None
) -> Controls:
    r"""Return the classifier on a coarser readout space, W_h -> W_H. Taped.

    With :class:`~ctrlnet.transfer.FullWeighting` (the default) the scores of a state on the coarse readout mesh
    stay what they are for its prolongation: :math:`(R w, Y_H)_H = (w, P Y_H)_h` in the lumped products.

    Parameters
    ----------
    readout
        The fine one.
    m
        Controls, of which the classifier (W, beta) is taken.
    target
        A readout of as many classes and features on a nested, coarser space, or a coarser level of one surface.

    Raises
    ------
    NestingError
        If the target's space is not contained in the readout's, nor on a coarser level of its surface.
    ValueError
        If classes or features differ.
    """
    ours, theirs = ((r.classes, r.network.features) for r in (readout, target))
    if ours != theirs:
        raise ValueError(
            f"A classifier of {ours[0]} classes and {ours[1]} features does not fit a readout of {theirs[0]} classes "
            f"and {theirs[1]} features."
        )
    check_levels(target.space, readout.space)
    R = checked_pair(restriction, None)[0].matrix(target.space, readout.space)
    W, beta = readout.control_set.controls(m)
    coarse = target.zero()
    coarse.beta.assign(beta)
    mapped(W, coarse.W, *products_of(R))
    return coarse
