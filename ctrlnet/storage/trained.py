"""A trained network in one file: controls, network, readout, regularisation, history and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from firedrake import COMM_WORLD, CheckpointFile
from firedrake.mesh import MeshGeometry
from mpi4py import MPI
from pyadjoint import stop_annotating

from ctrlnet.controls import Controls, ControlsLike, ControlSpace, divided
from ctrlnet.fields.sample import Sample
from ctrlnet.network.network import Network
from ctrlnet.objective.losses import Loss
from ctrlnet.objective.nodal_readout import NodalReadout
from ctrlnet.objective.prediction import Prediction, Predicts
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.objective.readout import Readout
from ctrlnet.operators.assembled import Operators
from ctrlnet.storage.atomic import on_root, reserve, written_whole
from ctrlnet.storage.columns import columns_of, rows_of
from ctrlnet.storage.descriptions import Reader, described
from ctrlnet.storage.history import History, Iteration
from ctrlnet.storage.meshes import StoredMeshes, bytes_of, made_meshes, named_space, space_named, write_meshes
from ctrlnet.storage.places import matching, places_of
from ctrlnet.storage.trees import read_tree, to_json, write_tree
from ctrlnet.storage.versions import versions

__all__ = ["FORMAT", "Trained", "load", "load_controls", "save"]

FORMAT = 1
_KIND = "trained network"
_READOUTS = {kind.__name__: kind for kind in (Readout, NodalReadout)}


@dataclass(frozen=True)
class Trained(Predicts):
    """What a file of :func:`save` holds.

    Attributes
    ----------
    readout, network, controls, loss
        As they were saved; on the stored mesh.
    regularisation
        The weights of :class:`~ctrlnet.TrainingProblem`, by its arguments' names.
    history
        The course of the training; without iterations if none was saved.
    versions
        Of ctrlnet, Firedrake and so on, when it was saved.
    are_classes
        Whether its targets are classes.
    """

    readout: Any
    controls: Controls
    loss: Loss
    regularisation: Mapping[str, Any]
    history: History
    versions: Mapping[str, str]
    are_classes: bool

    @property
    def network(self) -> Network:
        return self.readout.network

    @cached_property
    def prediction(self) -> Prediction:
        """What the trained network says of inputs."""
        return Prediction(self.readout, self.readout.point(self.controls), self.loss, self.are_classes)

    def problem(self, sample: Sample, **changes: Any) -> TrainingProblem:
        """Return the training problem of a sample, to go on with: stored loss and regularisation.

        Parameters
        ----------
        sample
            Its targets are of the stored kind.
        **changes
            Arguments of :class:`~ctrlnet.TrainingProblem` in place of the stored ones, or besides.
        """
        return TrainingProblem(self.readout, sample, **{"loss": self.loss, **self.regularisation, **changes})


def save(path: str | Path, problem: TrainingProblem, m: ControlsLike, history: History | None = None) -> Path:
    """Write controls with all that they belong to into one HDF5 file, whole or not at all. Collective.

    Parameters
    ----------
    path
        In a folder that exists.
    problem
        Network, readout, loss and regularisation; samples are not stored.
    m
        All controls of the problem.
    history
        A :class:`~ctrlnet.optimise.History`.

    Raises
    ------
    ValueError
        If a control is missing or in another space, or there is something of a user's own without a name.
    OSError
        If the file cannot be written.

    Notes
    -----
    What a user wrote, operators as forms, dynamics, activations, losses, has its name stored; :func:`load` is given it
    back. Meshes are stored by Firedrake's CheckpointFile; levels of a ``MeshHierarchy`` as the coarsest with the number
    of refinements, and with the midpoints of the cells that were divided where not all were.
    """
    readout, network = problem.readout, problem.network
    controls = problem.control_set.controls(m)
    space, meshes = network.control_space, StoredMeshes()
    description = {
        "network": {
            "operators": described(network.operators.operators), "space": named_space(network.space, meshes),
            "steps": _plain(network.depth), "dynamics": described(network.dynamics),
            "integrator": described(network.integrator), "opening": described(network.opening),
            "precision": network.precision},
        "controls": {
            "T": space.T, "cells": _plain(space.depth), "degree": space.degree, "operators": space.operators,
            "features": space.features, "parameters": list(space.parameters)},
        "readout": _described_readout(readout, meshes),
        "loss": described(problem.average.loss), "regularisation": described(problem.regularisation.settings),
        "are_classes": problem.average.sample.targets.are_classes,
        "reason": "" if history is None else history.reason, "versions": versions(),
    }
    description["meshes"] = recipes = meshes.recipes()
    stored = meshes.stored(recipes)
    size = bytes_of(stored)
    arrays = space.ordered(problem.control_set.arrays(controls))
    places = {"W": places_of(readout.space)} if "space" in description["readout"] else {}
    rows = {} if history is None else columns_of(history.iterations)
    comm = network.comm
    with stop_annotating(), written_whole(path, comm) as part:
        on_root(comm, lambda: reserve(part, size))
        with CheckpointFile(str(part), "w", comm=comm) as file:
            write_meshes(file, stored)
        if comm.rank == 0:
            write_tree(part, _KIND, FORMAT, {
                "description": to_json(description), "controls": arrays, "places": places, "history": rows}, "r+")
    return Path(path)


def _described_readout(readout: Any, meshes: StoredMeshes) -> dict[str, Any]:
    kind = type(readout).__name__
    if _READOUTS.get(kind) is not type(readout):
        raise ValueError(f"A file holds a readout of {' or '.join(_READOUTS)}, received a {kind}.")
    out: dict[str, Any] = {"kind": kind, "classes": readout.classes}
    if kind == Readout.__name__:
        out["space"] = named_space(readout.space, meshes)
    return out


@dataclass(frozen=True)
class _Content:
    """What is in a file beside its meshes."""

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]
    places: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]


def _read(path: str | Path, comm: MPI.Comm) -> _Content:
    """Return a file's content on every rank; raise the same on every rank."""
    tree = on_root(comm, lambda: read_tree(path, _KIND, FORMAT))
    return _Content(json.loads(tree["description"]), *(tree[name] for name in ("controls", "places", "history")))


