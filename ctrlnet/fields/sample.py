"""A sample: inputs with what is known of them, checked once."""

from __future__ import annotations

from contextlib import suppress
from functools import singledispatch
from typing import Any

import numpy as np

from ctrlnet.fields.inputs import Inputs
from ctrlnet.fields.pixel_inputs import Pixels
from ctrlnet.fields.targets import Classes, Targets, check_count

__all__ = ["Sample"]


class Sample:
    """Inputs with their targets.

    Parameters
    ----------
    inputs
        Fields of q channels: :class:`~ctrlnet.fields.Pixels`, :class:`~ctrlnet.fields.NodalValues` or other
        :class:`~ctrlnet.fields.Inputs`; or an array (n, pixels along each axis) of grey images, which stands for
        ``Pixels(array)``.
    targets
        :class:`~ctrlnet.fields.Classes`, :class:`~ctrlnet.fields.Numbers`, :class:`~ctrlnet.fields.NodalClasses`,
        :class:`~ctrlnet.fields.NodalFields`; or (n,) integers, which stand for ``Classes(array, classes)``. None: there
        are none, and the sample is for predictions.
    classes
        K, of labels that are given as an array.

    Raises
    ------
    ValueError
        For another number of targets than of inputs, and as the classes of inputs and targets do.
    """

    def __init__(self, inputs: Inputs | np.ndarray, targets: Targets | np.ndarray | None = None, classes: int = 10):
        self.inputs: Any = _as_inputs(inputs)
        self.targets: Any = _as_targets(targets, classes)
        if self.targets is not None and len(self.targets) != len(self.inputs):
            raise ValueError(
                f"{len(self.inputs)} inputs need as many targets, received {len(self.targets)}. Give one an image.")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def generators(self) -> tuple[np.random.Generator, ...]:
        """What images are changed by when they are drawn."""
        return ()

    @property
    def pixels(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return self.inputs.pixels

    @property
    def images(self) -> np.ndarray:
        """The images as they were given; of inputs that are pixels."""
        return self.inputs.images

    @property
    def labels(self) -> np.ndarray:
        """The classes (n,) of targets that are classes of images."""
        return self.targets.labels

    @property
    def classes(self) -> int:
        """The number of classes, or of the components of other targets."""
        return self.targets.components

    def fingerprint(self) -> dict[str, Any]:
        """Return what samples that differ hardly share, by name: counts, targets, and some of the inputs.

        Of inputs and targets at nodes, which every rank has its own of, the counts alone.
        """
        out: dict[str, Any] = {"number of images": len(self), "channels": self.inputs.channels}
        with suppress(ValueError):
            out["pixels"] = self.inputs.pixels
            some = np.unique(np.linspace(0, len(self) - 1, 16).astype(int))
            out["images"] = np.stack([self.inputs.values(k, k + 1) for k in some])
        if self.targets is not None:
            out["components"] = self.targets.components
            with suppress(ValueError):
                out["targets"] = self.targets.of_images().values
        return out

    def values(self, start: int, stop: int) -> np.ndarray:
        """Return images ``start`` to ``stop`` as floats, (n, pixels...), or (n, q, ...) of several channels."""
        found = self.inputs.values(start, stop)
        return found[:, 0] if self.inputs.channels == 1 else found

    def with_inputs(self, inputs: Inputs) -> Sample:
        """Return other inputs with these ones' targets."""
        out = object.__new__(Sample)
        out.inputs, out.targets = inputs, self.targets
        return out

    def averaged(self, factor: int) -> Sample:
        """Return the sample with ``factor`` pixels along each axis averaged into one."""
        return self if factor == 1 else self.with_inputs(self.inputs.averaged(factor))

    def drawn(self, count: int, rng: np.random.Generator) -> Sample:
        """Return ``count`` images drawn without replacement; the same draw on any number of ranks."""
        check_count(count, len(self))
        return self.chosen(rng.choice(len(self), size=count, replace=False))

    def chosen(self, numbers: np.ndarray) -> Sample:
        """Return the images of the given numbers, in their order."""
        out = object.__new__(Sample)
        out.inputs = self.inputs.chosen(numbers)
        out.targets = None if self.targets is None else self.targets.chosen(numbers)
        return out


@singledispatch
def _as_inputs(inputs: Any) -> Inputs:
    if not hasattr(inputs, "channels"):
        raise ValueError(
            f"Inputs are an array of grey images, Pixels, NodalValues, PointValues or others with their methods; "
            f"received a {type(inputs).__name__}.")
    return inputs


@_as_inputs.register(Sample)
def _inputs_of(sample: Sample) -> Inputs:
    return sample.inputs


@_as_inputs.register(np.ndarray)
@_as_inputs.register(list)
def _(inputs: Any) -> Inputs:
    return Pixels(inputs)


@singledispatch
def _as_targets(targets: Any, classes: int) -> Targets | None:
    if targets is not None and not hasattr(targets, "components"):
        raise ValueError(
            f"Targets are an array of labels, Classes, Numbers, NodalClasses, NodalFields or others with their "
            f"methods; received a {type(targets).__name__}.")
    return targets


@_as_targets.register(np.ndarray)
@_as_targets.register(list)
def _(targets: Any, classes: int) -> Targets:
    return Classes(targets, classes)
