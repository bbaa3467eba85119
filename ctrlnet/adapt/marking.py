r"""Which cells or steps to refine: the fewest whose parts make a share of the sum of all parts' sizes.

Source: Doerfler, "A convergent adaptive algorithm for Poisson's equation", 1996.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from ctrlnet.errors import finite

__all__ = ["largest_parts"]

_EQUAL = 1e-8  # relative: parts that symmetry makes equal are marked together, on any number of ranks


def largest_parts(parts: np.ndarray, share: float, comm: MPI.Comm = MPI.COMM_SELF) -> np.ndarray:
    r"""Mark the largest parts, :math:`\sum_{\text{marked}} |\eta_i| \ge \theta \sum |\eta_i|`; collective.

    Parameters
    ----------
    parts
        :math:`\eta`, those that this rank has.
    share
        :math:`\theta`, in (0, 1].
    comm
        Of the ranks that have the others.

    Returns
    -------
    numpy.ndarray
        Of bool. Parts as large as the smallest that is marked are marked too.

    Raises
    ------
    ValueError
        If the share is not in (0, 1], or a part is not finite or all of them are zero.
    """
    if not (finite(share) and 0 < share <= 1):
        raise ValueError(f"The marked share of an error lies above 0 and up to 1, received {share!r}.")
    sizes = np.abs(np.asarray(parts, dtype=float))
    everywhere = np.concatenate(comm.allgather(sizes))
    if not np.isfinite(everywhere).all():
        bad = int((~np.isfinite(everywhere)).sum())
        raise ValueError(
            f"{bad} of {everywhere.size} indicators are not finite. Train to a point whose states are, or take steps "
            "that are stable on the finer mesh.")
    total = everywhere.sum()
    if not total > 0:
        raise ValueError("All indicators are zero: there is no error to refine for.")
    falling = np.sort(everywhere)[::-1]
    enough = int(np.searchsorted(np.cumsum(falling), share * total * (1 - _EQUAL)))
    return sizes >= falling[min(enough, falling.size - 1)] * (1 - _EQUAL)
