"""The networks of the sphere's demo: one set of controls on icospheres, and the pictures that each of them sees."""

import math
from functools import cached_property

import numpy as np
from firedrake import FunctionSpace

import ctrlnet as cn
from ctrlnet.fields import SIDE, globe_pixels, transferred_pixels
from ctrlnet.fields.nodal_transfer import node_places
from ctrlnet.operators import FullWeighting, sphere_hierarchy

RADIUS = 14.0  # half a picture: the unit of length is about a pixel
READOUT = 1  # level of the classifier's mesh, of 42 nodes
SAMPLED = 4  # level on which pictures are sampled for coarser meshes, which take weighted means of it
HALF_WIDTH = {"published": 1.5, "plain": math.sqrt(2.0)}  # of a picture in the tangent plane; the rim is at 2


class Globe:
    """The networks of one set of controls: 10 * 4^l + 2 nodes on level l.

    Parameters
    ----------
    arguments
        The demo's.
    finest
        The finest level that is needed.
    """

    def __init__(self, arguments, finest):
        self._spaces = [FunctionSpace(mesh, "CG", 1) for mesh in sphere_hierarchy(RADIUS, max(finest, SAMPLED))]
        self._readouts, self._maps = {}, {}
        self._width = HALF_WIDTH[arguments.rule]
        operators = cn.low_order_operators(self._spaces[arguments.levels[0]])
        controls = cn.ControlSpace(arguments.time, arguments.layers, operators, arguments.features)
        self.first = cn.Network(
            operators, controls, dynamics=cn.ReactionDiffusion(nu=arguments.diffusion), integrator=cn.IMEX(),
            opening=cn.FixedOpening(np.ones(arguments.features)), precision="single")
        self.parameters = sum(part.space.dim() for part in self.first.control_set + self.readout(
            arguments.levels[0]).control_set)

    def space(self, level):
        """Return the space on a level."""
        return self._spaces[level]

    def readout(self, level):
        """Return network and readout on a level: the same controls, the operators of its mesh."""
        if level not in self._readouts:
            self._readouts[level] = self._readout_on(level)
        return self._readouts[level]

    def _readout_on(self, level):
        V = self.space(level)
        network = self.first if V == self.first.space else self.first.on(V)
        return cn.Readout(network, 10, self.space(READOUT))

    def pictures(self, level):
        """Return the map of a picture to the nodes of a level."""
        if level not in self._maps:
            self._maps[level] = self._map_to(level)
        return self._maps[level]

    def _map_to(self, level):
        if level < SAMPLED:
            return transferred_pixels(self.pictures(SAMPLED), self.space(level), FullWeighting())
        return globe_pixels(self.space(level), (int(SIDE), int(SIDE)), half_width=self._width)

    def average(self, sample, level, work=None):
        """Return the average loss of a sample on a level."""
        return cn.SampleAverage(self.readout(level), sample, work=work, projection=self.pictures(level))

    def problem(self, sample, levels, shares, rng):
        """Return the training problem of the mean over levels, of which mini-batches draw one."""
        work = cn.Work()
        problem = cn.TrainingProblem(
            self.readout(levels[0]), sample, control_size=1e-6, weights_gradient=1e-4, weights_size=1e-5, work=work,
            projection=self.pictures(levels[0]))
        return problem.with_average(self.mean(sample, levels, shares, work, rng))

    def mean(self, sample, levels, shares, work=None, rng=None):
        """Return the weighted mean of the losses on levels."""
        work = cn.Work() if work is None else work
        return cn.MultilevelAverage([self.average(sample, level, work) for level in levels], shares, rng)

    @cached_property
    def weights_matrix(self):
        """An inner product of W in which a unit of it changes a score by about as much as a unit of s does."""
        nodes = self.space(READOUT).dim()
        area = 4 * math.pi * RADIUS**2
        return (area / nodes / 5.0) ** 2 * np.eye(nodes)


def gathered(V, fields):
    """Return the places (nodes, 3) and the values of Functions of a space, by name, at the nodes of all ranks."""
    parts = V.mesh().comm.allgather([node_places(V), *(Y.dat.data_ro for Y in fields.values())])
    places, *values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return places, dict(zip(fields, values, strict=True))