def load(
    path: str | Path, *, given: Mapping[str, Any] | None = None, meshes: Mapping[str, MeshGeometry] | None = None,
    comm: MPI.Comm = COMM_WORLD,
) -> Trained:
    """Read a trained network, on any number of ranks. Collective.

    Parameters
    ----------
    path
        Of :func:`save`.
    given
        What a user wrote, by the name of the function, or of the Operator, Activation or class, that it had.
    meshes
        Meshes by their names, of those that a file cannot make again: levels of a hierarchy whose nodes were moved.
    comm
        The ranks of its meshes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not whole, holds something else, is of a newer format, or needs something that is not given.
    """
    with stop_annotating():
        content = _read(path, comm)
        return _trained(Path(path), content, Reader(given), {} if meshes is None else meshes, comm)


def _trained(
    path: Path, content: _Content, reader: Reader, given: Mapping[str, MeshGeometry], comm: MPI.Comm
) -> Trained:
    description = content.description
    net, of = description["network"], description["controls"]
    parts = {name: reader.made(net[name]) for name in ("operators", "dynamics", "integrator", "opening")}
    loss = reader.made(description["loss"])
    found = made_meshes(path, description["meshes"], given, comm)
    network = Network(
        Operators(space_named(net["space"], found), parts["operators"]),
        ControlSpace(of["T"], of["cells"], of["operators"], of["features"], of["degree"], 0, of["parameters"]),
        net["steps"], parts["dynamics"], parts["integrator"], parts["opening"], net["precision"])
    how = description["readout"]
    own = (space_named(how["space"], found),) if "space" in how else ()
    readout = _READOUTS[how["kind"]](network, how["classes"], *own)
    return Trained(
        readout, _controls_of(content, readout), loss, reader.made(description["regularisation"]),
        History(rows_of(Iteration, content.columns), description["reason"]), description["versions"],
        description["are_classes"])


def _controls_of(content: _Content, readout: Any) -> Controls:
    """Return the file's controls on the nodes of a readout that has the places of the file's.

    Raises
    ------
    ValueError
        If it has others.
    """
    control_set = readout.network.control_set + readout.control_set
    arrays = readout.network.control_space.numbered(content.arrays)
    for name, theirs in content.places.items():
        number = matching(theirs, places_of(readout.space))
        if number is None:
            raise ValueError(
                f"The nodes of {readout.space.mesh()} are not those that {name} was saved on. Give the mesh it was "
                "saved on, or none.")
        arrays[name] = arrays[name][number]
    return control_set.functions(arrays)


