"""Fields for ParaView: a ``.pvd`` file of named scalar fields, on any mesh and any number of ranks.

Each function writes one collection: ``path``, which ends in ``.pvd``, and the folder of its parts beside it. All are
collective; values are those at the nodes that a rank owns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from firedrake import Function, VTKFile
from firedrake.functionspaceimpl import WithGeometry
from pyadjoint.tape import no_annotations

from ctrlnet.controls import ControlsLike
from ctrlnet.fields.inputs import Inputs, NodalMap
from ctrlnet.network.network import Network
from ctrlnet.objective.nodal_inputs import nodal_map_for
from ctrlnet.objective.prediction import Prediction, State
from ctrlnet.storage.atomic import try_to_write

__all__ = ["write_classifier", "write_fields", "write_inputs", "write_scores", "write_states"]


@no_annotations
def write_fields(
    path: str | Path, V: WithGeometry, steps: Iterable[tuple[float, Mapping[str, np.ndarray]]]
) -> Path:
    """Write fields at some times.

    Parameters
    ----------
    path
        Ends in ``.pvd``; its folder exists.
    V
        Scalar space of the fields.
    steps
        Times with the fields of each, by name: nodal values (owned nodes,). Every step has the same names.

    Raises
    ------
    ValueError
        If the name does not end in ``.pvd``, there is no step, or the names differ from step to step.
    OSError
        If the folder does not exist or takes no file.
    """
    path = Path(path)
    if path.suffix != ".pvd":
        raise ValueError(f"ParaView's collections end in .pvd, received {path.name}.")
    try_to_write(path, V.mesh().comm)
    whole = [(time, dict(fields)) for time, fields in steps]
    names = list(whole[0][1]) if whole else []
    if not names or any(list(fields) != names for _, fields in whole):
        raise ValueError(
            f"A collection has the same fields at every time, and at least one; received "
            f"{[list(fields) for _, fields in whole]}.")
    functions = [Function(V, name=name) for name in names]
    file = VTKFile(str(path), comm=V.mesh().comm)
    for time, fields in whole:
        for function in functions:
            function.dat.data[:] = fields[function.name()]
        file.write(*functions, time=time)
    V.mesh().comm.barrier()  # on every rank the files are whole from here on
    return path


def write_states(path: str | Path, states: Sequence[State]) -> Path:
    """Write the states of an image over time, ``Y0``, ``Y1``, ...; of :meth:`ctrlnet.LevelResult.trajectory`.

    Raises as :func:`write_fields`.
    """
    if not states:
        raise ValueError("There is no state to write; take those of trajectory(inputs).")
    V = states[0].features[0].function_space()
    return write_fields(path, V, (
        (state.time, {f.name(): f.dat.data_ro for f in state.features}) for state in states))


def write_classifier(path: str | Path, readout: Any, m: ControlsLike) -> Path:
    """Write the classifier's fields :math:`w_{ck}` on the readout's mesh, ``W feature c class k``.

    Parameters
    ----------
    readout
        A :class:`~ctrlnet.Readout`.
    m
        Controls, of which the classifier is taken.

    Raises
    ------
    ValueError
        If the classifier has no fields, as that of a :class:`~ctrlnet.NodalReadout`; and as :func:`write_fields`.
    """
    W = readout.control_set.controls(m).W
    if W.function_space().mesh() is not readout.space.mesh() or readout.space.value_size != 1:
        raise ValueError(
            f"A {type(readout).__name__}'s classifier is a matrix of numbers and no field. Write what it says of "
            "inputs, by write_scores().")
    values, classes = W.dat.data_ro.reshape(-1, W.function_space().value_size), readout.classes
    return write_fields(path, readout.space, [(0.0, {
        f"W feature {number // classes} class {number % classes}": values[:, number]
        for number in range(values.shape[1])})])


def write_inputs(
    path: str | Path, network: Network, inputs: Inputs, numbers: Sequence[int] = (0,),
    projection: NodalMap | None = None,
) -> Path:
    """Write inputs as a network sees them, each at a time of its own: ``channel 0``, ``channel 1``, ...

    Parameters
    ----------
    numbers
        Of the inputs; they stand for times.
    projection
        Maps inputs to nodal values. Default: the inputs' own.
    """
    nodal_map = nodal_map_for(network, inputs, projection)
    return write_fields(path, network.space, (
        (float(k), {f"channel {q}": values[:, 0] for q, values in enumerate(
            np.moveaxis(nodal_map.nodal(inputs, k, k + 1), 1, 0))}) for k in numbers))


def write_scores(
    path: str | Path, prediction: Prediction, inputs: Inputs | np.ndarray, projection: NodalMap | None = None
) -> Path:
    """Write what a network with scores at nodes says of inputs, each at a time of its own.

    ``score k`` for each class or component, and ``prediction``, the class, where targets are classes.

    Raises
    ------
    ValueError
        If a score belongs to an image and not to a node; and as :func:`write_fields`.
    """
    scores = prediction.scores(inputs, projection)
    if scores.ndim != 3:
        raise ValueError(
            "These scores belong to whole images, so there is no field of them. A NodalReadout has scores at nodes.")
    said = prediction.decided(scores)
    steps = []
    for k in range(scores.shape[2]):
        fields = {f"score {c}": scores[c, :, k] for c in range(scores.shape[0])}
        steps.append((float(k), fields | ({"prediction": said[:, k]} if said.ndim == 2 else {})))
    return write_fields(path, prediction.network.space, steps)
