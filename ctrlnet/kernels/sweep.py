"""Sweeps of a chunk of images through all layers: forward, adjoint, tangent and second order."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ctrlnet.activations import Activation
from ctrlnet.kernels.codegen import KernelSpec
from ctrlnet.kernels.compile import compile_kernels
from ctrlnet.kernels.stencil_table import Pattern, StencilTable

__all__ = ["FusedSweep", "Trajectory", "aligned_zeros"]


def aligned_zeros(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Return zeros whose first byte lies on a 64-byte line, as the SIMD kernels need."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + 64, dtype=np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + count].view(dtype).reshape(shape)


class _PatternArgument(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_int)] + [
        (name, ctypes.c_void_p) for name in ("order", "start", "column", "cls", "first", "table")
    ]


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
    """

    states: np.ndarray
    kept: np.ndarray | None
    owned: int

    @property
    def initial(self) -> np.ndarray:
        """Owned rows of the state at time 0, a view (owned nodes, C, images)."""
        return self.states[0, : self.owned]

    @property
    def images(self) -> int:
        return self.states.shape[-1]

    nbytes = property(lambda self: self.states.nbytes + (0 if self.kept is None else self.kept.nbytes))


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
        self.lanes = spec.lanes
        self.image_block = spec.lanes * spec.vector_block
        self._library = compile_kernels(spec, table.halo.comm)
        self._scalar = ctypes.c_double if precision == "double" else ctypes.c_float
        self._fields: dict[int, list[np.ndarray]] = {}
        self._arguments = {id(p): self._pattern(p) for p in (table.forward, table.transposed)}

    def _pattern(self, pattern: Pattern) -> _PatternArgument:
        arrays = [pattern.order, pattern.start, pattern.columns, pattern.row_class, pattern.first]
        arrays.append(np.ascontiguousarray(pattern.table, dtype=self.dtype))
        argument = _PatternArgument(pattern.rows, *(a.ctypes.data for a in arrays))
        argument.arrays = arrays  # the C struct holds bare pointers
        return argument

    def _run(self, name: str, pattern: Pattern, images: int, h: float, *fields) -> None:
        function = getattr(self._library, name)
        pointers = [ctypes.c_void_p(None if f is None else f.ctypes.data) for f in fields]
        argument = ctypes.byref(self._arguments[id(pattern)])
        function(argument, ctypes.c_int(images // self.lanes), self._scalar(h), *pointers)

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
        """Return ``count`` fields with ghosts that every sweep overwrites: fresh ones would cost page faults."""
        fields = self._fields.setdefault(images, [])
        while len(fields) < count:
            fields.append(self.field(images, ghosts=True))
        return fields[:count]

    def forward(self, S: np.ndarray, b: np.ndarray, h: np.ndarray, trajectory: Trajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; return the owned rows of the final state, a view."""
        coefficients, biases = self._inputs_first(S), self._cast(b)
        states, kept = trajectory.states, trajectory.kept
        count = states.shape[0]
        for k in range(len(h)):
            state, following = states[k % count], states[(k + 1) % count]
            self.table.halo.update(state)
            self._run(
                "forward", self.table.forward, trajectory.images, h[k], coefficients[k], biases[k], state, following,
                None if kept is None else kept[k],
            )
        return states[len(h) % count, : self.table.owned]

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
        coefficients = self._cast(S)
        gS, gb = np.zeros(S.shape), np.zeros((layers, self.features))
        mu, below = self._scratch(trajectory.images, 2)
        self._seed("seed", trajectory.kept[-1], lam, mu)
        for k in reversed(range(layers)):
            self.table.halo.update(mu)
            kept = trajectory.kept[k - 1] if k else None
            self._run(
                "adjoint", self.table.transposed, trajectory.images, h[k], coefficients[k], trajectory.states[k], mu,
                lam, kept, below, gS[k], gb[k],
            )
            mu, below = below, mu
        return gS * h[:, None, None, None], gb * h[:, None]

    def adjoint_layer(
        self, S: np.ndarray, h: float, pair: Trajectory, lam: np.ndarray, mu: np.ndarray, gS: np.ndarray, gb: np.ndarray
    ) -> None:
        r"""Run the adjoint of one layer: ``lam`` from :math:`\lambda_{k+1}` to :math:`\lambda_k`, gradients added.

        ``pair`` is the trajectory of the layer alone, S its coefficients (J, C, C), ``mu`` a field with ghosts.
        """
        self._seed("seed", pair.kept[0], lam, mu)
        self.table.halo.update(mu)
        part_S, part_b = np.zeros(S.shape), np.zeros(S.shape[-1])
        self._run(
            "adjoint", self.table.transposed, pair.images, h, self._cast(S), pair.states[0], mu, lam, None, mu,
            part_S, part_b,
        )
        gS += h * part_S
        gb += h * part_b

    def tangent(
        self, S: np.ndarray, dS: np.ndarray, db: np.ndarray, h: np.ndarray, trajectory: Trajectory, tangent: Trajectory
    ) -> np.ndarray:
        r"""Propagate a perturbation of (S, b, Y_0) along a trajectory.

        :math:`dZ_k = K_k dY_k + dK_k Y_k + db_k`, :math:`dY_{k+1} = dY_k + h \sigma'(Z_k) dZ_k`;
        ``tangent.initial`` holds :math:`dY_0`. Returns the owned rows of :math:`dY_N`, a view.
        """
        coefficients, changes, biases = self._inputs_first(S), self._inputs_first(dS), self._cast(db)
        for k in range(len(h)):
            self.table.halo.update(tangent.states[k])
            self._run(
                "tangent", self.table.forward, trajectory.images, h[k], coefficients[k], changes[k], biases[k],
                trajectory.states[k], trajectory.kept[k], tangent.states[k], tangent.states[k + 1], tangent.kept[k],
            )
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
        coefficients, changes = self._cast(S), self._cast(dS)
        gS, gb = np.zeros(S.shape), np.zeros((layers, self.features))
        mu, dmu, below, dbelow = self._scratch(trajectory.images, 4)
        self._seed("seed_second_order", trajectory.kept[-1], tangent.kept[-1], lam, dlam, mu, dmu)
        for k in reversed(range(layers)):
            self.table.halo.update(mu)
            self.table.halo.update(dmu)
            kept, dZ = (trajectory.kept[k - 1], tangent.kept[k - 1]) if k else (None, None)
            self._run(
                "second_order", self.table.transposed, trajectory.images, h[k], coefficients[k], changes[k],
                trajectory.states[k], tangent.states[k], mu, dmu, lam, dlam, kept, dZ, below, dbelow, gS[k], gb[k],
            )
            mu, below, dmu, dbelow = below, mu, dbelow, dmu
        return gS * h[:, None, None, None], gb * h[:, None]