def load_controls(
    path: str | Path, problem: TrainingProblem, *, given: Mapping[str, Any] | None = None,
    meshes: Mapping[str, MeshGeometry] | None = None,
) -> Controls:
    """Read a trained network's controls as those of another problem, perhaps on another mesh or with more layers.

    Controls in time are prolonged to the problem's control cells. The classifier stays where its nodes are the
    problem's, and is else prolonged, or interpolated, from the stored mesh: what :func:`~ctrlnet.transfer.carry` and
    :meth:`ctrlnet.Readout.prolong` do. Collective.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`load`; ValueError if the file is one of another network: of other operators, features, final time,
        degree, learned parameters, opening or classes, or of control cells that the problem's do not refine.
    NestingError
        If the stored readout's mesh does not cover the problem's.
    """
    with stop_annotating():
        network, comm = problem.network, problem.network.comm
        content = _read(path, comm)
        _check_same(path, content.description, problem)
        arrays, space = content.arrays, network.control_space
        of = content.description["controls"]
        halvings = _halvings(path, of["cells"], space)
        if halvings:
            level = ControlSpace(
                of["T"], of["cells"], of["operators"], of["features"], of["degree"], halvings, of["parameters"])
            coarse = level.control_set.functions(level.numbered(arrays))
            first = level
            for _ in range(halvings):
                level = level.finer()
            arrays |= level.ordered(level.control_set.arrays(first.prolong(coarse, level)))
        arrays, readout = space.numbered(arrays), problem.readout
        ours = {name: matching(theirs, places_of(readout.space)) for name, theirs in content.places.items()}
        if all(number is not None for number in ours.values()):
            arrays |= {name: arrays[name][number] for name, number in ours.items()}
            return problem.control_set.functions(arrays)
        stored = _trained(Path(path), content, Reader(given), {} if meshes is None else meshes, comm)
        in_time = network.control_set.functions(arrays)
        return in_time.extended(stored.readout.prolong(stored.controls, readout))


def _halvings(path: str | Path, depth: int | list[float], space: ControlSpace) -> int:
    """Return how often stored control cells, a number or their times, are halved to give a space's."""
    theirs = depth if isinstance(depth, int) else len(depth) - 1
    count = max(0, (space.cells // theirs).bit_length() - 1)
    times = space.T / theirs * np.arange(theirs + 1) if isinstance(depth, int) else np.array(depth)
    if theirs * 2**count != space.cells or not np.allclose(space.times, divided(times, 2**count), rtol=0, atol=1e-12):
        raise ValueError(
            f"{path} has {theirs} control cells, which the problem's {space.cells} do not refine. Take a ControlSpace "
            f"of cells={depth}, or with each of them halved once, twice, ...")
    return count


def _plain(depth: int | np.ndarray) -> int | list[float]:
    """Return a number of steps or cells, or their times, as they are written."""
    return depth if isinstance(depth, int) else depth.tolist()


def _check_same(path: str | Path, description: Mapping[str, Any], problem: TrainingProblem) -> None:
    network, space = problem.network, problem.network.control_space
    ours = {
        "operators": described(network.operators.operators), "final time": space.T, "degree": space.degree,
        "features": space.features, "learned parameters": list(space.parameters),
        "opening": sorted(network.opening.control_set.names), "channels": network.opening.channels,
        "readout": type(problem.readout).__name__, "classes": problem.readout.classes}
    net, of, how = description["network"], description["controls"], description["readout"]
    opening = Reader().made(net["opening"])
    theirs = {
        "operators": net["operators"], "final time": of["T"], "degree": of["degree"], "features": of["features"],
        "learned parameters": of["parameters"], "opening": sorted(opening.control_set.names),
        "channels": opening.channels, "readout": how["kind"], "classes": how["classes"]}
    for what, value in ours.items():
        if value != theirs[what]:
            raise ValueError(
                f"{path} is a file of another network: its {what} are {_short(theirs[what])}, those of the problem "
                f"{_short(value)}. Build the problem alike, or read the file's own network by load().")


def _short(value: Any) -> str:
    """Return described operators as their names, and anything else as it is."""
    def name_of(entry: Any) -> Any:
        return entry.get("arguments", {}).get("name", entry) if isinstance(entry, dict) else entry

    return str([name_of(entry) for entry in value] if isinstance(value, list) else value)
