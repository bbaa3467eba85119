"""Labelled images: the shipped MNIST sample, the full MNIST set and a reader of IDX files."""

from __future__ import annotations

from ctrlnet.data.idx import read_idx
from ctrlnet.data.mnist import ImageData, mnist, mnist_sample

__all__ = ["ImageData", "mnist", "mnist_sample", "read_idx"]
