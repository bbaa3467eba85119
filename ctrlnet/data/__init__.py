"""Labelled images: the shipped MNIST sample, the full MNIST set and a reader of IDX files."""

from __future__ import annotations

from ctrlnet.data.idx import read_idx
from ctrlnet.data.mnist import ImageData, mnist, mnist_sample
from ctrlnet.data.shifted import ShiftedSample

__all__ = ["ImageData", "ShiftedSample", "mnist", "mnist_sample", "read_idx"]
