"""Samples of fields on meshes: inputs, targets, readers, the shipped digits, maps to nodal values."""

from ctrlnet.fields.augmentation import Augmentation, AugmentedSample, Crop, Flip, Noise, Shift
from ctrlnet.fields.digits import SIDE, as_picture, digit_samples, digit_space
from ctrlnet.fields.globe import globe_pixels
from ctrlnet.fields.idx import read_idx
from ctrlnet.fields.inputs import Inputs, NodalMap
from ctrlnet.fields.mnist import ImageData, mnist, mnist_sample
from ctrlnet.fields.nodal import averaged_pixels, transferred_pixels
from ctrlnet.fields.nodal_targets import NodalClasses, NodalFields
from ctrlnet.fields.nodal_values import NodalValues
from ctrlnet.fields.pixel_inputs import Pixels
from ctrlnet.fields.pixel_map import PixelMap, average_pixels
from ctrlnet.fields.pixels import PixelProjection
from ctrlnet.fields.point_values import PointMap, PointValues
from ctrlnet.fields.sample import Sample
from ctrlnet.fields.targets import Classes, Numbers, Targets

__all__ = [
    "Augmentation", "AugmentedSample", "Classes", "Crop", "Flip", "ImageData", "Inputs", "NodalClasses", "NodalFields",
    "NodalMap", "NodalValues", "Noise", "Numbers", "PixelMap", "PixelProjection", "Pixels", "PointMap", "PointValues",
    "SIDE", "Sample", "Shift", "Targets", "as_picture", "average_pixels", "averaged_pixels", "digit_samples",
    "digit_space", "globe_pixels", "mnist", "mnist_sample", "read_idx", "transferred_pixels",
]
