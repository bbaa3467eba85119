r"""The training problem: sample average plus regularisation, as a pyadjoint reduced functional."""

from __future__ import annotations

import copy

import numpy as np
from firedrake import Cofunction, Ensemble, Function
from firedrake.adjoint import Control, ReducedFunctional
from pyadjoint import AdjFloat, Block, annotate_tape, get_working_tape, stop_annotating

from ctrlnet.losses import Loss
from ctrlnet.own_tape import own_tape
from ctrlnet.readout import Readout
from ctrlnet.regularisation import Regularisation
from ctrlnet.sample import Sample
from ctrlnet.sample_average import SampleAverage
from ctrlnet.work import Work

__all__ = ["SampleAverageBlock", "TrainingProblem"]


class SampleAverageBlock(Block):
    """The map (s, b, W, beta) -> average loss (+ regularisation), S x B x W x R^K -> R, streamed over the sample.

    The adjoint maps R -> S* x B* x W* x R^K*; the Hessian is forward over reverse, exact for the discrete
    scheme.
    """

    def __init__(self, average: SampleAverage, controls, regularisation: Regularisation | None = None):
        super().__init__()
        self.average = average
        self.regularisation = regularisation
        for control in controls:
            self.add_dependency(control)

    def arrays(self, functions) -> tuple[np.ndarray, ...]:
        """Return (S, b, W, beta) of four Functions; None stands for zero."""
        net, readout = self.average.network, self.average.readout
        s, b, W, beta = self._filled(functions)
        return (*net.layers(s, b), readout.weights_array(W), beta.dat.data_ro.ravel())

    def _filled(self, functions):
        """Return four Functions, with zeros for those that are None."""
        if not any(f is None for f in functions):
            return functions
        zeros = (*self.average.network.controls.functions(), *self.average.readout.functions())
        return tuple(z if f is None else f for f, z in zip(functions, zeros, strict=True))

    def value(self, functions) -> float:
        """Return the value at four Functions."""
        arrays = self.arrays(functions)
        return self.average.value(*arrays) + self.penalty(functions)

    def penalty(self, functions) -> float:
        """Return the regularisation's value at four Functions."""
        if self.regularisation is None:
            return 0.0
        _, _, W, beta = functions
        weights = self.average.readout.weights_array(W), beta.dat.data_ro.ravel()
        return self.regularisation.controls_value(*functions[:2]) + self.regularisation.weights_value(*weights)

    def cofunctions(self, derivative, functions, factor: float = 1.0) -> list[Cofunction]:
        """Return factor * (derivative of the loss + A u) as Cofunctions, u the given Functions."""
        net, readout = self.average.network, self.average.readout
        gS, gb, gW, gbeta = derivative
        if self.regularisation is not None:
            s, b, W, beta = self._filled(functions)
            gW = gW + self.regularisation.weights(readout.weights_array(W))
            gbeta = gbeta + self.regularisation.ridge * beta.dat.data_ro.ravel()
        out = [
            net.controls.s_cofunction(net.sampling, factor * gS),
            net.controls.b_cofunction(net.sampling, factor * gb),
            *readout.cofunctions(factor * gW, factor * gbeta),
        ]
        if self.regularisation is not None:
            for total, part in zip(out, self.regularisation.controls(s, b), strict=False):
                total.dat.data[:] += factor * part.reshape(total.dat.data_ro.shape)
        return out

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return self.value(inputs)

    def prepare_evaluate_adj(self, inputs, adj_inputs, relevant_dependencies):
        return self.cofunctions(self.average.gradient(*self.arrays(inputs)), inputs, float(adj_inputs[0]))

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return prepared[idx]

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        change = self.average.tangent(self.arrays(inputs), self.arrays(tlm_inputs))
        if self.regularisation is not None:
            zero = [np.zeros(a.shape) for a in self.arrays(inputs)]
            penalty = self.cofunctions(zero, inputs)
            change += sum(float(d._ad_dot(p)) for d, p in zip(tlm_inputs, penalty, strict=True) if d is not None)
        return change

    def prepare_evaluate_hessian(self, inputs, hessian_inputs, adj_inputs, relevant_dependencies):
        point = self.arrays(inputs)
        tangents = [d.tlm_value for d in self.get_dependencies()]
        seed, change = float(adj_inputs[0] or 0.0), float(hessian_inputs[0] or 0.0)
        result = self.cofunctions(self.average.hessian(point, self.arrays(tangents)), tangents, seed)
        if change:
            gradient = self.cofunctions(self.average.gradient(*point), inputs, change)
            for total, part in zip(result, gradient, strict=True):
                total.dat.data[:] += part.dat.data_ro
        return result

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant_dependencies, prepared=None
    ):
        return prepared[idx]


