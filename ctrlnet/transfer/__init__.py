"""Kernels, controls and classifiers on other meshes and depths."""

from __future__ import annotations

from ctrlnet.transfer.carry import carry
from ctrlnet.transfer.classifier import restrict_classifier
from ctrlnet.transfer.coefficient_map import CoefficientMap, SingularTransferError
from ctrlnet.transfer.galerkin import galerkin, galerkin_prolongation, interior_rows
from ctrlnet.transfer.galerkin_stencils import galerkin_stencil_map, galerkin_stencils, prolong_stencils
from ctrlnet.transfer.inner_products import HilbertSchmidt, Moments
from ctrlnet.transfer.rediscretise import rediscretise

__all__ = [
    "CoefficientMap", "HilbertSchmidt", "Moments", "SingularTransferError", "carry", "galerkin",
    "galerkin_prolongation", "galerkin_stencil_map", "galerkin_stencils", "interior_rows", "prolong_stencils",
    "rediscretise", "restrict_classifier",
]
