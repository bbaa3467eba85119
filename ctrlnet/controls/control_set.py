"""The set of controls: a product of named spaces, whose elements are Functions or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from firedrake import Cofunction, Function
from firedrake.functionspaceimpl import WithGeometry

from ctrlnet.controls.controls import Controls, ControlsLike, as_controls
from ctrlnet.controls.parts import Part

__all__ = ["ControlSet"]


class ControlSet:
    r"""The product :math:`V_1 \times \dots \times V_n` of the spaces of named controls.

    An element m has three views: :class:`~ctrlnet.controls.Controls`, which are Functions, for pyadjoint and UFL;
    arrays of degrees of freedom by name, the same on every rank, for sweeps; and one vector of coordinates in a
    metric, for optimisers (:class:`~ctrlnet.controls.Coordinates`). This class goes between the first two.

    Parameters
    ----------
    parts
        In the order in which the controls are listed.

    Raises
    ------
    ValueError
        If two parts have one name, or a name is one of a method of :class:`~ctrlnet.controls.Controls`.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = {part.name: part for part in parts}
        self.names = tuple(self.parts)
        taken = [n for n in dir(Controls) if n[0] != "_"]
        if len(self.names) != len(parts) or set(taken) & set(self.names):
            raise ValueError(
                f"Controls need different names, none of {', '.join(taken)}; received "
                f"{', '.join(part.name for part in parts)}.")

    def __add__(self, other: ControlSet) -> ControlSet:
        """Return the product of both sets."""
        return ControlSet([*self.parts.values(), *other.parts.values()])

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts.values())

    def __getitem__(self, name: str) -> Part:
        return self.parts[name]

    def restricted(self, names: Sequence[str]) -> ControlSet:
        """Return the set of some of the controls, which keep their order.

        Raises
        ------
        ValueError
            If there is no name, or no control of a name.
        """
        if not names or set(names) - set(self.names):
            raise ValueError(f"Controls are named {', '.join(self.names)}; received {list(names)!r}.")
        return ControlSet([part for part in self if part.name in names])

    # Functions.

    def zero(self) -> Controls:
        """Return controls that are zero."""
        return Controls(self.names, [Function(part.space, name=part.name) for part in self])

    def controls(self, m: ControlsLike) -> Controls:
        """Return the set's element of what stands for one.

        Parameters
        ----------
        m
            Controls or a mapping, which may hold others besides; or all Functions in the set's order.

        Raises
        ------
        ValueError
            If a control is missing, or one is no Function in its space.
        """
        out = as_controls(m, self.names).restricted(self.names)
        for part, function in zip(self, out, strict=True):
            check(part, function)
        return out

    def filled(self, functions: Sequence[Function | None]) -> Controls:
        """Return controls with zeros in the places of None: a direction as pyadjoint has it."""
        return Controls(self.names, [
            Function(part.space) if f is None else f for part, f in zip(self, functions, strict=True)])

    # Arrays.

    def arrays(self, m: ControlsLike) -> dict[str, np.ndarray]:
        """Return the degrees of freedom of each control, (rows, components), the same on every rank.

        They may be views of the Functions' own. Collective where a control is distributed.
        """
        return {part.name: part.values(f) for part, f in zip(self, self.controls(m), strict=True)}

    def check_finite(self, m: ControlsLike) -> None:
        """Raise a ValueError if a control has a value that is not finite, before it goes elsewhere. Collective."""
        bad = [name for name, values in self.arrays(m).items() if not np.isfinite(values).all()]
        if bad:
            raise ValueError(
                f"The controls {', '.join(bad)} have values that are not finite. Start from others, or train again "
                "with a smaller step.")

    def dual_arrays(self, derivatives: Sequence[Cofunction]) -> dict[str, np.ndarray]:
        """Return the components of derivatives, Cofunctions in the set's order; as :meth:`arrays`."""
        return {part.name: part.values(f) for part, f in zip(self, derivatives, strict=True)}

    def functions(self, arrays: Mapping[str, np.ndarray]) -> Controls:
        """Return controls of given degrees of freedom; names that are not the set's are left out."""
        out = self.zero()
        for part, function in zip(self, out, strict=True):
            part.write(function, arrays[part.name])
        return out

    def cofunctions(self, arrays: Mapping[str, np.ndarray]) -> Controls:
        """Return derivatives in the dual spaces, of given components."""
        out = Controls(self.names, [Cofunction(part.dual) for part in self])
        for part, cofunction in zip(self, out, strict=True):
            part.write(cofunction, arrays[part.name])
        return out


def check(part: Part, function: Function) -> None:
    """Raise a ValueError if a Function is not in the space of the control that it is to be."""
    if not isinstance(function, Function):
        raise ValueError(
            f"The control {part.name} must be a Function in {_described(part.space)}; received "
            f"{type(function).__name__}.")
    space = function.function_space()
    if space is not part.space and space != part.space:
        raise ValueError(
            f"The control {part.name} must be in {_described(part.space)}; received a Function in {_described(space)}. "
            "Take controls of this very space, or prolong those of a coarser one.")


def _described(space: WithGeometry) -> str:
    """Return a space in words: its element, its mesh, and the interval of a mesh in time."""
    element, mesh = space.ufl_element(), space.mesh()
    scalar = element.sub_elements[0] if element.num_sub_elements else element
    nodes = space.dim() // space.value_size
    on = str(mesh)
    if mesh.geometric_dimension == 1 and mesh.comm.size == 1:
        ends = mesh.coordinates.dat.data_ro
        on += f" of [{ends.min():g}, {ends.max():g}] with {mesh.num_cells()} cells"
    return (
        f"the space of {scalar.family()} {scalar.degree()} with {space.value_size} components on {on} ({nodes} nodes)")
