"""Adjoint sweeps from a few stored states, and memory limits of the sample average."""

import numpy as np
import pytest
from mpi4py import MPI
from small import small_network, small_problem

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
    kept = small_problem(count=300)
    chunk = kept.network.sweep.trajectory_bytes(3, kept.average.chunk_images)
    chunk = MPI.COMM_WORLD.allreduce(chunk, op=MPI.MAX)
    recomputed = small_problem(count=300, memory_limit=chunk)
    checkpointed = small_problem(count=300, memory_limit=0)
    assert kept.average.keeps_trajectories and kept.average.snapshots is None
    assert not recomputed.average.keeps_trajectories and recomputed.average.snapshots is None
    assert checkpointed.average.snapshots == 1
    rng = np.random.default_rng(0)
    S, b, W, beta = kept.arrays(*kept.controls(rng, 0.5))
    # The same at every node: two meshes of one shape may be numbered differently on several ranks.
    arrays = (S, b, np.tile(rng.normal(size=(2, 3)), (W.shape[0] // 2, 1)), beta)
    reference = (kept.average.value(*arrays), *kept.average.gradient(*arrays))
    for problem in (recomputed, checkpointed):
        found = (problem.average.value(*arrays), *problem.average.gradient(*arrays))
        for a, c in zip(reference, found, strict=True):
            assert np.abs(a - c).max() <= 1e-13 * np.abs(a).max()
        hessian = problem.average.hessian(arrays, arrays)
        for a, c in zip(kept.average.hessian(arrays, arrays), hessian, strict=True):
            assert np.abs(a - c).max() <= 1e-12 * np.abs(a).max()


def test_a_negative_memory_limit_is_refused():
    with pytest.raises(ValueError, match="memory_limit must not be negative, received -1 bytes"):
        small_problem(memory_limit=-1)
