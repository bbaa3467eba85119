"""ParaView files: the named fields are there, with their values, on any mesh and number of ranks."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from firedrake import COMM_WORLD, ExtrudedMesh, FunctionSpace
from mpi4py import MPI
from support.networks import square
from support.ranks import on_ranks
from support.targets import places, problem_of, start_of

from ctrlnet.operators import sphere_hierarchy
from ctrlnet.storage import write_classifier, write_fields, write_inputs, write_scores, write_states


def collection(path):
    """Times and part files of a collection."""
    return [(float(d.get("timestep")), path.parent / d.get("file")) for d in ET.parse(path).getroot().iter("DataSet")]


def names_of(part):
    """Names of the fields in a part: one rank's, with data behind its head, or the list of all ranks' parts."""
    head, *data = part.read_bytes().split(b"<AppendedData")
    head += b"</VTKFile>" if data else b""
    return {d.get("Name") for d in ET.fromstring(head).iter() if "DataArray" in d.tag and d.get("Name")}


def folder_of(tmp_path):
    return COMM_WORLD.bcast(tmp_path)


@on_ranks
def test_states_classifier_and_inputs(tmp_path):
    folder, problem = folder_of(tmp_path), problem_of("class vectors")
    m, inputs = start_of(problem), problem.average.sample.inputs
    states = problem.prediction(m).trajectory(inputs, 1)
    written = collection(write_states(folder / "states.pvd", states))
    assert [t for t, _ in written] == [s.time for s in states]
    assert {"Y0", "Y1"} <= names_of(written[0][1])
    ((_, part),) = collection(write_classifier(folder / "W.pvd", problem.readout, m))
    assert {f"W feature {c} class {k}" for c in range(2) for k in range(3)} <= names_of(part)
    written = collection(write_inputs(folder / "inputs.pvd", problem.network, inputs, [0, 3]))
    assert [t for t, _ in written] == [0.0, 3.0] and "channel 0" in names_of(written[1][1])


@on_ranks
@pytest.mark.parametrize("kind", ["masked classes at nodes", "field"])
def test_scores_at_nodes(kind, tmp_path):
    folder, problem = folder_of(tmp_path), problem_of(kind)
    m, inputs = start_of(problem), problem.average.sample.inputs
    written = collection(write_scores(folder / "scores.pvd", problem.prediction(m), inputs.chosen(np.arange(2))))
    assert len(written) == 2 and {"score 0", "score 1"} <= names_of(written[0][1])
    assert ("prediction" in names_of(written[0][1])) == ("classes" in kind)


@pytest.mark.parametrize("mesh", ["square", "triangles", "sphere", "extruded", "cubes"])
def test_values_on_any_mesh(mesh, tmp_path):
    from firedrake import UnitCubeMesh

    made = {"square": lambda: square(3), "triangles": lambda: square(3, False),
            "sphere": lambda: sphere_hierarchy(2, 1)[1], "extruded": lambda: ExtrudedMesh(square(2), 2),
            "cubes": lambda: UnitCubeMesh(2, 2, 2, hexahedral=True)}
    V = FunctionSpace(made[mesh](), "CG", 1)
    x = places(V)
    path = write_fields(tmp_path / "x.pvd", V, [(0.5, {"first": x[:, 0], "last": x[:, -1]})])
    ((time, part),) = collection(path)
    values = raw(part)
    assert time == 0.5
    for name, axis in (("first", 0), ("last", -1)):
        assert np.ptp(values[name]) == pytest.approx(np.ptp(x[:, axis])) and values[name].max() == x[:, axis].max()


def raw(part):
    """The fields of a part that one rank wrote: arrays of doubles behind their sizes."""
    text = part.read_bytes()
    head, data = text.split(b"<AppendedData", 1)
    data = data[data.index(b"_") + 1 :]
    out = {}
    for d in ET.fromstring(head + b"</VTKFile>").iter("DataArray"):
        start = int(d.get("offset"))
        size = int(np.frombuffer(data[start : start + 4], dtype=np.uint32)[0])
        if d.get("type") == "Float64":
            out[d.get("Name")] = np.frombuffer(data[start + 4 : start + 4 + size], dtype=float)
    return out


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    problem = problem_of("class vectors")
    m, inputs = start_of(problem), problem.average.sample.inputs
    with pytest.raises(ValueError, match=r"end in \.pvd"):
        write_inputs(tmp_path / "x.vtu", problem.network, inputs)
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_inputs(tmp_path / "nowhere" / "x.pvd", problem.network, inputs)
    with pytest.raises(ValueError, match="belong to whole images"):
        write_scores(tmp_path / "x.pvd", problem.prediction(m), inputs)
    with pytest.raises(ValueError, match="no state"):
        write_states(tmp_path / "x.pvd", [])
    with pytest.raises(ValueError, match="same fields at every time"):
        write_fields(tmp_path / "x.pvd", problem.network.space, [(0.0, {})])
    nodal = problem_of("field")
    with pytest.raises(ValueError, match="matrix of numbers and no field"):
        write_classifier(tmp_path / "x.pvd", nodal.readout, start_of(nodal))
    assert COMM_WORLD.allreduce(len(list(tmp_path.iterdir())), op=MPI.MAX) == 0
