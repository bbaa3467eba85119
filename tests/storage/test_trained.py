"""A trained network written and read: the same scores, on any number of ranks, onto any mesh; clear errors."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import ufl
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    ExtrudedMesh,
    FunctionSpace,
    MeshHierarchy,
    PeriodicRectangleMesh,
    grad,
    inner,
)
from irksome import Dt, GaussLegendre
from support.networks import blobs, small_network, small_problem, square
from support.ranks import SQUARE, on_ranks, smooth
from support.targets import KINDS, problem_of, start_of

import ctrlnet as cn
from ctrlnet.fields import Classes, NodalValues
from ctrlnet.operators import Operator, directional_derivative, east, lumped_dx, north, sphere_hierarchy
from ctrlnet.storage import History, write_csv
from ctrlnet.storage.history import Iteration
from ctrlnet.transfer import carry


def scores_of(trained, problem, m):
    """Scores of a file's network and of the network that was saved, of the same inputs."""
    inputs = problem.average.sample.inputs
    return trained.prediction.scores(inputs), problem.prediction(m).scores(inputs)


def assert_read_back(path, problem, m, **options):
    cn.save(path, problem, m)
    trained = cn.load(path, **options)
    mine, theirs = scores_of(trained, problem, m)
    assert np.abs(mine - theirs).max() <= 1e-12 * np.abs(theirs).max()
    again = trained.problem(problem.average.sample, memory_limit=2**24)
    J = problem.reduced_functional(m)(m)
    assert again.reduced_functional(trained.controls)(trained.controls) == pytest.approx(J, rel=1e-12)
    return trained


