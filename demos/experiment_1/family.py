"""The networks of experiment 1: one set of controls on meshes of 7x7 to 56x56 cells, and what each sees of an image."""

from functools import cache

import numpy as np

import ctrlnet as cn
from ctrlnet.fields import averaged_pixels, digit_space, transferred_pixels
from ctrlnet.operators import Averaging, FullWeighting, Linear, PiecewiseConstant
from ctrlnet.transfer import galerkin, galerkin_prolongation

MESHES = (7, 14, 28, 56)
space = cache(digit_space)


@cache
def pixels(mesh, seen=None):
    """Return the map of a picture to a mesh, seen at the resolution of another one.

    Coarse pixels are averages of fine ones; the 56x56 mesh sees the finite-element function of the 28x28 one.
    """
    seen = min(mesh, 28) if seen in (None, mesh) else seen
    if seen == mesh:
        return averaged_pixels(space(mesh), (28, 28), 28 // mesh)
    return transferred_pixels(pixels(seen), space(mesh), Linear() if seen < mesh else FullWeighting())


class Family:
    """The networks of one set of operators: the same controls and classifier on every mesh."""

    def __init__(self, basis, arguments):
        self.operators = {"stencil": cn.stencil_operators, "low": cn.low_order_operators}[basis](space(28))
        self.controls = cn.ControlSpace(arguments.time, arguments.layers, self.operators, arguments.features)
        reference = cn.Network(
            self.operators, self.controls, dynamics=cn.ReactionDiffusion(nu=arguments.diffusion), integrator=cn.IMEX(),
            opening=cn.FixedOpening(np.ones(arguments.features)), precision="single")
        self.networks = {n: reference if n == 28 else reference.on(space(n)) for n in MESHES}
        self.readout = cn.Readout(reference, classes=10, space=space(arguments.readout))
        self.readouts = {n: self.readout if n == 28 else self.readout.on(self.networks[n]) for n in MESHES}
        self.parameters = sum(part.space.dim() for part in reference.control_set + self.readout.control_set)

    def average(self, sample, mesh, seen=None, work=None):
        """Return the average loss of a sample on a mesh, seen at the resolution of another one."""
        return cn.SampleAverage(self.readouts[mesh], sample, work=work, projection=pixels(mesh, seen))

    def problem(self, sample):
        """Return the training problem of a sample on 28x28 cells, whose network is the one that files hold."""
        return cn.TrainingProblem(self.readout, sample, control_size=1e-6, weights_gradient=1e-4, weights_size=1e-5)

    def average_of_views(self, sample, views, work=None, rng=None):
        """Return the mean over meshes and resolutions, (mesh, seen) -> share, of which mini-batches draw one."""
        chosen = {view: share for view, share in views.items() if share}
        averages = [self.average(sample, mesh, seen, work) for mesh, seen in chosen]
        return cn.MultilevelAverage(averages, list(chosen.values()), rng)

    def without_layers(self, mesh):
        """Return the readout of the image itself on a mesh, and the coefficients that it takes no notice of."""
        one = cn.ControlSpace(1.0, 1, self.operators, features=1)
        return cn.Readout(cn.Network(self.networks[mesh].operators, one), 10, self.readout.space), one.zero()

    def galerkin(self, trained, mesh):
        """Return the map of coefficients over one or two halvings or doublings of the mesh width."""
        chain = [n for n in MESHES if min(trained, mesh) <= n <= max(trained, mesh)]
        steps = list(zip(chain, chain[1:], strict=False))
        result = None
        for coarse, fine in steps if mesh > trained else reversed(steps):
            here = self.networks[coarse].operators, self.networks[fine].operators
            step = (galerkin_prolongation(*here, Averaging(), PiecewiseConstant()) if mesh > trained
                    else galerkin(*here[::-1], Averaging(), PiecewiseConstant()))
            result = step if result is None else step @ result
        return result
