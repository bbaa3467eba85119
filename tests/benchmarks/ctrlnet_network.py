"""The measured side: ctrlnet on the ranks of one MPI job, driven as a user drives it."""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
from channel import serve
from firedrake import (
    COMM_WORLD,
    Ensemble,
    Function,
    FunctionSpace,
    PeriodicRectangleMesh,
    RectangleMesh,
    SpatialCoordinate,
)
from firedrake import VectorFunctionSpace as VectorSpace

import ctrlnet as cn

SIDE = 28.0  # of the domain, in pixels
TIME = 4.0


class _TimedLibrary:
    """The compiled kernels with a clock around each call."""

    def __init__(self, library, seconds: dict[str, float]):
        self._library, self._seconds = library, seconds

    def __getattr__(self, name: str):
        function = getattr(self._library, name)

        def timed(*arguments):
            began = time.perf_counter()
            function(*arguments)
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

        setattr(self, name, timed)  # the next call finds it without coming here
        return timed


class CtrlnetNetwork:
    """Answers the benchmark's requests; every rank runs the same one."""

    def __init__(self):
        self._kernel_seconds: dict[str, float] = {}
        self._built: dict[str, tuple] = {}

    def build(
        self, key: str, cells: int, features: int, images: int, layers: int, precision: str, seed: int,
        periodic: bool = False, triangles: bool = False, split_images: bool = False, memory_limit: int = 2**31,
    ) -> dict:
        """Set up a training problem under a name; return the sizes that flop counts need.

        Ranks split the mesh, or, with ``split_images``, the images: an ensemble of one rank a member.
        """
        ensemble = Ensemble(COMM_WORLD, 1) if split_images else None
        comm = COMM_WORLD if ensemble is None else ensemble.comm
        if periodic:
            mesh = PeriodicRectangleMesh(cells, cells, SIDE, SIDE, quadrilateral=True, comm=comm)
        else:
            mesh = RectangleMesh(cells, cells, SIDE, SIDE, quadrilateral=not triangles, comm=comm)
        V = FunctionSpace(mesh, "CG", 1)
        operators = cn.low_order_operators(V) if triangles else cn.stencil_operators(V)
        controls = cn.ControlSpace(TIME, layers, operators, features)
        network = cn.Network(operators, controls, precision=precision)
        coarse = None if periodic else FunctionSpace(
            RectangleMesh(4, 4, SIDE, SIDE, quadrilateral=True, comm=comm), "CG", 1)
        readout = cn.Readout(network, classes=10, space=coarse)
        rng = np.random.default_rng(seed)
        sample = cn.Sample(rng.random((images, 28, 28)), rng.integers(0, 10, images))
        problem = cn.TrainingProblem(
            readout, sample, control_size=1e-4, weights_gradient=0.0 if periodic else 1e-4, memory_limit=memory_limit,
            ensemble=ensemble)
        s, b = controls.random(rng, scale=0.1 / np.sqrt(features))
        b.dat.data[:] = 0.1 * rng.standard_normal(b.dat.data_ro.shape)
        W, beta = readout.zero()
        weights = 0.01 * rng.standard_normal((readout.features, 10))
        readout.control_set["W"].write(W, weights)
        beta.dat.data[:] = 0.01 * rng.standard_normal(beta.dat.data_ro.shape)
        for kernels in (network.sweep, readout.restriction, readout.restriction_adjoint):
            kernels._library = _TimedLibrary(kernels._library, self._kernel_seconds)
        point = (s, b, W, beta)
        self._built[key] = problem, problem.reduced_functional(point), point
        table = operators.table
        return {
            "nodes": operators.nodes, "entries": mesh.comm.allreduce(int(table.forward.columns.size)),
            "ghosts": table.halo.ghosts, "chunk_images": problem.average.chunk_images,
            "kept_chunks": problem.average.plan.kept, "chunks": problem.average.plan.chunks,
            "trajectory_bytes": network.sweep.trajectory_bytes(layers, images), "operators": len(operators),
        }

    def drop(self) -> None:
        """Free all problems."""
        self._built.clear()

    def measure(self, key: str) -> dict:
        """Time one value and one gradient of the reduced functional, the kernels inside both, and the sweeps alone."""
        problem, reduced_functional, point = self._built[key]
        COMM_WORLD.barrier()
        self._kernel_seconds.clear()
        began = time.perf_counter()
        reduced_functional(point)
        middle = time.perf_counter()
        reduced_functional.derivative()
        ended = time.perf_counter()
        found = {"forward": middle - began, "gradient": ended - middle, "kernels": dict(self._kernel_seconds)}
        self._kernel_seconds.clear()
        self._sweep_chunks(problem, point)
        return found | {"sweeps": dict(self._kernel_seconds)}

    @staticmethod
    def _sweep_chunks(problem, point) -> None:
        """Run the forward and the adjoint sweep of each chunk by itself, without the readout."""
        average, network = problem.average, problem.network
        layers, W, _ = problem.point(point)
        dF, lam = np.zeros((W.shape[0], average.chunk_images)), network.sweep.field(average.chunk_images)
        for chunk in average.trajectories.chunks:
            trajectory = average.trajectories.started(chunk)
            network.sweep.forward(layers, network.step_sizes, trajectory)
            dF[:] = 0.0
            dF[:, : chunk.stop - chunk.start] = W.sum(axis=1, keepdims=True)
            problem.readout.restrict_adjoint(dF, lam)
            network.sweep.adjoint(layers, network.step_sizes, trajectory, lam)

    def peak_bytes(self) -> int:
        """Return the largest resident memory of this process so far."""
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def rates(self, precision: str) -> dict:
        """Return this core's matrix-multiply rate in flop/s and copy rate in bytes/s (read and written)."""
        dtype = np.float64 if precision == "double" else np.float32
        a = np.random.default_rng(0).random((1024, 1024)).astype(dtype)
        out, source = a @ a, np.ones(2**24, dtype)  # 128 or 64 MiB: far larger than a cache
        target = source.copy()
        multiply, copy = [], []
        for _ in range(3):
            began = time.perf_counter()
            np.matmul(a, a, out=out)
            middle = time.perf_counter()
            np.copyto(target, source)
            multiply.append(middle - began)
            copy.append(time.perf_counter() - middle)
        return {"matmul": 2 * 1024**3 / float(np.median(multiply)), "copy": 2 * source.nbytes / float(np.median(copy))}

    def snapshot(self, key: str) -> dict:
        """Return inputs, loss and derivatives, without regularisation, as arrays over this rank's nodes and images."""
        problem, _, controls = self._built[key]
        network = problem.network
        point = problem.point(controls)
        layers, W, beta = point
        at = problem.average.at(layers)
        loss = at.value(W, beta)
        derivative, gW, gbeta = at.gradient(W, beta)
        gS, gb, _ = derivative.arrays
        V = network.space
        X = Function(VectorSpace(V.mesh(), V.ufl_element())).interpolate(SpatialCoordinate(V.mesh()))
        S, b, _ = layers.arrays
        return {
            "places": X.dat.data_ro.copy(), "nodal": np.concatenate(problem.average.nodal, axis=1, dtype=float),
            "labels": problem.average.sample.labels, "S": S, "b": b, "W": W, "beta": beta, "loss": loss, "gS": gS,
            "gb": gb, "gW": gW, "gbeta": gbeta, "step": float(network.step_sizes[0]), "side": SIDE,
        }


if __name__ == "__main__":
    serve(CtrlnetNetwork(), COMM_WORLD.rank, sys.argv[-1])