NETWORKS = {
    "plain": {},
    "degree 1": {},
    "reaction-diffusion, learned, IMEX": dict(dynamics=cn.ReactionDiffusion(0.1, learned=True), integrator=cn.IMEX()),
    "a sum": dict(dynamics=cn.Antisymmetric(cn.smoothed_relu(0.2)) + cn.Diffusion(0.1), integrator=cn.IMEX()),
    "Runge-Kutta, relu": dict(dynamics=cn.Residual(cn.relu), integrator=cn.RungeKutta()),
    "hyperbolic, Verlet": dict(dynamics=cn.Hyperbolic(), integrator=cn.StoermerVerlet()),
    "implicit": dict(dynamics=cn.Parabolic(), integrator=cn.BackwardEuler({"snes_rtol": 1e-10})),
    "learned opening": dict(opening=cn.LearnedOpening(2, 1, np.array([[0.3], [0.7]]))),
    "fixed opening, single": dict(opening=cn.FixedOpening([0.4, -1.0]), precision="single"),
    "stencil basis, more steps": dict(basis=cn.stencil_operators, steps=6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_read_back(name, tmp_path):
    network = small_network(**NETWORKS[name])
    if name == "degree 1":
        D = network.operators
        network = cn.Network(D, cn.ControlSpace(1.5, 3, D, 2, degree=1))
    problem = small_problem(network=network, count=20, control_scales=np.linspace(1.0, 2.0, len(network.operators)))
    trained = assert_read_back(tmp_path / "net.h5", problem, start_of(problem))
    assert trained.network.dynamics == network.dynamics and trained.network.integrator == network.integrator
    assert trained.network.operators.operators == network.operators.operators
    assert trained.network.precision == network.precision


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target_is_read_back(kind, tmp_path):
    problem = problem_of(kind)
    m = start_of(problem)
    cn.save(tmp_path / "net.h5", problem, m)
    trained = cn.load(tmp_path / "net.h5")
    mine, theirs = scores_of(trained, problem, m)
    if mine.ndim == 3:  # nodes have other numbers on the mesh that was read
        mine, theirs = np.sort(mine, axis=1), np.sort(theirs, axis=1)
    assert np.abs(mine - theirs).max() <= 1e-12
    inputs = problem.average.sample.inputs
    assert trained.predict(inputs).shape == problem.prediction(m).predict(inputs).shape
    assert type(trained.loss) is type(problem.average.loss)


def on_mesh(V, readout_space=None, basis=cn.low_order_operators):
    """A problem with constant inputs on any mesh."""
    D = basis(V)
    network = cn.Network(D, cn.ControlSpace(1.0, 2, D, 2))
    x = np.linspace(0.5, 1.5, 4)[:, None, None] * np.ones((4, 1, V.dof_dset.size))
    sample = cn.Sample(NodalValues(V, x), Classes(np.arange(4) % 2, 2))
    readout = cn.Readout(network, 2, V if readout_space is None else readout_space)
    return cn.TrainingProblem(readout, sample, weights_size=1e-2)


def meshes():
    fine = MeshHierarchy(square(2, quadrilateral=False), 2)
    extruded = ExtrudedMesh(square(2), 2, 0.5)
    sphere = sphere_hierarchy(2.0, 2)
    from firedrake import Mesh

    yield "simplices", FunctionSpace(square(3, False), "CG", 1), None
    yield "a file", FunctionSpace(Mesh(str(SQUARE)), "CG", 1), None
    yield "levels", FunctionSpace(fine[2], "CG", 1), FunctionSpace(fine[0], "CG", 1)
    yield "extruded", FunctionSpace(extruded, "CG", 1), None
    yield "sphere", FunctionSpace(sphere[2], "CG", 1), FunctionSpace(sphere[0], "CG", 1)
    yield "periodic", FunctionSpace(PeriodicRectangleMesh(4, 3, 6.0, 6.0), "CG", 1), None
    yield "one cell", FunctionSpace(square(3), "CG", 1), FunctionSpace(square(1), "DG", 0)
    yield "discontinuous", FunctionSpace(square(4), "CG", 1), FunctionSpace(square(2), "DG", 0)


@pytest.mark.parametrize("number", range(8))
def test_every_mesh_is_read_back(number, tmp_path):
    name, V, readout_space = list(meshes())[number]
    problem = on_mesh(V, readout_space)
    m = start_of(problem) if V.mesh().geometric_dimension == 2 else problem.controls(np.random.default_rng(0), 0.3)
    if name == "discontinuous":
        m.W.dat.data[:] = np.random.default_rng(1).standard_normal(m.W.dat.data_ro.shape)
    elif V.mesh().geometric_dimension == 3:
        m.W.dat.data[:] = 0.5
    cn.save(tmp_path / "net.h5", problem, m)
    trained = cn.load(tmp_path / "net.h5")
    there = trained.network.space
    x = NodalValues(there, np.linspace(0.5, 1.5, 4)[:, None, None] * np.ones((4, 1, there.dof_dset.size)))
    theirs = problem.prediction(m).scores(problem.average.sample.inputs)
    assert np.abs(trained.scores(x) - theirs).max() <= 1e-12 * np.abs(theirs).max()
    again = cn.load_controls(tmp_path / "net.h5", problem)
    for a, b in zip(again, m, strict=True):
        assert np.array_equal(a.dat.data_ro, b.dat.data_ro)


def test_a_hierarchy_whose_nodes_were_moved_is_given_back(tmp_path):
    moved = MeshHierarchy(square(2), 1)
    moved[1].coordinates.dat.data[:] *= 1.0 + 0.1 * np.sin(moved[1].coordinates.dat.data_ro)
    problem = on_mesh(FunctionSpace(moved[1], "CG", 1))
    m = problem.controls(np.random.default_rng(0), 0.3)
    cn.save(tmp_path / "net.h5", problem, m)
    with pytest.raises(ValueError, match="moved after its refinement.*meshes="):
        cn.load(tmp_path / "net.h5")
    name = moved[0].name
    assert_read_back(tmp_path / "net.h5", problem, m, meshes={name: moved[1]})
    with pytest.raises(ValueError, match="are not those of the mesh"):
        cn.load(tmp_path / "net.h5", meshes={name: MeshHierarchy(square(2), 1)[1]})


# What a user wrote.

def test_a_users_operators_and_activation_are_given_back_by_their_names(tmp_path):
    def advection(u, v):
        return (u.dx(0) + 2 * u.dx(1)) * v * lumped_dx()

    sharp = cn.Activation("sharp", lambda z: z / (1 + abs(z)))
    own = [Operator("1"), Operator("advection", (advection,)),
           Operator("twice", (lambda u, v: 2 * u * v * lumped_dx(),)),
           directional_derivative("diagonal", lambda x: ufl.as_vector((1.0, 1.0)))]
    network = small_network(basis=lambda V: cn.Operators(V, own), dynamics=cn.Residual(sharp))
    problem = small_problem(network=network, count=20)
    m = start_of(problem)
    given = {"advection": advection, "twice": own[2], "diagonal": own[3], "sharp": sharp}
    assert_read_back(tmp_path / "net.h5", problem, m, given=given)
    for name in given:
        with pytest.raises(ValueError, match=f"user's own, '{name}'.*given="):
            cn.load(tmp_path / "net.h5", given={n: v for n, v in given.items() if n != name})


def test_a_users_dynamics_and_tableau_are_given_back_by_their_names(tmp_path):
    def damped(Y, v, layer):
        return inner(Dt(Y) + Y, v) * lumped_dx() + 0.1 * inner(grad(Y), grad(v)) * lumped_dx() - layer.affine(Y, v)

    tableau = GaussLegendre(1)
    network = small_network(cells=3, layers=1, dynamics=cn.UserDynamics(damped), integrator=cn.Irksome(tableau))
    problem = small_problem(network=network, count=4)
    m = start_of(problem, 0.1)
    given = {"damped": damped, "GaussLegendre": tableau}
    cn.save(tmp_path / "net.h5", problem, m)
    mine, theirs = scores_of(cn.load(tmp_path / "net.h5", given=given), problem, m)
    assert np.abs(mine - theirs).max() <= 1e-10
    with pytest.raises(ValueError, match="'damped'"):
        cn.load(tmp_path / "net.h5")


def test_a_loss_without_a_class_of_ours_is_given_back(tmp_path):
    class Mine(cn.LeastSquares):
        pass

    problem = small_problem(count=20, loss=Mine())
    assert_read_back(tmp_path / "net.h5", problem, start_of(problem), given={"Mine": Mine()})


def test_the_frame_of_a_sphere_is_known(tmp_path):
    V = FunctionSpace(sphere_hierarchy(1.0, 1)[1], "CG", 1)
    problem = on_mesh(V, basis=lambda V: cn.low_order_operators(V, (east, north)))
    cn.save(tmp_path / "net.h5", problem, problem.controls())
    assert cn.load(tmp_path / "net.h5").network.operators.names == ["1", "east", "north", "laplacian"]


# Onto another problem.

def test_onto_another_mesh_as_carry_and_prolong_do(tmp_path):
    problem = small_problem(6, count=20)
    m = start_of(problem)
    cn.save(tmp_path / "net.h5", problem, m)
    network = problem.network
    V = FunctionSpace(square(12), "CG", 1)
    moved, in_time = carry(network, network.control_space.control_set.controls(m), V)
    readout = cn.Readout(moved, 3, FunctionSpace(square(4), "CG", 1))
    other = cn.TrainingProblem(readout, blobs(20, pixels=12), weights_size=1e-2)
    found = cn.load_controls(tmp_path / "net.h5", other)
    expected = in_time.extended(problem.readout.prolong(m, readout))
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a.dat.data_ro - b.dat.data_ro).max() <= 1e-13


def test_onto_more_layers_as_prolong_does(tmp_path):
    problem = small_problem(count=20)
    m = start_of(problem)
    cn.save(tmp_path / "net.h5", problem, m)
    deep = problem.network.control_space.finer()
    other = cn.TrainingProblem(
        cn.Readout(problem.network.with_depth(deep), 3, problem.readout.space), blobs(20), weights_size=1e-2)
    found = cn.load_controls(tmp_path / "net.h5", other)
    for a, b in zip(found, problem.network.control_space.prolong(m, deep), strict=False):
        assert np.array_equal(a.dat.data_ro, b.dat.data_ro)
    assert np.array_equal(found.W.dat.data_ro, m.W.dat.data_ro)


@pytest.mark.parametrize(("change", "what"), [
    (dict(features=3, opening=cn.FixedOpening([1.0, 0.0, 0.0])), "features"), (dict(T=2.0), "final time"),
    (dict(basis=cn.stencil_operators), "operators"), (dict(opening=cn.LearnedOpening(2, 1)), "opening"),
    (dict(dynamics=cn.ReactionDiffusion(0.1, learned=True), integrator=cn.IMEX()), "learned parameters")])
def test_onto_another_network_is_refused(change, what, tmp_path):
    problem = small_problem(count=20)
    cn.save(tmp_path / "net.h5", problem, problem.controls())
    other = small_problem(network=small_network(**change), count=20)
    with pytest.raises(ValueError, match=f"another network: its {what}"):
        cn.load_controls(tmp_path / "net.h5", other)


def test_onto_control_cells_that_do_not_refine_is_refused(tmp_path):
    problem = small_problem(count=20)
    cn.save(tmp_path / "net.h5", problem, problem.controls())
    other = small_problem(network=small_network(layers=4), count=20)
    with pytest.raises(ValueError, match="3 control cells, which the problem's 4 do not refine"):
        cn.load_controls(tmp_path / "net.h5", other)


# Files that are none.

def test_what_cannot_be_read_is_refused(tmp_path):
    problem = small_problem(count=20)
    path = cn.save(tmp_path / "net.h5", problem, problem.controls())
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing.h5"):
        cn.load(tmp_path / "nothing.h5")
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1000):
        (tmp_path / "part.h5").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not all of it is there"):
            cn.load(tmp_path / "part.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="no HDF5 file"):
        cn.load(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="no trained network"):
        cn.load(tmp_path / "other.h5")
    with h5py.File(path, "a") as file:
        file["ctrlnet"].attrs["format"] = 99
    with pytest.raises(ValueError, match="format 99.*formats up to 1"):
        cn.load(path)


def test_nothing_is_written_where_saving_fails(tmp_path):
    problem = small_problem(count=20)
    with pytest.raises(ValueError, match="missing"):
        cn.save(tmp_path / "net.h5", problem, problem.network.control_space.zero())
    with pytest.raises(FileNotFoundError, match="no folder"):
        cn.save(tmp_path / "nowhere" / "net.h5", problem, problem.controls())
    assert not list(tmp_path.iterdir())


# History.

def test_the_history_is_read_back_and_written_as_a_table(tmp_path):
    problem = small_problem(count=20)
    result = cn.train_level(problem, problem.controls(np.random.default_rng(0)), iterations=3)
    trained = cn.load(result.save(tmp_path / "net.h5"))
    assert trained.history == result.history and trained.versions["ctrlnet"]
    assert np.array_equal(trained.predict(blobs(20).inputs), result.predict(blobs(20).inputs))
    write_csv(tmp_path / "history.csv", result.history.iterations)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0].startswith("number,objective,loss") and len(lines) == 1 + len(result.history.iterations)
    assert float(lines[-1].split(",")[1]) == result.history.last.objective


