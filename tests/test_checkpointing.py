"""Adjoint sweeps from a few stored states, and memory limits of the sample average."""

import numpy as np
import pytest
from mpi4py import MPI
from small import blobs, small_network, small_problem

from ctrlnet import SampleAverage
from ctrlnet.kernels import checkpointed_adjoint


@pytest.mark.parametrize("snapshots", [1, 2, 5, 50])
@pytest.mark.parametrize("layers", [1, 2, 7])
def test_a_checkpointed_adjoint_equals_the_one_with_everything_kept(snapshots, layers):
    network = small_network(layers=layers)
    sweep, h = network.sweep, network.step_sizes
    rng = np.random.default_rng(layers)
    S = rng.normal(size=(layers, 4, 2, 2))
    b = rng.normal(size=(layers, 2))
    images = sweep.image_block
    trajectory = sweep.trajectory(layers, images)
    trajectory.initial[:] = rng.normal(size=trajectory.initial.shape)
    start = trajectory.initial.copy()
    final = sweep.forward(S, b, h, trajectory).copy()
    lam = sweep.field(images)
    seed = rng.normal(size=lam.shape)
    lam[:] = seed
    gS, gb = sweep.adjoint(S, h, trajectory, lam)
    seen = []

    def final_adjoint(state):
        seen.append(state.copy())
        out = sweep.field(images)
        out[:] = seed
        return out

    again = checkpointed_adjoint(sweep, S, b, h, start, snapshots, final_adjoint)
    assert len(seen) == 1 and np.array_equal(seen[0], final)
    for expected, found in zip((gS, gb, lam), again[:3], strict=True):
        assert np.abs(expected - found).max() <= 1e-13 * np.abs(expected).max()
    assert again[3] >= layers
    if snapshots >= layers:
        assert again[3] <= 2 * layers, "with room for every state no layer runs more than twice"


def test_no_room_for_a_single_state_is_refused():
    network = small_network()
    with pytest.raises(ValueError, match="at least one state, received snapshots=0"):
        checkpointed_adjoint(network.sweep, np.zeros((3, 4, 2, 2)), np.zeros((3, 2)), network.step_sizes,
                             network.sweep.field(network.sweep.image_block), 0, lambda state: state)


@pytest.mark.parallel(nprocs=[1, 2])
def test_every_memory_limit_gives_the_same_value_and_gradient():
    problem = small_problem(count=300)
    kept = problem.average
    chunk = problem.network.sweep.trajectory_bytes(3, kept.chunk_images)
    chunk = MPI.COMM_WORLD.allreduce(chunk, op=MPI.MAX)
    recomputed, checkpointed = (SampleAverage(problem.readout, blobs(300), memory_limit=m) for m in (chunk, 0))
    assert kept.keeps_trajectories and kept.snapshots is None
    assert not recomputed.keeps_trajectories and recomputed.snapshots is None
    assert checkpointed.snapshots == 1
    rng = np.random.default_rng(0)
    S, b, W, beta = problem.arrays(*problem.controls(rng, 0.5))
    point = (S, b, rng.normal(size=W.shape), beta)
    reference = (kept.value(*point), *kept.gradient(*point), *kept.hessian(point, point))
    for average in (recomputed, checkpointed):
        found = (average.value(*point), *average.gradient(*point), *average.hessian(point, point))
        for a, c in zip(reference, found, strict=True):
            assert np.abs(a - c).max() <= 1e-12 * np.abs(a).max()


def test_a_negative_memory_limit_is_refused():
    with pytest.raises(ValueError, match="memory_limit must not be negative, received -1 bytes"):
        small_problem(memory_limit=-1)
