r"""The explicit Schur Gauss-Newton matrix of a projected functional, as the initial Hessian of quasi-Newton.

For the columns :math:`a_l = \sqrt{w_i \lambda_l}\, J_i^T q_l` of chosen images i, with the loss's Hessian
:math:`H_i = \sum_l \lambda_l q_l q_l^T`, and the classifier's columns :math:`u_l`, eliminating (W, beta) from
:math:`[A; U][A; U]^T + R` leaves, by the Woodbury identity,

.. math:: B = R_\theta + A\,(I + U^T R_W^{-1} U)^{-1} A^T,

with one small system, as large as there are columns, whatever the readout. Images are drawn with probability in
proportion to their curvature: late in training few have any.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from ctrlnet.controls import Coordinates
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.objective.average import Average
from ctrlnet.objective.losses import image_hessians
from ctrlnet.optimise.functional import ProjectedOn

__all__ = ["SchurGaussNewton", "draw_in_proportion"]


def draw_in_proportion(sizes: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw about ``count`` numbers without replacement, each with probability in proportion to its size.

    Returns the numbers and their inclusion probabilities (systematic sampling; a large size is drawn surely).
    """
    sizes = np.asarray(sizes, dtype=float)
    if count >= np.count_nonzero(sizes > 0):
        chosen = np.flatnonzero(sizes > 0)
        return chosen, np.ones(chosen.size)
    share, surely = np.zeros(sizes.size), np.zeros(sizes.size, dtype=bool)
    while True:
        rest = count - surely.sum()
        share = np.where(surely, 1.0, rest * sizes / sizes[~surely].sum())
        more = ~surely & (share >= 1.0)
        if not more.any():
            break
        surely |= more
    steps = np.floor(np.cumsum(share) + rng.random())
    chosen = np.flatnonzero(np.diff(steps, prepend=np.floor(steps[0] - share[0])) > 0)
    return chosen, share[chosen]


class SchurGaussNewton:
    """Factorised approximation of a projected functional's Hessian, refreshed where it is asked to.

    Parameters
    ----------
    functional
        A :class:`~ctrlnet.optimise.ProjectedFunctional`.
    coordinates
        Of its controls.
    rng
        Draws the images; the same draw on any number of ranks.
    images
        How many images are drawn.
    directions
        Leading eigenvectors of each image's loss Hessian; 1 to K. Default: 3, as far as there are so many.
    damping
        Multiple of the mean diagonal entry that is added to the diagonal: what the draw did not see.

    Raises
    ------
    ValueError
        If a number is out of range, or the network's steps do not give each image's own derivative.
    """

    def __init__(
        self, functional: ProjectedOn, coordinates: Coordinates, rng: np.random.Generator, images: int = 400,
        directions: int | None = None, damping: float = 1e-3,
    ):
        classes = functional.problem.readout.classes
        directions = min(3, classes) if directions is None else directions
        if images < 1 or not 1 <= directions <= classes or damping < 0:
            raise ValueError(
                f"The explicit Gauss-Newton matrix needs images >= 1, 1 <= directions <= {classes} and damping >= 0; "
                f"received images={images!r}, directions={directions!r}, damping={damping!r}."
            )
        network = functional.problem.network
        start = network.layers([c.control for c in functional.controls])
        if functional.problem.average.at(start).imagewise is None:
            raise ValueError(
                "The explicit Gauss-Newton matrix needs each image's own derivative. That is given by the steps of "
                "Residual with ForwardEuler and of ReactionDiffusion with IMEX, for readouts of whole images; not "
                f"where every node has scores of its own. Received {type(network.integrator).__name__} on "
                f"{type(network.dynamics).__name__} with {type(functional.problem.readout).__name__}. Use quasi-Newton "
                "without an initial Hessian."
            )
        self.functional, self.coordinates, self.rng = functional, coordinates, rng
        self.images, self.directions, self.damping = images, directions, damping
        self.matrix: np.ndarray | None = None
        self._factor = None
        self._average: Average | None = None

    def over(self, functional: ProjectedOn) -> SchurGaussNewton:
        """Return this matrix for another sample's, or mesh's, functional; it is formed anew at the next refresh."""
        out = copy.copy(self)
        out.functional, out._average = functional, None
        return out

    @property
    def generators(self) -> list[np.random.Generator]:
        return [self.rng]

    def state(self) -> dict[str, np.ndarray]:
        return {} if self.matrix is None else {"matrix": self.matrix}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        if "matrix" in state:
            self.matrix = state["matrix"]
            self._factor = scipy.linalg.cho_factor(self.matrix, lower=True, check_finite=False)

    def refresh(self) -> None:
        """Form and factorise the matrix at the functional's last point."""
        A, gram = self.columns()
        self.matrix = self._assemble(A, gram)
        mean = np.trace(self.matrix) / self.matrix.shape[0]
        self.matrix[np.diag_indices_from(self.matrix)] += self.damping * mean
        self._factor = scipy.linalg.cho_factor(self.matrix, lower=True, check_finite=False)

    def solve(self, g: np.ndarray) -> np.ndarray:
        """Return the inverse matrix times coordinates of a derivative."""
        return scipy.linalg.cho_solve(self._factor, g, check_finite=False)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return the matrix times coordinates of a direction."""
        return self.matrix @ x

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Return A (unknowns, columns) and U^T R_W^{-1} U (columns, columns)."""
        functional = self.functional
        average, point = functional.problem.average, functional.point()
        weights = average.at(point.layers).imagewise.weights
        chosen, probability = draw_in_proportion(functional.curvatures(), self.images, self.rng)
        self._average = average.among(chosen, self._average)
        drawn, W = self._average.at(point.layers).imagewise, point.W
        F = drawn.features()
        hessians = image_hessians(average.loss, W.T @ F + point.beta[:, None], drawn.targets, weights[chosen])
        values, vectors = np.linalg.eigh(hessians)
        scale = np.sqrt(np.maximum(values, 0.0) / probability[:, None])
        Q = (vectors * scale[:, None, :])[:, :, ::-1]  # (images, K, directions), the largest first
        A = np.concatenate([self._whiten(drawn.rows(W, Q[:, :, a].T)) for a in range(self.directions)], axis=1)
        q = np.concatenate([Q[:, :, a] for a in range(self.directions)])
        regulariser = functional.problem.regularisation
        nodes = F.reshape(regulariser.weights_matrix.shape[0], -1)
        solved = scipy.sparse.linalg.splu(regulariser.weights_matrix).solve(nodes).reshape(F.shape)
        kernel = F.T @ solved + 1.0 / regulariser.ridge
        return A, np.tile(kernel, (self.directions, self.directions)) * (q @ q.T)

    def _whiten(self, rows: LayerControls) -> np.ndarray:
        """Return the coordinates (unknowns, images) of derivatives with respect to the layers' controls."""
        derivatives = self.functional.problem.network.layers_adjoint(rows)
        parts = [self.coordinates.dual_values(name, values) for name, values in derivatives.items()]
        return np.concatenate([p.reshape(-1, p.shape[-1]) for p in parts])

    def _assemble(self, A: np.ndarray, gram: np.ndarray) -> np.ndarray:
        gram = gram + np.eye(gram.shape[0])
        L = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
        half = scipy.linalg.solve_triangular(L, A.T, lower=True, check_finite=False)
        out = half.T @ half
        for name, part in self.coordinates.slices.items():
            block = self.coordinates.regularisation_block(name)
            copies = (part.stop - part.start) // block.shape[0]
            out[part, part] += np.kron(block, np.eye(copies))
        return out

