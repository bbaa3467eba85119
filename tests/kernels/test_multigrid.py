"""The IMEX step's solve by conjugate gradients and multigrid, against the direct one."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, ExtrudedMeshHierarchy, FunctionSpace, MeshHierarchy, RectangleMesh
from support.derivatives import check_derivatives
from support.networks import small_network, small_problem, square
from support.ranks import assert_equal, propagation_numbers
from support.surfaces import spaces_on_spheres

import ctrlnet as cn
from ctrlnet.kernels.solves import diffusion
from ctrlnet.kernels.solves.multigrid import MultigridSolve
from ctrlnet.kernels.solves.substitution import DirectSolve
from ctrlnet.operators import NestingError, sphere_hierarchy
from ctrlnet.optimise import Limits, ProjectedFunctional, TaoOptimiser

KINDS = ["interval", "quadrilateral", "triangle", "hexahedron", "tetrahedron"]


def with_solver(solver, nu=0.4, learned=False, **parameters):
    return dict(dynamics=cn.ReactionDiffusion(nu, learned=learned),
                integrator=cn.IMEX(solver=solver, solver_parameters=parameters))


def on_a_hierarchy(**settings):
    """A small network whose mesh has a coarser one: otherwise there is nothing for multigrid to work on."""
    return small_network(cells=3, **settings).on(FunctionSpace(MeshHierarchy(square(3), 1)[-1], "CG", 1))


def solves_of(V, c, **parameters):
    """The solves with I - c Laplacian, direct and multigrid."""
    found = []
    for solver in ("direct", "multigrid"):
        D = cn.low_order_operators(V)
        chosen = parameters if solver == "multigrid" else {}
        network = cn.Network(D, cn.ControlSpace(1.0, 1, D, 1), **with_solver(solver, c, **chosen))
        found.append(network.sweep._solve(1.0, 0.0))
    return found


@pytest.mark.parametrize("refinements", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_direct_solve(space, kind, refinements):
    """G^-1 and G^-T to 1e-12, for blocks of one width and of several; without a hierarchy by Jacobi."""
    V = space(kind, 2, 0.5, COMM_SELF, refinements=refinements)
    direct, multigrid = solves_of(V, 0.7)
    assert isinstance(direct, DirectSolve) and isinstance(multigrid, MultigridSolve)
    rng = np.random.default_rng(0)
    for columns in (8, 24, 72, 152):
        field = rng.standard_normal((V.dim(), 1, columns))
        for transposed in (False, True):
            expected = direct(field.copy(), transposed)
            error = np.abs(multigrid(field.copy(), transposed) - expected).max() / np.abs(expected).max()
            assert error < 1e-12, f"{columns} columns, transposed {transposed}: {error:.1e}"


@pytest.mark.parametrize("quadrilateral", [True, False], ids=["quadrilaterals", "triangles"])
@pytest.mark.parametrize("c", [1e-2, 1.0, 100.0])
def test_iterations_do_not_grow_under_refinement(quadrilateral, c):
    """To a relative residual of 1e-13, whatever the step: at most 12, and no more on 112 cells than on 56, to one.

    Coarser meshes need fewer where the step is small: there I - c Laplacian is nearly I.
    """
    counts = []
    for mesh in MeshHierarchy(RectangleMesh(7, 7, 28.0, 28.0, quadrilateral=quadrilateral), 4)[1:]:
        V = FunctionSpace(mesh, "CG", 1)
        solve = solves_of(V, c)[1]
        solve(np.random.default_rng(0).standard_normal((V.dof_dset.size, 1, 8)))
        counts += solve.iterations
    assert max(counts) <= 12 and counts[-1] <= counts[-2] + 1, counts


@pytest.mark.parametrize("c", [1e-2, 1.0, 100.0])
def test_iterations_do_not_grow_on_spheres(c):
    """As on the square, though the levels of a sphere do not nest: 162 to 10,242 nodes, down to the icosahedron."""
    counts = []
    for V in spaces_on_spheres(5, radius=8.0)[2:]:
        solve = solves_of(V, c)[1]
        solve(np.random.default_rng(0).standard_normal((V.dof_dset.size, 1, 8)))
        counts += solve.iterations
    assert max(counts) <= 12 and counts[-1] <= counts[-2] + 1, counts


@pytest.mark.parametrize("name", ["slab", "shell"])
def test_extruded_levels(name):
    """A slab's levels nest and have their multigrid; those of a shell are in each other's way and are refused."""
    base = MeshHierarchy(square(2, False), 1) if name == "slab" else sphere_hierarchy(4.0, 1)
    kind = "uniform" if name == "slab" else "radial"
    mesh = ExtrudedMeshHierarchy(base, 2.0, base_layer=1, extrusion_type=kind)[1]
    V = FunctionSpace(mesh, "CG", 1)
    direct, multigrid = solves_of(V, 0.5)
    field = np.random.default_rng(0).standard_normal((V.dim(), 1, 8))
    if name == "slab":
        np.testing.assert_allclose(multigrid(field.copy()), direct(field.copy()), atol=1e-12)
        assert multigrid.iterations[0] <= 12
    else:
        assert np.isfinite(direct(field.copy())).all()
        with pytest.raises(NestingError, match="Levels of a curved shell do not cover each other"):
            multigrid(field)


def test_without_multigrid_they_do():
    """What the preconditioner is for: conjugate gradients with Jacobi alone take ever more iterations."""
    counts = []
    for cells in (14, 28, 56):
        V = FunctionSpace(RectangleMesh(cells, cells, 28.0, 28.0, quadrilateral=True), "CG", 1)
        solve = solves_of(V, 100.0)[1]
        solve(np.random.default_rng(0).standard_normal((V.dof_dset.size, 1, 8)))
        counts += solve.iterations
    assert counts[1] > 1.4 * counts[0] and counts[2] > 1.4 * counts[1], counts


@pytest.mark.parametrize("learned", [False, True], ids=["nu fixed", "nu learned"])
@pytest.mark.parametrize("kind", ["quadrilateral", "tetrahedron"])
def test_dot_products_and_taylor(make_case, annotation, assert_taylor, kind, learned):
    """The sweeps' tangent, adjoint and second order are exact."""
    case = make_case(kind, cells=2, refinements=1, images=3, layers=2, **with_solver("multigrid", learned=learned))
    check_derivatives(case, annotation, assert_taylor)


