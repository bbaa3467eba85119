"""Moving images, kernels and controls between meshes and resolutions."""

from __future__ import annotations

from ctrlnet.transfer.carry import carry
from ctrlnet.transfer.classifier import restrict_classifier
from ctrlnet.transfer.coefficient_map import CoefficientMap, SingularTransferError
from ctrlnet.transfer.galerkin import galerkin, galerkin_prolongation, interior_rows
from ctrlnet.transfer.galerkin_stencils import galerkin_stencil_map, galerkin_stencils, prolong_stencils
from ctrlnet.transfer.images import PixelProjection, average_pixels
from ctrlnet.transfer.inner_products import HilbertSchmidt, Moments
from ctrlnet.transfer.intergrid import Averaging, FullWeighting, Injection, Linear, NestingError, PiecewiseConstant
from ctrlnet.transfer.nodal import PixelMap, averaged_pixels, transferred_pixels
from ctrlnet.transfer.rediscretise import rediscretise

__all__ = [
    "Averaging", "CoefficientMap", "FullWeighting", "HilbertSchmidt", "Injection", "Linear", "Moments", "NestingError",
    "PiecewiseConstant", "PixelMap", "PixelProjection", "SingularTransferError", "average_pixels", "averaged_pixels",
    "carry", "galerkin", "galerkin_prolongation", "galerkin_stencil_map", "galerkin_stencils", "interior_rows",
    "prolong_stencils", "rediscretise", "restrict_classifier", "transferred_pixels",
]
