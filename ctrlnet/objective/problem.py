r"""The training problem: sample average plus regularisation, as a pyadjoint reduced functional."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from firedrake import Ensemble, Function
from firedrake.adjoint import Control, ReducedFunctional
from mpi4py import MPI
from pyadjoint import AdjFloat, Block, Tape, annotate_tape, get_working_tape, stop_annotating
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Controls, ControlSet, ControlsLike, Coordinates, as_controls, check_same, replicated
from ctrlnet.errors import NotPickled
from ctrlnet.fields.inputs import NodalMap
from ctrlnet.fields.sample import Sample
from ctrlnet.network.network import Network
from ctrlnet.network.stability import look_once_at_steps, warn_of_long_steps
from ctrlnet.objective.average import Average
from ctrlnet.objective.losses import Loss
from ctrlnet.objective.objective import Objective, ObjectiveAt
from ctrlnet.objective.point import Point
from ctrlnet.objective.prediction import Prediction
from ctrlnet.objective.regularisation import Regularisation, RegularisedReadout
from ctrlnet.objective.sample_average import SampleAverage
from ctrlnet.objective.work import Work
from ctrlnet.own_tape import own_tape

__all__ = ["ObjectiveBlock", "TrainingProblem"]


class ObjectiveBlock(Block):
    """An objective on a tape: pyadjoint's calls in words of :class:`~ctrlnet.objective.objective.ObjectiveAt`.

    The adjoint maps R -> M*, M the space of all controls.
    """

    def __init__(self, objective: Objective, controls: Controls):
        super().__init__()
        self.objective = objective
        self._last: ObjectiveAt | None = None
        for control in controls:
            self.add_dependency(control)

    def _at(self, inputs: Sequence[Function]) -> ObjectiveAt:
        """Return the objective at the inputs, with what was propagated where they are those of the last value."""
        if self._last is None or not self._last.is_of(inputs):
            self._last = self.objective.at(inputs)
        return self._last

    def recompute_component(self, inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any) -> Any:
        self._last = self.objective.at(inputs)
        return self._last.value()

    def prepare_evaluate_adj(self, inputs: Sequence[Any], adj_inputs: Sequence[Any], relevant_dependencies: Any) -> Any:
        return self._at(inputs).derivative(float(adj_inputs[0]))

    def evaluate_adj_component(
        self, inputs: Sequence[Any], adj_inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        return prepared[idx]

    def evaluate_tlm_component(
        self, inputs: Sequence[Any], tlm_inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        return self._at(inputs).tangent(tlm_inputs)

    def prepare_evaluate_hessian(
        self, inputs: Sequence[Any], hessian_inputs: Sequence[Any], adj_inputs: Sequence[Any],
        relevant_dependencies: Any,
    ) -> Any:
        at, tangents = self._at(inputs), [d.tlm_value for d in self.get_dependencies()]
        seed, change = float(adj_inputs[0] or 0.0), float(hessian_inputs[0] or 0.0)
        result = at.hessian(tangents, seed)
        if change:
            for total, part in zip(result, at.derivative(change), strict=True):
                total.dat.data[:] += part.dat.data_ro
        return result

    def evaluate_hessian_component(
        self, inputs: Sequence[Any], hessian_inputs: Sequence[Any], adj_inputs: Sequence[Any], block_variable: Any,
        idx: int, relevant_dependencies: Any, prepared: Any = None,
    ) -> Any:
        return prepared[idx]


class _OnRanks(ReducedFunctional):
    """A functional of controls of which every rank holds some whole and others in part."""

    def __init__(self, J: AdjFloat, controls: list[Control], tape: Tape, comm: MPI.Comm):
        super().__init__(J, controls, tape=tape)
        self._comm = comm

    def __call__(self, values: Any) -> Any:
        return super().__call__([replicated(value, self._comm) for value in Enlist(values)])


class TrainingProblem(NotPickled):
    r"""Minimise over all controls m: :math:`\frac1n \sum_i \ell(c_i, y_i) + R(m)`.

    Parameters
    ----------
    readout
        The network with its readout.
    sample
        The training sample.
    loss
        Default: softmax cross-entropy.
    control_size, control_roughness, control_scales, weights_gradient, weights_size, opening_size
        Of R: see :class:`~ctrlnet.objective.regularisation.Regularisation`. A regulariser of one's own is UFL added to
        :meth:`average_loss`.
    memory_limit
        Bytes a rank may use to keep trajectories.
    work
        Counter of sweeps.
    ensemble
        Splits the images over copies of the mesh: see :class:`~ctrlnet.SampleAverage`. Best where a mesh is too
        small to be split.
    projection
        Maps inputs to nodal values of the network's space. Default: the inputs' own.
    """

    def __init__(
        self, readout: RegularisedReadout, sample: Sample, loss: Loss | None = None, *, control_size: float = 1e-4,
        control_roughness: float = 0.0, control_scales: Sequence[float] | None = None, weights_gradient: float = 1e-4,
        weights_size: float = 1e-4, opening_size: float = 1e-4, memory_limit: int = 2**30, work: Work | None = None,
        ensemble: Ensemble | None = None, projection: NodalMap | None = None,
    ):
        self.readout = readout
        self.network = readout.network
        self.projection, self._memory_limit = projection, memory_limit
        # Before anything is collective that depends on how many images there are.
        check_same(
            readout.comm if ensemble is None else ensemble.global_comm, "Samples", sample.fingerprint,
            "Every rank is given the whole sample; ranks share the work, not the images.")
        self.average: Average = SampleAverage(readout, sample, loss, memory_limit, work, ensemble, projection)
        self.regularisation = Regularisation(
            self.network, readout, control_size, control_roughness, control_scales, weights_gradient, weights_size,
            opening_size)

    @property
    def work(self) -> Work:
        return self.average.work

    @property
    def control_set(self) -> ControlSet:
        """All controls: those in time and the classifier, ``s, b, W, beta`` and what the dynamics learn besides."""
        return self.network.control_set + self.readout.control_set

    def controls(self, rng: np.random.Generator | None = None, scale: float = 0.1) -> Controls:
        """Return all controls: zero, or s drawn from ``rng`` with standard deviation ``scale``.

        A learned opening has its start. All ranks have what the first one draws.
        """
        space = self.network.control_space
        in_time = space.zero() if rng is None else space.random(rng, scale)
        in_time.s.dat.data[:] = self.average.comm.bcast(in_time.s.dat.data_ro)
        return in_time.extended(self.network.opening.first()).extended(self.readout.zero())

    def check_same_on_all_ranks(self, m: Controls) -> None:
        """Raise a ValueError, on all ranks, if controls differ between them. Collective."""
        known = {name: part for name, part in self.control_set.parts.items() if name in m.names}
        check_same(
            self.average.comm, "Controls", lambda: {name: part.values(m[name]) for name, part in known.items()},
            "Draw them by a generator of the same seed, or let problem.controls(rng) draw.")

    def with_classifier(self, m: ControlsLike) -> Controls:
        """Return all controls of what may be those in time alone.

        A classifier that is missing is zero, a learned opening has its start.

        Raises
        ------
        ValueError
            If a control in time is missing, or one is no Function in its space.
        """
        network = self.network
        given = as_controls(
            m, network.control_space.control_set.names, network.control_set.names, self.control_set.names)
        missing = network.opening.first().by_name() | self.readout.zero().by_name()
        return self.control_set.controls(missing | given.by_name())

    def coordinates(
        self, names: Sequence[str] | None = None, time_scale: float = 0.0, weights_matrix: np.ndarray | None = None,
        euclidean: bool = False,
    ) -> Coordinates:
        r"""Return coordinates of controls in the regularisation's metric.

        Parameters
        ----------
        names
            The controls that they hold. Default: all.
        time_scale
            :math:`\tau` of the inner product in time; 0 for L2.
        weights_matrix
            Matrix of the inner product of W over the readout's nodes (symmetric, positive definite, dense).
            Default: that of its regularisation.
        euclidean
            Leave the metric out: the coordinates are the degrees of freedom themselves.

        Raises
        ------
        ValueError
            If there is no control of a name.
        """
        chosen = self.control_set if names is None else self.control_set.restricted(names)
        metric = {} if euclidean else self.regularisation.metric(chosen.names, time_scale, weights_matrix)
        return Coordinates(chosen, metric, self.regularisation.matrices(chosen.names))

    def average_loss(self, m: ControlsLike) -> AdjFloat:
        """Return the mean loss alone, annotated on the working tape as one block."""
        return self._annotated(m, None)

    def functional(self, m: ControlsLike) -> AdjFloat:
        """Return the objective, loss and regularisation, annotated on the working tape as one block."""
        return self._annotated(m, self.regularisation)

    def _annotated(
        self, m: ControlsLike, regularisation: Regularisation | None
    ) -> AdjFloat:
        controls = self.control_set.controls(m)
        self.check_same_on_all_ranks(controls)
        block = ObjectiveBlock(Objective(self.average, regularisation), controls)
        with stop_annotating():
            # What the tape saved of the controls is what a derivative will be asked for at.
            saved = [dependency.saved_output for dependency in block.get_dependencies()]
            value = AdjFloat(block.recompute_component(saved, None, 0, None))
        if annotate_tape():
            get_working_tape().add_block(block)
            block.add_output(value.create_block_variable())
        return value

    def reduced_functional(self, m: ControlsLike) -> ReducedFunctional:
        """Return the objective as a pyadjoint ReducedFunctional of all controls, on a tape of its own."""
        comm = self.average.comm
        controls = self.control_set.controls([replicated(c, comm) for c in self.control_set.controls(m)])
        with own_tape() as tape:
            return _OnRanks(self.functional(controls), [Control(c) for c in controls], tape, comm)

    def accuracy(self, sample: Sample, m: ControlsLike) -> float:
        """Return the share of correctly classified images of any sample, on the network's own mesh."""
        look_once_at_steps(self.network, self.control_set.controls(m))
        return self.on_sample(sample).accuracy(*self.point(m))

    def prediction(self, m: ControlsLike) -> Prediction:
        """Return what the network says of inputs with given controls: scores, probabilities, classes, states."""
        average = self.average
        warn_of_long_steps(self.network, self.control_set.controls(m))
        return Prediction(
            self.readout, self.point(m), average.loss, average.sample.targets.are_classes, average.ensemble,
            self.projection)

    def relative_error(self, sample: Sample, m: ControlsLike) -> float:
        """Return the relative error of scores over a sample whose targets are numbers or fields.

        See :meth:`ctrlnet.SampleAverage.relative_error`.
        """
        look_once_at_steps(self.network, self.control_set.controls(m))
        return self.on_sample(sample).relative_error(*self.point(m))

    def point(self, m: ControlsLike) -> Point:
        """Return controls as arrays, the way averages take them."""
        return self.readout.point(m)

    def on(self, network: Network) -> TrainingProblem:
        """Return the same problem of a network on another mesh, or with other steps, counted together with this one.

        Inputs are mapped to its nodes by the default map.

        Raises
        ------
        ValueError
            If this problem's mean is one over several meshes.
        """
        average = self.average
        if average.count != len(average.sample):
            raise ValueError("A mean over several meshes has no one mesh in whose place another could be. Build anew.")
        same = network.space == self.network.space
        return TrainingProblem(
            self.readout.on(network), average.sample, average.loss, **self.regularisation.settings,
            memory_limit=self._memory_limit, work=self.work, ensemble=average.ensemble,
            projection=self.projection if same else None)

    def with_average(self, average: Average) -> TrainingProblem:
        """Return the problem with another sample average of the same readout; regularisation is shared."""
        out = copy.copy(self)
        out.average = average
        return out

    def on_sample(self, sample: Sample, projection: NodalMap | None = None) -> SampleAverage:
        """Return the average loss over another sample, with work counted apart."""
        return SampleAverage(
            self.readout, sample, self.average.loss, ensemble=self.average.ensemble,
            projection=projection or self.projection)