class TrainingProblem:
    r"""Minimise over s, b, W, beta: :math:`\frac1n \sum_i \ell(c_i, y_i) + R(s, b, W, \beta)`.

    Parameters
    ----------
    readout
        The network with its readout.
    sample
        The training sample.
    loss
        Default: softmax cross-entropy.
    control_size, control_roughness, control_scales, weights_gradient, weights_size
        Of R: see :class:`~ctrlnet.regularisation.Regularisation`. A regulariser of one's own is UFL added to
        :meth:`average_loss`.
    memory_limit
        Bytes a rank may use to keep trajectories.
    work
        Counter of sweeps.
    ensemble
        Splits the images over copies of the mesh: see :class:`~ctrlnet.SampleAverage`. Best where a mesh is too
        small to be split.
    """

    def __init__(
        self, readout: Readout, sample: Sample, loss: Loss | None = None, *, control_size: float = 1e-4,
        control_roughness: float = 0.0, control_scales=None, weights_gradient: float = 1e-4, weights_size: float = 1e-4,
        memory_limit: int = 2**30, work: Work | None = None, ensemble: Ensemble | None = None,
    ):
        self.readout = readout
        self.network = readout.network
        self.average = SampleAverage(readout, sample, loss, memory_limit, work, ensemble)
        self.regularisation = Regularisation(
            self.network.controls, readout, control_size, control_roughness, control_scales, weights_gradient,
            weights_size)

    @property
    def work(self) -> Work:
        return self.average.work

    def controls(self, rng: np.random.Generator | None = None, scale: float = 0.1) -> tuple[Function, ...]:
        """Return (s, b, W, beta): zero, or s drawn from ``rng`` with standard deviation ``scale``."""
        controls = self.network.controls
        start = controls.functions() if rng is None else controls.random(rng, scale)
        return (*start, *self.readout.functions())

    def average_loss(self, s: Function, b: Function, W: Function, beta: Function) -> AdjFloat:
        """Return the mean loss alone, annotated on the working tape as one block."""
        return self._annotated((s, b, W, beta), None)

    def functional(self, s: Function, b: Function, W: Function, beta: Function) -> AdjFloat:
        """Return the objective, loss and regularisation, annotated on the working tape as one block."""
        return self._annotated((s, b, W, beta), self.regularisation)

    def _annotated(self, controls, regularisation: Regularisation | None) -> AdjFloat:
        block = SampleAverageBlock(self.average, controls, regularisation)
        with stop_annotating():
            value = AdjFloat(block.value(controls))
        if annotate_tape():
            get_working_tape().add_block(block)
            block.add_output(value.create_block_variable())
        return value

    def reduced_functional(self, s: Function, b: Function, W: Function, beta: Function) -> ReducedFunctional:
        """Return the objective as a pyadjoint ReducedFunctional of all four controls, on a tape of its own."""
        controls = (s, b, W, beta)
        with own_tape() as tape:
            J = self.functional(*controls)
            return ReducedFunctional(J, [Control(c) for c in controls], tape=tape)

    def accuracy(self, sample: Sample, s: Function, b: Function, W: Function, beta: Function) -> float:
        """Return the share of correctly classified images of any sample."""
        return self.on_sample(sample).accuracy(*self.arrays(s, b, W, beta))

    def arrays(self, s: Function, b: Function, W: Function, beta: Function) -> tuple[np.ndarray, ...]:
        """Return (S, b, W, beta) as the arrays of :class:`SampleAverage`."""
        return (*self.network.layers(s, b), self.readout.weights_array(W), beta.dat.data_ro.ravel().copy())

    def with_average(self, average: SampleAverage) -> TrainingProblem:
        """Return the problem with another sample average of the same readout; regularisation is shared."""
        out = copy.copy(self)
        out.average = average
        return out

    def on_sample(self, sample: Sample, projection=None) -> SampleAverage:
        """Return the average loss over another sample, with work counted apart."""
        return SampleAverage(
            self.readout, sample, self.average.loss, ensemble=self.average.ensemble, projection=projection)