def test_an_iteration_without_an_accuracy_has_none_when_it_is_read(tmp_path):
    first = Iteration(0, 1.0, 0.9, 0.1, 1.0, 5.0, 0.1, accuracies={"test": 0.5})
    problem = small_problem(count=20)
    history = History([first, replace(first, number=1, accuracies={})], "limit")
    cn.save(tmp_path / "net.h5", problem, problem.controls(), history)
    assert cn.load(tmp_path / "net.h5").history == history


# Ranks.

def paths_of(tmp_path):
    return COMM_WORLD.bcast(tmp_path)


@on_ranks
def test_saved_on_one_rank_and_read_on_several_and_the_reverse(tmp_path):
    folder = paths_of(tmp_path)
    alone, together = (problem_of("class vectors", comm) for comm in (COMM_SELF, COMM_WORLD))
    m, n = start_of(alone), start_of(together)
    inputs = alone.average.sample.inputs
    expected = alone.prediction(m).scores(inputs)
    if COMM_WORLD.rank == 0:
        cn.save(folder / "one.h5", alone, m)
    COMM_WORLD.barrier()
    cn.save(folder / "all.h5", together, n)
    for name, comm in (("one.h5", COMM_WORLD), ("all.h5", COMM_SELF), ("all.h5", COMM_WORLD)):
        scores = cn.load(folder / name, comm=comm).scores(inputs)
        assert np.abs(scores - expected).max() <= 1e-12 * np.abs(expected).max(), name


@on_ranks
def test_levels_of_a_hierarchy_and_a_sphere_on_ranks(tmp_path):
    folder = paths_of(tmp_path)
    for number in (2, 4):
        name, V, readout_space = list(meshes())[number]
        problem = on_mesh(V, readout_space)
        m = problem.controls(np.random.default_rng(0), 0.3)
        m.W.assign(0.5 if name == "sphere" else smooth(m.W.function_space()))
        cn.save(folder / f"{number}.h5", problem, m)
        theirs = problem.prediction(m).scores(problem.average.sample.inputs)
        trained = cn.load(folder / f"{number}.h5")
        there = trained.network.space
        x = NodalValues(there, np.linspace(0.5, 1.5, 4)[:, None, None] * np.ones((4, 1, there.dof_dset.size)))
        assert np.abs(trained.scores(x) - theirs).max() <= 1e-12 * np.abs(theirs).max()


@on_ranks
def test_a_file_that_is_none_is_refused_on_all_ranks(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        cn.load(paths_of(tmp_path) / "nothing.h5")
