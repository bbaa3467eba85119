"""Samples of images as fields on meshes: readers, the shipped digits, maps from pixels to nodes."""

from ctrlnet.fields.digits import SIDE, as_picture, digit_samples, digit_space
from ctrlnet.fields.idx import read_idx
from ctrlnet.fields.mnist import ImageData, mnist, mnist_sample
from ctrlnet.fields.nodal import PixelMap, averaged_pixels, transferred_pixels
from ctrlnet.fields.pixels import PixelProjection, average_pixels
from ctrlnet.fields.sample import Sample
from ctrlnet.fields.shifted import ShiftedSample

__all__ = [
    "SIDE", "ImageData", "PixelMap", "PixelProjection", "Sample", "ShiftedSample", "as_picture", "average_pixels",
    "averaged_pixels", "digit_samples", "digit_space", "mnist", "mnist_sample", "read_idx", "transferred_pixels",
]