def test_single_precision(make_case):
    states = []
    for solver in ("direct", "multigrid"):
        case = make_case("triangle", refinements=1, precision="single", **with_solver(solver))
        states.append(cn.propagate(case.network, case.m, case.Y0).dat.data_ro)
    difference = np.linalg.norm(states[0] - states[1]) / np.linalg.norm(states[0])
    assert difference < 20 * np.finfo(np.float32).eps


def test_it_trains_as_the_direct_solve_does():
    histories = []
    for solver in ("direct", "multigrid"):
        problem = small_problem(network=on_a_hierarchy(**with_solver(solver)))
        result = cn.train_level(problem, problem.controls(np.random.default_rng(0))[:2], iterations=5)
        histories.append([i.objective for i in result.history.iterations])
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-7)


def test_a_factorisation_that_is_too_large_is_not_made(make_network, monkeypatch):
    def chosen():
        return type(make_network("quadrilateral", refinements=1, **with_solver("auto")).sweep._solve(1.0, 0.0))

    assert chosen() is DirectSolve
    monkeypatch.setattr(diffusion, "MOST_DIRECT", 1000)
    assert chosen() is MultigridSolve


@pytest.mark.parametrize(("kind", "cells"), [
    ("interval", 1000), ("quadrilateral", 60), ("triangle", 60), ("hexahedron", 15), ("tetrahedron", 15)])
def test_the_size_of_factors_is_estimated(space, kind, cells):
    """Within a factor 1.5 of what there is."""
    D = cn.Operators(space(kind, cells, comm=COMM_SELF), [cn.laplacian])
    actual = diffusion._ENTRY_BYTES * solves_of(D.space, 1.0)[0].entries
    ratio = diffusion._factor_bytes(D) / actual
    assert 1 / 1.5 < ratio < 1.5, f"estimated {ratio:.2f} times what it is"


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="one of auto, direct, multigrid; received 'amg'"):
        cn.IMEX(solver="amg")


def test_options_of_another_solver_are_refused():
    with pytest.raises(ValueError, match=r"direct solver .* takes no PETSc options, received {'ksp_rtol': 1e-06}"):
        cn.IMEX(solver="direct", solver_parameters={"ksp_rtol": 1e-6})


def test_a_solve_that_does_not_converge_says_what_to_try(make_case):
    case = make_case("quadrilateral", refinements=1, **with_solver("multigrid", ksp_max_it=2))
    with pytest.raises(cn.StageSolveError, match=(
            r"stopped after 2 iterations \(KSP reason -3.*Try -ctrlnet_diffusion_ksp_max_it, .*solver='direct'")):
        cn.propagate(case.network, case.m, case.Y0)


def test_an_optimiser_shortens_a_step_whose_solve_fails():
    """The first solve with another diffusivity is made to fail: the step is shortened and training goes on."""
    network = on_a_hierarchy(**with_solver("multigrid", 0.4, learned=True))
    problem = small_problem(network=network)
    functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0))[:3])
    solve, failed = network.sweep._solve, []

    def unwilling(h, r):
        if not failed and r != 0.0:
            failed.append(r)
            raise cn.StageSolveError("for the test")
        return solve(h, r)

    network.sweep._solve = unwilling
    optimiser = TaoOptimiser(functional, limits=Limits(iterations=4))
    optimiser.solve()
    values = [i.objective for i in optimiser.history.iterations]
    assert failed and len(values) == 5 and values[-1] < values[0]


@pytest.mark.parallel(nprocs=[2, 3])
def test_same_numbers_on_any_number_of_ranks(annotation):
    """State, gradient and Hessian product, those of the direct solve on one rank."""

    def numbers(comm, solver):
        mesh = MeshHierarchy(RectangleMesh(4, 3, 3.5, 3.0, quadrilateral=True, comm=comm), 1)[-1]
        D = cn.low_order_operators(FunctionSpace(mesh, "CG", 1))
        network = cn.Network(D, cn.ControlSpace(0.6, 3, D, 2), **with_solver(solver))
        return propagation_numbers(network, annotation)

    assert_equal(numbers(COMM_WORLD, "multigrid"), numbers(COMM_SELF, "direct"))


@pytest.mark.parallel(nprocs=2)
def test_one_tolerance_of_a_user(space):
    """A looser tolerance takes fewer iterations and leaves an error of its size."""
    V = space("quadrilateral", 4, refinements=2)
    exact, loose = solves_of(V, 1.0, ksp_rtol=1e-4)
    field = np.random.default_rng(COMM_WORLD.rank).standard_normal((V.dof_dset.size, 1, 16))
    expected, found = exact(field.copy()), loose(field.copy())
    error, size = COMM_WORLD.allreduce(np.array([((found - expected) ** 2).sum(), (expected**2).sum()]))
    assert loose.iterations[0] < 7 and 1e-8 < np.sqrt(error / size) < 1e-3
