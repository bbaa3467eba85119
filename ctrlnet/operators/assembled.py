r"""Differential operators :math:`D_j = M_L^{-1} A_j` assembled on one mesh, with a lumped (diagonal) mass.

At the boundary the natural condition holds: see :func:`stencil_operators`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import ufl
from finat.ufl import FiniteElementBase, TensorProductElement
from firedrake import (
    Function,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    assemble,
)
from firedrake.functionspaceimpl import WithGeometry
from firedrake.mesh import MeshGeometry
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint.tape import no_annotations

from ctrlnet.errors import NotPickled
from ctrlnet.operators.forms import Form, Operator, derivative, identity, laplacian, lumped_dx, second_derivative
from ctrlnet.operators.stencil_table import StencilTable
from ctrlnet.operators.stencils import names as stencil_names

__all__ = ["Operators", "interior_stencil", "low_order_operators", "stencil_operators"]


class Operators(NotPickled):
    r"""The operators :math:`D_j` of a network, assembled once on one mesh.

    Parameters
    ----------
    V
        Scalar nodal space with a diagonal lumped mass: continuous, degree 1.
    operators
        The :class:`Operator` objects; J of them.

    Attributes
    ----------
    mass : numpy.ndarray
        Diagonal of the lumped mass at the owned nodes, in units of the mesh's volume.
    matrices : list of PETSc.Mat
        :math:`D_j`, V -> V.

    Raises
    ------
    ValueError
        If V has no positive diagonal mass, if there is no operator, if a name occurs twice, or if a form
        is not bilinear on V's mesh. Later, when the operators are used: if the mesh has moved in between.
    """

    @no_annotations
    def __init__(self, V: WithGeometry, operators: Sequence[Operator]):
        _check_space(V)
        operators = tuple(operators)
        if not operators:
            raise ValueError("At least one operator is needed, received none; for example [identity, laplacian].")
        seen = [o.name for o in operators]
        if len(set(seen)) < len(seen):
            raise ValueError(f"Operator names must differ, received {seen}.")
        self.space = V
        self.operators = operators
        mass = assemble(TestFunction(V) * lumped_dx())
        smallest = V.mesh().comm.allreduce(float(mass.dat.data_ro.min(initial=np.inf)), op=min)
        if not smallest > 0:
            raise ValueError(
                f"The lumped mass of {V.ufl_element()} has the entry {smallest:g}; it must be positive at every "
                "node. Check the mesh for degenerate or inverted cells."
            )
        self.lumped_mass = mass
        self.mass = mass.dat.data_ro.copy()
        self._places = _Places(V.mesh())

    def __len__(self) -> int:
        return len(self.operators)

    @property
    def mesh(self) -> MeshGeometry:
        return self.space.mesh()

    @property
    def names(self) -> list[str]:
        return [o.name for o in self.operators]

    @property
    def nodes(self) -> int:
        """Number of nodes on all ranks."""
        return self.space.dim()

    def on(self, V: WithGeometry) -> Operators:
        """Return the same operators assembled on another space: rediscretisation."""
        return Operators(V, self.operators)

    @property
    def matrices(self) -> list[PETSc.Mat]:
        self._places.check()
        return self._matrices

    @cached_property
    def _matrices(self) -> list[PETSc.Mat]:
        factors: dict[int, PETSc.Mat] = {}
        return [self._matrix(o, factors) for o in self.operators]

    def _matrix(self, operator: Operator, cache: dict[int, PETSc.Mat]) -> PETSc.Mat:
        result = None
        for form in operator.factors or (None,):
            if id(form) not in cache:
                cache[id(form)] = self._factor(operator.name, form)
            result = cache[id(form)] if result is None else result.matMult(cache[id(form)])
        return result

    @no_annotations
    def _factor(self, name: str, form: Form | None) -> PETSc.Mat:
        u, v = TrialFunction(self.space), TestFunction(self.space)
        bilinear = u * v * lumped_dx() if form is None else form(u, v)
        if not isinstance(bilinear, ufl.Form) or len(bilinear.arguments()) != 2:
            raise ValueError(
                f"Operator {name!r} must return a bilinear form of its two arguments, received {bilinear!r}."
            )
        if bilinear.ufl_domain() != self.mesh:
            raise ValueError(
                f"Operator {name!r} integrates over {bilinear.ufl_domain()}, but the images live on {self.mesh}. "
                "Build its form from its arguments u and v alone."
            )
        matrix = assemble(bilinear).petscmat.copy()
        with self.lumped_mass.dat.vec_ro as mass:
            inverse = mass.copy()
        inverse.reciprocal()
        matrix.diagonalScale(L=inverse)
        return matrix

    @cached_property
    def norms(self) -> np.ndarray:
        r"""Maximum norms :math:`\|D_j\|_\infty` (J,): how much an operator can enlarge a state on this mesh."""
        return np.array([m.norm(PETSc.NormType.NORM_INFINITY) for m in self.matrices])

    @property
    def table(self) -> StencilTable:
        """Rows of all operators for the fused sweeps."""
        self._places.check()
        return self._table

    @cached_property
    def _table(self) -> StencilTable:
        return StencilTable(self._matrices)

    def apply(self, j: int, u: Function) -> Function:
        """Return :math:`D_j u`, V -> V.

        Raises
        ------
        ValueError
            If the mesh has moved.
        """
        result = Function(self.space)
        with u.dat.vec_ro as x, result.dat.vec_wo as y:
            self.matrices[j].mult(x, y)
        return result


class _Places:
    """Where the nodes of a mesh were.

    Parameters
    ----------
    mesh
        Its coordinates are copied.
    """

    def __init__(self, mesh: MeshGeometry):
        self._mesh = mesh
        self._version = mesh.coordinates.dat.dat_version
        self._coordinates = mesh.coordinates.dat.data_ro.copy()

    def check(self) -> None:
        """Raise a ValueError if they are elsewhere now. Collective."""
        version = self._mesh.coordinates.dat.dat_version
        if version == self._version:
            return
        same = np.array_equal(self._coordinates, self._mesh.coordinates.dat.data_ro)
        if not self._mesh.comm.allreduce(same, op=MPI.LAND):
            raise ValueError(
                f"The nodes of {self._mesh} have moved since its operators were made, which are those of the places "
                "before. Make new ones, operators.on(V), and a new network."
            )
        self._version = version


def _check_space(V: WithGeometry) -> None:
    element = V.ufl_element()
    if V.value_size != 1 or not _is_linear(element):
        raise ValueError(
            f"The operators need a scalar continuous space of degree 1, whose mass can be lumped; received {element}. "
            "Use FunctionSpace(mesh, 'CG', 1)."
        )


def _is_linear(element: FiniteElementBase) -> bool:
    """Whether an element has a node at each vertex and no other, on an extruded mesh too."""
    if isinstance(element, TensorProductElement):
        return all(_is_linear(e) for e in element.factor_elements)
    return element.family() in ("Lagrange", "Q") and element.degree() in (1, (1, 1))


def low_order_operators(V: WithGeometry, frame: Sequence[Operator] | None = None) -> Operators:
    r"""Return {1, first derivatives, Laplacian} on any mesh; they carry best between scales.

    On a surface the first derivatives are all components of the tangential gradient, one for each axis of the ambient
    space, so that none is preferred; the Laplacian is Laplace-Beltrami.

    Parameters
    ----------
    V
        Scalar nodal space.
    frame
        First derivatives to take instead, such as ``(east, north)`` on a sphere; see
        :func:`~ctrlnet.operators.directional_derivative`.
    """
    if frame is None:
        frame = [derivative(axis) for axis in range(V.mesh().geometric_dimension)]
    return Operators(V, [identity, *frame, laplacian])


def stencil_operators(V: WithGeometry) -> Operators:
    r"""Return all :math:`3^{dim}` products of {1, d, d2} over the axes of a tensor-product mesh.

    On a uniform mesh they are the basis of all 3 x ... x 3 stencils, in the order of
    :func:`ctrlnet.operators.stencils.stencil_basis`. At a boundary node the natural condition changes the stencil in
    the direction of the normal: ``d`` becomes the one-sided difference ``[-1, 1]/h``, and ``d2`` becomes
    ``[-2, 2]/h^2`` towards the interior, which is the stencil with the image mirrored at the node.

    Raises
    ------
    ValueError
        If the mesh is not made of intervals, quadrilaterals or hexahedra, or is a surface.
    """
    mesh = V.mesh()
    if not _is_tensor_product(mesh.ufl_cell()) or mesh.topological_dimension < mesh.geometric_dimension:
        where = "" if mesh.topological_dimension == mesh.geometric_dimension else " on a surface"
        raise ValueError(
            f"The stencil basis needs a flat tensor-product mesh (interval, quadrilateral, hexahedron), received "
            f"{mesh.ufl_cell()}{where}. On this mesh use low_order_operators(V), or your own forms."
        )
    dimension = mesh.topological_dimension
    axes = [(identity, derivative(a), second_derivative(a)) for a in range(dimension)]
    operators = []
    for name, choice in zip(stencil_names(dimension), itertools.product(*axes), strict=True):
        factors = tuple(f for o in choice for f in o.factors)
        operators.append(Operator(name, factors))
    return Operators(V, operators)


def _is_tensor_product(cell: ufl.AbstractCell) -> bool:
    if isinstance(cell, ufl.TensorProductCell):
        return all(_is_tensor_product(c) for c in cell.sub_cells)
    return cell.cellname in ("interval", "quadrilateral", "hexahedron")


def interior_stencil(operators: Operators, coefficients: np.ndarray) -> np.ndarray:
    r"""Return the stencil of :math:`\sum_j c_j D_j` at an interior node of a uniform tensor-product mesh. Collective.

    Parameters
    ----------
    operators
        On a mesh with at least 2 cells along each axis.
    coefficients
        (J,) or, for several stencils at once, (J, m).

    Returns
    -------
    numpy.ndarray
        Shape (3,) * dim, or (m,) + (3,) * dim, indexed by offsets [x, y, z] = -1, 0, 1; the same on every rank.

    Raises
    ------
    ValueError
        If no rank owns a node whose neighbours lie on a uniform grid around it.
    """
    found = next((v for v in operators.mesh.comm.allgather(_interior_row(operators)) if v is not None), None)
    if found is None:
        raise ValueError(
            f"No node of {operators.mesh} has its neighbours on a uniform grid around it; a stencil belongs to a "
            "uniform mesh of intervals, quadrilaterals or hexahedra with at least 2 cells along each axis."
        )
    steps, values = found
    coefficients = np.asarray(coefficients)
    out = np.zeros((3,) * steps.shape[1] + coefficients.shape[1:])
    out[tuple((steps + 1).T)] = values @ coefficients
    return np.moveaxis(out, -1, 0) if coefficients.ndim == 2 else out


@no_annotations
def _interior_row(operators: Operators) -> tuple[np.ndarray, np.ndarray] | None:
    """Return offsets (neighbours, dim) in mesh widths and values (neighbours, J) of one interior node, if any."""
    V, table = operators.space, operators.table
    dimension = V.mesh().geometric_dimension
    places = np.zeros((table.nodes, dimension))
    coordinates = Function(VectorFunctionSpace(V.mesh(), V.ufl_element())).interpolate(SpatialCoordinate(V.mesh()))
    places[: table.owned] = coordinates.dat.data_ro.reshape(-1, dimension)
    table.halo.update(places)
    for node in range(table.owned):
        neighbours, values = table.forward.row(node)
        offsets = places[neighbours] - places[node]
        width = offsets.max(axis=0)
        if (width > 0).all():
            steps = np.rint(offsets / width).astype(int)
            symmetric = {tuple(-s) for s in steps} == {tuple(s) for s in steps}
            if symmetric and np.abs(steps).max() == 1 and np.allclose(offsets, steps * width):
                return steps, values
    return None
