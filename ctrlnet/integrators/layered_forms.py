r"""A form of one image, on the mesh whose layers are the images of a chunk.

Functions on the extruded mesh are constant across a layer of height 1, so that an integral over it is the sum over the
images. What a form on the plane mesh contains becomes

============================  ========================================================================
coefficients                  Functions of the same values, constant across all layers
gradients, normals, places    their components in the plane
``ds``, ``dS``                integrals over the upright facets
cell sizes                    those of the plane cells, as piecewise constant coefficients
============================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

import ufl
from finat.ufl import FiniteElement, TensorProductElement
from firedrake import Function, FunctionSpace, TensorFunctionSpace, VectorFunctionSpace
from firedrake.mesh import MeshGeometry
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.checks import is_cellwise_constant
from ufl.classes import FacetNormal, GeometricCellQuantity, GeometricQuantity, Grad, Integral, SpatialCoordinate
from ufl.core.expr import Expr
from ufl.corealg.map_dag import map_expr_dag
from ufl.corealg.multifunction import MultiFunction

__all__ = ["on_layers"]

_UPRIGHT = {"cell": "cell", "exterior_facet": "exterior_facet_vert", "interior_facet": "interior_facet_vert"}


def on_layers(F: ufl.Form, mesh: MeshGeometry, layered: MeshGeometry, places: Mapping[Expr, Expr]) -> ufl.Form:
    """Return a form on a plane mesh as one on the extruded mesh over it.

    Parameters
    ----------
    F
        On ``mesh``.
    mesh, layered
        The plane mesh, and that of layers of height 1.
    places
        Arguments and coefficients of F, and what takes their places.

    Raises
    ------
    ValueError
        If an integral or a coefficient is on another mesh, or there is something that has no counterpart.
    """
    carry = _OnLayers(mesh, layered, places)
    integrals = []
    for integral in apply_algebra_lowering(F).integrals():
        if integral.ufl_domain() is not mesh or integral.integral_type() not in _UPRIGHT:
            raise ValueError(
                "A form of a network's dynamics has integrals dx, ds and dS over the network's mesh; received "
                f"{integral.integral_type()} over {integral.ufl_domain()}.")
        integrals.append(Integral(
            map_expr_dag(carry, integral.integrand()), _UPRIGHT[integral.integral_type()], layered,
            integral.subdomain_id(), integral.metadata(), integral.subdomain_data()))
    return ufl.Form(integrals)


class _OnLayers(MultiFunction):
    """The map of what stands in an integrand; its methods are named by UFL."""

    def __init__(self, mesh: MeshGeometry, layered: MeshGeometry, places: Mapping[Expr, Expr]):
        super().__init__()
        self._mesh, self._layered, self._places = mesh, layered, dict(places)

    expr = MultiFunction.reuse_if_untouched

    def terminal(self, o: Expr) -> Expr:
        return self._places.get(o, o)

    def coefficient(self, o: Function) -> Expr:
        if o not in self._places:
            self._places[o] = self._constant_across(o)
        return self._places[o]

    def spatial_coordinate(self, o: SpatialCoordinate) -> Expr:
        return self._in_plane(SpatialCoordinate(self._layered))

    def facet_normal(self, o: FacetNormal) -> Expr:
        return self._in_plane(FacetNormal(self._layered))

    def geometric_quantity(self, o: GeometricQuantity) -> Expr:
        if o.ufl_shape or not (isinstance(o, GeometricCellQuantity) and is_cellwise_constant(o)):
            raise ValueError(
                f"Dynamics whose images are stepped together cannot have {o!r} in their form; use Irksome(tableau, "
                "images=1).")
        return self.coefficient(Function(FunctionSpace(self._mesh, "DG", 0)).interpolate(o))

    def grad(self, o: Grad, f: Expr) -> Expr:
        return self._in_plane(Grad(f))

    def _in_plane(self, f: Expr) -> Expr:
        """Return the components of a tensor whose last index is one of the plane."""
        indices, (i, k) = ufl.indices(len(f.ufl_shape) - 1), ufl.indices(2)
        rows = range(self._mesh.geometric_dimension)
        plane = ufl.as_matrix([[int(row == column) for column in range(f.ufl_shape[-1])] for row in rows])
        return ufl.as_tensor(plane[i, k] * f[(*indices, k)], (*indices, i))

    def _constant_across(self, f: Function) -> Function:
        """Return the Function with the same values in every layer; it shares them."""
        if f.function_space().mesh() is not self._mesh:
            raise ValueError(
                f"The coefficient {f} of a network's dynamics must be on the network's mesh, received one on "
                f"{f.function_space().mesh()}; interpolate it.")
        element = f.function_space().ufl_element()
        parts = set(element.sub_elements) if f.ufl_shape else {element}
        if len(parts) != 1 or any(part.mapping() != "identity" for part in parts):
            raise ValueError(
                f"The coefficient {f} of a network's dynamics is in the space of {element.shortstr()}; where images "
                "are stepped together it must be a scalar, vector or tensor of scalar elements, such as CG or DG. "
                "Interpolate it, or use Irksome(tableau, images=1).")
        tall = TensorProductElement(*parts, FiniteElement("Real", ufl.interval, 0), cell=self._layered.ufl_cell())
        if len(f.ufl_shape) == 1:
            space = VectorFunctionSpace(self._layered, tall, dim=f.ufl_shape[0])
        elif f.ufl_shape:
            space = TensorFunctionSpace(self._layered, tall, shape=f.ufl_shape)
        else:
            space = FunctionSpace(self._layered, tall)
        return Function(space, val=f.dat)
