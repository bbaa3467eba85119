"""Sweeps of a chunk of images through all layers: forward, adjoint, tangent and second order."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from ctrlnet.kernels.code.arrays import aligned_zeros, pointer
from ctrlnet.kernels.code.compile import compile_text
from ctrlnet.kernels.code.expressions import Pointwise
from ctrlnet.kernels.code.patterns import OperatorRows, PatternArgument
from ctrlnet.kernels.code.precision import precision_of
from ctrlnet.kernels.code.row_product import RowProduct
from ctrlnet.kernels.fused.codegen import KernelSpec, generate
from ctrlnet.kernels.fused.trajectory import FusedTrajectory
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import MOST_BLOCKS
from ctrlnet.operators.stencil_table import StencilTable

__all__ = ["FusedSweep", "compile_kernels"]


def compile_kernels(spec: KernelSpec, comm: MPI.Comm) -> ctypes.CDLL:
    """Return the shared library of a specification."""
    what = f"the propagation kernel for {spec.features} features and {spec.operators} operators"
    return compile_text(generate(spec), what, comm)


class FusedSweep:
    r"""Residual dynamics under forward Euler, :math:`Y_{k+1} = Y_k + h_k \sigma(\sum_j s_{jk} D_j Y_k + b_k)`.

    A :class:`~ctrlnet.kernels.sweep.Sweep` of one stage a step, and an
    :class:`~ctrlnet.kernels.sweep.ImageSweep`; on one rank, where there are no ghosts to fetch between layers, a
    :class:`~ctrlnet.kernels.sweep.ChunkSweep` too.

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

    most_blocks = MOST_BLOCKS

    @property
    def chunkwise(self) -> FusedSweep | None:
        return self if self.table.halo.comm.size == 1 else None

    @property
    def imagewise(self) -> FusedSweep:
        return self

    def __init__(self, table: StencilTable, features: int, activation: Pointwise, precision: str = "double"):
        kind = precision_of(precision)
        self.table = table
        self.features = features
        self.dtype = kind.dtype
        # The generated code must be the same on all ranks.
        widest = table.halo.comm.allreduce(max(table.forward.widest_row, table.transposed.widest_row), op=MPI.MAX)
        spec = KernelSpec(features, table.operators, widest, activation.c_text, activation.keeps_value, kind)
        self._widest = widest
        self.lanes = kind.lanes
        self.image_block = kind.lanes * spec.vector_block
        self._library = compile_kernels(spec, table.halo.comm)
        self._fields: dict[int, list[np.ndarray]] = {}
        self._rows = OperatorRows(table, kind)

    def _run(self, name: str, first: int, last: int, rows: PatternArgument, images: int, *arguments) -> None:
        """Run layers ``first`` to ``last - 1``; arguments are pointers."""
        getattr(self._library, name)(
            ctypes.c_int(first), ctypes.c_int(last), ctypes.byref(rows),
            ctypes.c_int(images // self.lanes), *arguments)

    def _spans(self, layers: int) -> list[tuple[int, int]]:
        """All layers in one call, or one by one where ghosts are fetched in between."""
        return [(0, layers)] if self.table.halo.comm.size == 1 else [(k, k + 1) for k in range(layers)]

    def _cast(self, coefficients: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(coefficients, dtype=self.dtype)

    def _inputs_first(self, coefficients: np.ndarray) -> np.ndarray:
        return self._cast(np.swapaxes(coefficients, -1, -2))

    def trajectory(self, layers: int, images: int, keep: bool = True) -> FusedTrajectory:
        """Return zeroed storage for a sweep over ``images`` images."""
        if images % self.image_block:
            raise ValueError(f"A chunk must hold a multiple of {self.image_block} images, received {images}.")
        rows = layers + 1 if keep else 2
        states = aligned_zeros((rows, self.table.nodes, self.features, images), self.dtype)
        kept = aligned_zeros((layers, self.table.owned, self.features, images), self.dtype) if keep else None
        return FusedTrajectory(states, kept, self.table.owned)

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

    def forward(self, controls: LayerControls, h: np.ndarray, trajectory: FusedTrajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; see :meth:`Sweep.forward`."""
        arrays = self._cast(h), self._inputs_first(controls.coefficients), self._cast(controls.biases)
        arguments = *map(pointer, arrays), trajectory.pointer
        states = trajectory.states
        for first, last in self._spans(len(h)):
            self.table.halo.update(states[first % states.shape[0]])
            self._run("forward_layers", first, last, self._rows.forward, trajectory.images, *arguments)
        return states[len(h) % states.shape[0], : self.table.owned]

    def _seed(self, name: str, *fields: np.ndarray) -> None:
        count = ctypes.c_size_t(fields[0].size // self.lanes)
        getattr(self._library, name)(count, *map(pointer, fields))

    def adjoint(
        self, controls: LayerControls, h: np.ndarray, trajectory: FusedTrajectory, lam: np.ndarray
    ) -> LayerControls:
        """Run the transposed sweep; see :meth:`Sweep.adjoint`."""
        layers = len(h)
        gS, gb = np.zeros(controls.coefficients.shape), np.zeros((layers, self.features))
        (mu,) = self._scratch(trajectory.images, 1)
        before = self._cast(h), self._cast(controls.coefficients)
        arguments = *map(pointer, before), trajectory.pointer, *map(pointer, (mu, lam, gS, gb))
        self._seed("seed", trajectory.kept[-1], lam, mu[(layers - 1) % 2])
        for first, last in reversed(self._spans(layers)):
            self.table.halo.update(mu[(last - 1) % 2])
            self._run("adjoint_layers", first, last, self._rows.transposed, trajectory.images, *arguments)
        return LayerControls.without_parameters(gS * h[:, None, None, None], gb * h[:, None])

    # Several chunks in one call: between small ones the time outside of the kernels would count.

    def _chunks(self, trajectories: Sequence[FusedTrajectory], rows: PatternArgument, layers: int) -> tuple:
        """Return the arguments that both passes begin with, and the pointers to the trajectories."""
        pointers = (ctypes.c_void_p * len(trajectories))(*(ctypes.addressof(t.c_struct) for t in trajectories))
        vectors = trajectories[0].images // self.lanes
        return (ctypes.c_int(len(trajectories)), ctypes.c_int(layers), ctypes.byref(rows),
                ctypes.c_int(vectors)), pointers

    def forward_chunks(
        self, controls: LayerControls, h: np.ndarray, trajectories: Sequence[FusedTrajectory], readout: RowProduct
    ) -> np.ndarray:
        """Propagate several chunks and read them out; see :meth:`ChunkSweep.forward_chunks`."""
        sizes, pointers = self._chunks(trajectories, self._rows.forward, len(h))
        images = trajectories[0].images
        features = np.empty((len(trajectories), readout.shape[0] * self.features, images))
        coefficients = [self._cast(h), self._inputs_first(controls.coefficients), self._cast(controls.biases)]
        self._library.forward_chunks(
            *sizes, *map(pointer, coefficients), pointers, ctypes.byref(readout.c_struct), pointer(features))
        return features.transpose(1, 0, 2).reshape(features.shape[1], -1)

    def adjoint_chunks(
        self, controls: LayerControls, h: np.ndarray, trajectories: Sequence[FusedTrajectory], readout: RowProduct,
        dfeatures: np.ndarray,
    ) -> LayerControls:
        """Run the transposed sweep of several chunks; see :meth:`ChunkSweep.adjoint_chunks`."""
        sizes, pointers = self._chunks(trajectories, self._rows.transposed, len(h))
        chunks, images = len(trajectories), trajectories[0].images
        padded = np.zeros((len(dfeatures), chunks * images))
        padded[:, : dfeatures.shape[1]] = dfeatures
        by_chunk = np.ascontiguousarray(padded.reshape(-1, chunks, images).transpose(1, 0, 2))
        shape = controls.coefficients.shape
        gS, gb = np.zeros((chunks, *shape)), np.zeros((chunks, len(h), self.features))
        mu, (lam, _) = self._scratch(images, 2)
        coefficients = [self._cast(h), self._cast(controls.coefficients)]
        self._library.adjoint_chunks(
            *sizes, *map(pointer, coefficients), pointers, ctypes.byref(readout.c_struct),
            ctypes.c_int(readout.shape[1]), *map(pointer, (by_chunk, mu, lam, gS, gb)))
        # Chunk by chunk, as where they are run one by one: the same numbers whatever the memory allows.
        return LayerControls.without_parameters(
            (gS * h[:, None, None, None]).sum(axis=0), (gb * h[:, None]).sum(axis=0))

    def adjoint_step(
        self, controls: LayerControls, h: np.ndarray, pair: FusedTrajectory, adjoints: list[np.ndarray | None]
    ) -> LayerControls:
        """Run the adjoint of one step; see :meth:`Sweep.adjoint_step`."""
        (lam,) = adjoints
        return self.adjoint(controls, h, pair, lam)

    def adjoint_each(
        self, controls: LayerControls, h: np.ndarray, trajectory: FusedTrajectory, lam: np.ndarray
    ) -> LayerControls:
        """Run the transposed sweep image by image, in the sweep's precision; see :meth:`ImageSweep.adjoint_each`."""
        layers, images = len(h), trajectory.images
        shapes = controls.coefficients.shape[1:], (self.features,)
        gS, gb = (aligned_zeros((layers, *shape, images), self.dtype) for shape in shapes)
        tiles = aligned_zeros((self._widest, self.features**2, images), self.dtype)
        (mu,) = self._scratch(images, 1)
        before = self._cast(h), self._cast(controls.coefficients)
        arguments = *map(pointer, before), trajectory.pointer, *map(pointer, (mu, lam, tiles, gS, gb))
        self._seed("seed", trajectory.kept[-1], lam, mu[(layers - 1) % 2])
        for first, last in reversed(self._spans(layers)):
            self.table.halo.update(mu[(last - 1) % 2])
            self._run("each_layers", first, last, self._rows.transposed, images, *arguments)
        gS *= h[:, None, None, None, None].astype(self.dtype)
        gb *= h[:, None, None].astype(self.dtype)
        return LayerControls(gS, gb, np.zeros((layers, 0, images), self.dtype))

    def tangent(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: FusedTrajectory,
        tangent: FusedTrajectory,
    ) -> np.ndarray:
        r"""Propagate a perturbation along a trajectory; see :meth:`Sweep.tangent`.

        :math:`dZ_k = K_k dY_k + dK_k Y_k + db_k`, :math:`dY_{k+1} = dY_k + h \sigma'(Z_k) dZ_k`.
        """
        coefficients, changes = map(self._inputs_first, (controls.coefficients, direction.coefficients))
        arrays = self._cast(h), coefficients, changes, self._cast(direction.biases)
        arguments = *map(pointer, arrays), trajectory.pointer, tangent.pointer
        for first, last in self._spans(len(h)):
            self.table.halo.update(tangent.states[first])
            self._run("tangent_layers", first, last, self._rows.forward, trajectory.images, *arguments)
        return tangent.states[len(h), : self.table.owned]

    def second_order(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: FusedTrajectory,
        tangent: FusedTrajectory, lam: np.ndarray, dlam: np.ndarray,
    ) -> LayerControls:
        r"""Differentiate the adjoint sweep along a tangent; see :meth:`Sweep.second_order`.

        With :math:`d\mu_k = \sigma' d\lambda_{k+1} + \sigma'' dZ_k \lambda_{k+1}`:
        :math:`d\lambda_k = d\lambda_{k+1} + h (K_k^T d\mu_k + dK_k^T \mu_k)`.
        """
        layers = len(h)
        gS, gb = np.zeros(controls.coefficients.shape), np.zeros((layers, self.features))
        mu, dmu = self._scratch(trajectory.images, 2)
        before = self._cast(h), self._cast(controls.coefficients), self._cast(direction.coefficients)
        after = mu, dmu, lam, dlam, gS, gb
        arguments = *map(pointer, before), trajectory.pointer, tangent.pointer, *map(pointer, after)
        start = (layers - 1) % 2
        self._seed(
            "seed_second_order", trajectory.kept[-1], tangent.kept[-1], lam, dlam, mu[start], dmu[start])
        for first, last in reversed(self._spans(layers)):
            self.table.halo.update(mu[(last - 1) % 2])
            self.table.halo.update(dmu[(last - 1) % 2])
            self._run("second_order_layers", first, last, self._rows.transposed, trajectory.images, *arguments)
        return LayerControls.without_parameters(gS * h[:, None, None, None], gb * h[:, None])
