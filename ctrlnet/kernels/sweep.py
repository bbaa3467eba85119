"""Sweeps of a chunk of images through all layers: forward, adjoint, tangent and second order."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mpi4py import MPI

from ctrlnet.activations import Activation
from ctrlnet.kernels.codegen import KernelSpec
from ctrlnet.kernels.compile import compile_kernels
from ctrlnet.kernels.row_product import RowProduct
from ctrlnet.kernels.stencil_table import Pattern, StencilTable

__all__ = ["FusedSweep", "Trajectory", "aligned_zeros"]


_LINE = 64  # bytes of a SIMD vector


def aligned_zeros(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Return zeros whose first byte lies on a 64-byte line, as the SIMD kernels need."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + _LINE, dtype=np.uint8)
    offset = -raw.ctypes.data % _LINE
    return raw[offset : offset + count].view(dtype).reshape(shape)


class _PatternArgument(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_int), ("nodes", ctypes.c_int)] + [
        (name, ctypes.c_void_p) for name in ("order", "start", "column", "cls", "first", "table")
    ]


class _TrajectoryArgument(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("states", "kept")] + [
        (name, ctypes.c_ssize_t) for name in ("state", "keep")
    ] + [("rows", ctypes.c_int)]


@dataclass
class Trajectory:
    """What a forward sweep leaves for the sweeps that follow.

    Parameters
    ----------
    states
        ``Y_k`` as (layers + 1, nodes with ghosts, C, images); two rows only if ``kept`` is None.
    kept
        ``sigma(Z_k)`` or ``Z_k`` (the activation says which), or in a tangent sweep ``dZ_k``, as
        (layers, owned nodes, C, images).
    parameters
        What the dynamics learn beside coefficients and biases, (layers,), of the last forward sweep.
    """

    states: np.ndarray
    kept: np.ndarray | None
    owned: int
    parameters: np.ndarray | None = None

    @property
    def initial(self) -> np.ndarray:
        """Owned rows of the state at time 0, a view (owned nodes, C, images)."""
        return self.states[0, : self.owned]

    def complete(self, k: int) -> list[np.ndarray]:
        """All that state k consists of, as owned rows; a system of several parts has several."""
        return [self.states[k, : self.owned]]

    @property
    def images(self) -> int:
        return self.states.shape[-1]

    @cached_property
    def c_struct(self) -> _TrajectoryArgument:
        """The C structure of bare pointers that the kernels take."""
        kept = (None, 0) if self.kept is None else (self.kept.ctypes.data, self.kept.strides[0] // _LINE)
        return _TrajectoryArgument(
            self.states.ctypes.data, kept[0], self.states.strides[0] // _LINE, kept[1], self.states.shape[0])

    nbytes = property(lambda self: self.states.nbytes + (0 if self.kept is None else self.kept.nbytes))


def _pointer(argument: np.ndarray | Trajectory):
    if isinstance(argument, Trajectory):
        return ctypes.byref(argument.c_struct)
    return ctypes.c_void_p(argument.ctypes.data)


class FusedSweep:
    r"""Residual dynamics under forward Euler, :math:`Y_{k+1} = Y_k + h_k \sigma(\sum_j s_{jk} D_j Y_k + b_k)`.

    Coefficients are arrays ``S`` (layers, J, C, C) with ``S[k, j, out, in]``, biases ``b`` (layers, C), step
    sizes ``h`` (layers,). A field of a chunk is (nodes, C, images); images are padded to a multiple of
    :attr:`image_block` by the caller (zero columns do no harm: their adjoint is zero).

    Parameters
    ----------
    table
        The operators' rows on this rank.
    features
        C, a compile-time constant of the kernels.
    activation
        sigma.
    precision
        ``"double"``, or ``"single"`` for float32 states and arithmetic; gradients are summed in double.
    """

    image_derivatives = True  # there is an adjoint_each
    most_blocks = 8  # of a chunk of images

    @property
    def fuses_chunks(self) -> bool:
        """Whether :meth:`forward_chunks` and :meth:`adjoint_chunks` work: there are no ghosts to fetch."""
        return self.table.halo.comm.size == 1

    def __init__(self, table: StencilTable, features: int, activation: Activation, precision: str = "double"):
        if precision not in ("double", "single"):
            raise ValueError(f"precision must be 'double' or 'single', received {precision!r}.")
        self.table = table
        self.features = features
        self.dtype = np.dtype(np.float64 if precision == "double" else np.float32)
        # The generated code must be the same on all ranks.
        widest = table.halo.comm.allreduce(max(table.forward.widest_row, table.transposed.widest_row), op=MPI.MAX)
        spec = KernelSpec(
            features, table.operators, widest, activation.c_text, activation.keeps_value, precision == "single"
        )
        self._widest = widest
        self.lanes = spec.lanes
        self.image_block = spec.lanes * spec.vector_block
        self._library = compile_kernels(spec, table.halo.comm)
        self._fields: dict[int, list[np.ndarray]] = {}
        self._arguments = {id(p): self._pattern(p) for p in (table.forward, table.transposed)}

    def _pattern(self, pattern: Pattern) -> _PatternArgument:
        arrays = [pattern.order, pattern.start, pattern.columns, pattern.row_class, pattern.first]
        arrays.append(np.ascontiguousarray(pattern.table, dtype=self.dtype))
        argument = _PatternArgument(pattern.rows, self.table.nodes, *(a.ctypes.data for a in arrays))
        argument.arrays = arrays  # the C struct holds bare pointers
        return argument

    def _run(self, name: str, first: int, last: int, pattern: Pattern, images: int, *arguments) -> None:
        """Run layers ``first`` to ``last - 1``; arguments are arrays and trajectories."""
        getattr(self._library, name)(
            ctypes.c_int(first), ctypes.c_int(last), ctypes.byref(self._arguments[id(pattern)]),
            ctypes.c_int(images // self.lanes), *map(_pointer, arguments))

    def _spans(self, layers: int) -> list[tuple[int, int]]:
        """All layers in one call, or one by one where ghosts are fetched in between."""
        return [(0, layers)] if self.table.halo.comm.size == 1 else [(k, k + 1) for k in range(layers)]

    def _cast(self, coefficients: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(coefficients, dtype=self.dtype)

    def _inputs_first(self, coefficients: np.ndarray) -> np.ndarray:
        return self._cast(np.swapaxes(coefficients, -1, -2))

    def trajectory(self, layers: int, images: int, keep: bool = True) -> Trajectory:
        """Return zeroed storage for a sweep over ``images`` images."""
        if images % self.image_block:
            raise ValueError(f"A chunk must hold a multiple of {self.image_block} images, received {images}.")
        rows = layers + 1 if keep else 2
        states = aligned_zeros((rows, self.table.nodes, self.features, images), self.dtype)
        kept = aligned_zeros((layers, self.table.owned, self.features, images), self.dtype) if keep else None
        return Trajectory(states, kept, self.table.owned)

    def trajectory_bytes(self, layers: int, images: int) -> int:
        """Return the size of a trajectory with everything kept."""
        rows = self.table.nodes * (layers + 1) + self.table.owned * layers
        return rows * self.features * images * self.dtype.itemsize

    def field(self, images: int, ghosts: bool = False) -> np.ndarray:
        """Return a zero field of a chunk."""
        rows = self.table.nodes if ghosts else self.table.owned
        return aligned_zeros((rows, self.features, images), self.dtype)

    def _scratch(self, images: int, count: int) -> list[np.ndarray]:
        """Return ``count`` pairs of fields with ghosts that every sweep overwrites: fresh ones cost page faults."""
        pairs = self._fields.setdefault(images, [])
        while len(pairs) < count:
            pairs.append(aligned_zeros((2, self.table.nodes, self.features, images), self.dtype))
        return pairs[:count]

    def forward(self, S: np.ndarray, b: np.ndarray, h: np.ndarray, trajectory: Trajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; return the owned rows of the final state, a view."""
        arguments = self._cast(h), self._inputs_first(S), self._cast(b), trajectory
        states = trajectory.states
        for first, last in self._spans(len(h)):
            self.table.halo.update(states[first % states.shape[0]])
            self._run("forward_layers", first, last, self.table.forward, trajectory.images, *arguments)
        return states[len(h) % states.shape[0], : self.table.owned]

    def _seed(self, name: str, *fields: np.ndarray) -> None:
        count = ctypes.c_size_t(fields[0].size // self.lanes)
        getattr(self._library, name)(count, *(ctypes.c_void_p(f.ctypes.data) for f in fields))

    def adjoint(
        self, S: np.ndarray, h: np.ndarray, trajectory: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Run the transposed sweep from :math:`\lambda_N` (``lam``, overwritten by :math:`\lambda_0`).

        Returns
        -------
        gS, gb
            This rank's part of the derivative with respect to S (layers, J, C, C) and b (layers, C).
        """
        layers = len(h)
        gS, gb = np.zeros(S.shape), np.zeros((layers, self.features))
        (mu,) = self._scratch(trajectory.images, 1)
        arguments = self._cast(h), self._cast(S), trajectory, mu, lam, gS, gb
        self._seed("seed", trajectory.kept[-1], lam, mu[(layers - 1) % 2])
        for first, last in reversed(self._spans(layers)):
            self.table.halo.update(mu[(last - 1) % 2])
            self._run("adjoint_layers", first, last, self.table.transposed, trajectory.images, *arguments)
        return gS * h[:, None, None, None], gb * h[:, None]

    # Several chunks in one call: between small ones the time outside of the kernels would count.

    def _chunks(self, trajectories: Sequence[Trajectory], pattern: Pattern, layers: int) -> tuple:
        """Return the arguments that both passes begin with, and the pointers to the trajectories."""
        pointers = (ctypes.c_void_p * len(trajectories))(*(ctypes.addressof(t.c_struct) for t in trajectories))
        vectors = trajectories[0].images // self.lanes
        return (ctypes.c_int(len(trajectories)), ctypes.c_int(layers), ctypes.byref(self._arguments[id(pattern)]),
                ctypes.c_int(vectors)), pointers

    def forward_chunks(
        self, S: np.ndarray, b: np.ndarray, h: np.ndarray, trajectories: Sequence[Trajectory], readout: RowProduct
    ) -> np.ndarray:
        """Propagate the initial states of trajectories of equally many images and read their final states out.

        Parameters
        ----------
        readout
            The map from fields (owned nodes, C, images) to features (readout nodes, C, images) in double precision.

        Returns
        -------
        numpy.ndarray
            The features (readout nodes * C, chunks * images).
        """
        sizes, pointers = self._chunks(trajectories, self.table.forward, len(h))
        images = trajectories[0].images
        features = np.empty((len(trajectories), readout.shape[0] * self.features, images))
        coefficients = [self._cast(h), self._inputs_first(S), self._cast(b)]
        self._library.forward_chunks(
            *sizes, *map(_pointer, coefficients), pointers, ctypes.byref(readout.c_struct), _pointer(features))
        return features.transpose(1, 0, 2).reshape(features.shape[1], -1)

    def adjoint_chunks(
        self, S: np.ndarray, h: np.ndarray, trajectories: Sequence[Trajectory], readout: RowProduct,
        dfeatures: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the transposed sweep of several trajectories from the adjoint of their features.

        Parameters
        ----------
        readout
            The transpose of that of :meth:`forward_chunks`.
        dfeatures
            Shape (readout nodes * C, images), in double precision; the last chunk may have fewer images than columns.

        Returns
        -------
        gS, gb
            As :meth:`adjoint`, the sum over the chunks.
        """
        sizes, pointers = self._chunks(trajectories, self.table.transposed, len(h))
        chunks, images = len(trajectories), trajectories[0].images
        padded = np.zeros((len(dfeatures), chunks * images))
        padded[:, : dfeatures.shape[1]] = dfeatures
        by_chunk = np.ascontiguousarray(padded.reshape(-1, chunks, images).transpose(1, 0, 2))
        gS, gb = np.zeros((chunks, *S.shape)), np.zeros((chunks, len(h), self.features))
        mu, (lam, _) = self._scratch(images, 2)
        coefficients = [self._cast(h), self._cast(S)]
        self._library.adjoint_chunks(
            *sizes, *map(_pointer, coefficients), pointers, ctypes.byref(readout.c_struct),
            ctypes.c_int(readout.shape[1]), *map(_pointer, (by_chunk, mu, lam, gS, gb)))
        # Chunk by chunk, as where they are run one by one: the same numbers whatever the memory allows.
        return (gS * h[:, None, None, None]).sum(axis=0), (gb * h[:, None]).sum(axis=0)

    def adjoint_layer(
        self, S: np.ndarray, h: np.ndarray, pair: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the adjoint of one step of several that follow, backwards; ``pair`` is the trajectory of the step alone.

        S, h and the result have one step's rows; ``lam`` is overwritten as in :meth:`adjoint`.
        """
        return self.adjoint(S, h, pair, lam)

    def adjoint_each(
        self, S: np.ndarray, h: np.ndarray, trajectory: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Run the transposed sweep as :meth:`adjoint` does, with every image's derivative by itself.

        Returns
        -------
        gS, gb
            This rank's part, (layers, J, C, C, images) and (layers, C, images), in the sweep's precision.
        """
        layers, images = len(h), trajectory.images
        gS, gb = (aligned_zeros((layers, *shape, images), self.dtype) for shape in (S.shape[1:], (self.features,)))
        tiles = aligned_zeros((self._widest, self.features**2, images), self.dtype)
        (mu,) = self._scratch(images, 1)
        arguments = self._cast(h), self._cast(S), trajectory, mu, lam, tiles, gS, gb
        self._seed("seed", trajectory.kept[-1], lam, mu[(layers - 1) % 2])
        for first, last in reversed(self._spans(layers)):
            self.table.halo.update(mu[(last - 1) % 2])
            self._run("each_layers", first, last, self.table.transposed, images, *arguments)
        gS *= h[:, None, None, None, None].astype(self.dtype)
        gb *= h[:, None, None].astype(self.dtype)
        return gS, gb

    def tangent(
        self, S: np.ndarray, dS: np.ndarray, db: np.ndarray, h: np.ndarray, trajectory: Trajectory, tangent: Trajectory
    ) -> np.ndarray:
        r"""Propagate a perturbation of (S, b, Y_0) along a trajectory.

        :math:`dZ_k = K_k dY_k + dK_k Y_k + db_k`, :math:`dY_{k+1} = dY_k + h \sigma'(Z_k) dZ_k`;
        ``tangent.initial`` holds :math:`dY_0`. Returns the owned rows of :math:`dY_N`, a view.
        """
        coefficients, changes = self._inputs_first(S), self._inputs_first(dS)
        arguments = self._cast(h), coefficients, changes, self._cast(db), trajectory, tangent
        for first, last in self._spans(len(h)):
            self.table.halo.update(tangent.states[first])
            self._run("tangent_layers", first, last, self.table.forward, trajectory.images, *arguments)
        return tangent.states[len(h), : self.table.owned]

    def second_order(
        self, S: np.ndarray, dS: np.ndarray, h: np.ndarray, trajectory: Trajectory, tangent: Trajectory,
        lam: np.ndarray, dlam: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Differentiate the adjoint sweep along a tangent.

        With :math:`d\mu_k = \sigma' d\lambda_{k+1} + \sigma'' dZ_k \lambda_{k+1}`:
        :math:`d\lambda_k = d\lambda_{k+1} + h (K_k^T d\mu_k + dK_k^T \mu_k)`. ``lam`` and ``dlam`` hold
        :math:`\lambda_N, d\lambda_N` and are overwritten by :math:`\lambda_0, d\lambda_0`.

        Returns
        -------
        gS, gb
            This rank's part of the change of the derivative with respect to S and b.
        """
        layers = len(h)
        gS, gb = np.zeros(S.shape), np.zeros((layers, self.features))
        mu, dmu = self._scratch(trajectory.images, 2)
        arguments = self._cast(h), self._cast(S), self._cast(dS), trajectory, tangent, mu, dmu, lam, dlam, gS, gb
        start = (layers - 1) % 2
        self._seed(
            "seed_second_order", trajectory.kept[-1], tangent.kept[-1], lam, dlam, mu[start], dmu[start])
        for first, last in reversed(self._spans(layers)):
            self.table.halo.update(mu[(last - 1) % 2])
            self.table.halo.update(dmu[(last - 1) % 2])
            self._run("second_order_layers", first, last, self.table.transposed, trajectory.images, *arguments)
        return gS * h[:, None, None, None], gb * h[:, None]
