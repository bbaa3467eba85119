"""Adjoint sweeps from a few stored states, and memory limits of the sample average."""

import numpy as np
import pytest
from mpi4py import MPI
from support.networks import blobs, small_network, small_problem
from support.points import arrays_of, gradient_at, hessian_at, value_at

from ctrlnet import SampleAverage
from ctrlnet.kernels.checkpointing import checkpointed_adjoint
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.objective import Point


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
    controls = LayerControls.without_parameters(S, b)
    final = sweep.forward(controls, h, trajectory).copy()
    lam = sweep.field(images)
    seed = rng.normal(size=lam.shape)
    lam[:] = seed
    derivative = sweep.adjoint(controls, h, trajectory, lam)
    seen = []

    def final_adjoint(state):
        seen.append(state.copy())
        out = sweep.field(images)
        out[:] = seed
        return out

    again = checkpointed_adjoint(sweep, controls, h, start, snapshots, final_adjoint)
    assert len(seen) == 1 and np.array_equal(seen[0], final)
    for expected, found in zip((*derivative.arrays[:2], lam), (*again[0].arrays[:2], again[1]), strict=True):
        assert np.abs(expected - found).max() <= 1e-13 * np.abs(expected).max()
    assert again[2] >= layers
    if snapshots >= layers:
        assert again[2] <= 2 * layers, "with room for every state no layer runs more than twice"


def test_no_room_for_a_single_state_is_refused():
    network = small_network()
    with pytest.raises(ValueError, match="at least one state, received snapshots=0"):
        checkpointed_adjoint(network.sweep, network.layers(network.control_space.zero()), network.step_sizes,
                             network.sweep.field(network.sweep.image_block), 0, lambda state: state)


@pytest.mark.parallel(nprocs=[1, 2])
def test_every_memory_limit_gives_the_same_value_and_gradient():
    problem = small_problem(count=300)
    kept = problem.average
    chunk = problem.network.sweep.trajectory_bytes(3, kept.chunk_images)
    chunk = MPI.COMM_WORLD.allreduce(chunk, op=MPI.MAX)
    limits = 2 * chunk - 1, 0  # one chunk beside the inputs, which count too, and none
    recomputed, checkpointed = (SampleAverage(problem.readout, blobs(300), memory_limit=m) for m in limits)
    assert kept.keeps_trajectories and kept.snapshots is None
    assert not recomputed.keeps_trajectories and recomputed.snapshots is None
    assert checkpointed.snapshots == 1
    rng = np.random.default_rng(0)
    layers, W, beta = problem.point(problem.controls(rng, 0.5))
    point = Point(layers, rng.normal(size=W.shape), beta)

    def numbers(average):
        derivatives = gradient_at(average, point), hessian_at(average, point, point)
        return value_at(average, point), *(a for derivative in derivatives for a in arrays_of(derivative))

    reference = numbers(kept)
    for average in (recomputed, checkpointed):
        found = numbers(average)
        for a, c in zip(reference, found, strict=True):
            assert np.abs(a - c).max() <= 1e-12 * np.abs(a).max()


def test_a_negative_memory_limit_is_refused():
    with pytest.raises(ValueError, match="memory_limit must not be negative, received -1 bytes"):
        small_problem(memory_limit=-1)
