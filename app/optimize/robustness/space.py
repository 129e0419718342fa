"""Where an attack moves a sample: the levels of a photo's pixels as the model gets them, or a row of numbers.

Attacks and gradients know arrays [n, …] of float32 in these units only; here is how they become a model's input.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from app.errors import InvalidContent
from app.processing.image import ImageProcessing
from app.registry.servables.servable import Servable
from app.tensors import NUMPY_DTYPES, Array, Tensors


class Space(Protocol):
    """`unit` is that of values and strengths; `low` and `high` are the ends that values may have, None where they have
    none. `strengths`: where none are asked for."""

    unit: str
    low: Array | None
    high: Array | None

    def values(self, tensors: Tensors) -> Array:
        """What `Servable.prepare` gave, [n, …] as float32."""
        ...

    def tensor(self, values: Array) -> Array:
        """The model's input for values that it could get in service."""
        ...

    def smooth(self, values: Array) -> Array:
        """As `tensor`, for values between those too: float32."""
        ...

    def slope(self, gradient: Array) -> Array:
        """A gradient by the input, from `smooth`, as one by the values."""
        ...

    def hold(self, values: Array, origin: Array, strength: float) -> Array:
        """The values nearest to these that can be sent, and that are no further than `strength` from `origin`."""
        ...

    def strengths(self, values: Array) -> tuple[float, ...]: ...

    def check_strengths(self, strengths: tuple[float, ...]) -> None:
        """Raises InvalidContent."""
        ...


class Pixels:
    """Levels 0…255 of RGB or grey, [n, height, width, channels], whatever the model's order and normalisation."""

    unit = "levels of 255"

    def __init__(self, processing: ImageProcessing) -> None:
        self.form = (processing.crop, processing.colour == "GRAY")
        self.low: Array | None = np.float32(0)  # type: ignore[assignment]
        self.high: Array | None = np.float32(255)  # type: ignore[assignment]
        self._is_first = processing.layout == "NCHW"
        self._is_bgr = processing.colour == "BGR"
        self._normalise = processing.normalise

    def values(self, tensors: Tensors) -> Array:
        (tensor,) = tensors.values()
        pixels = tensor.transpose(0, 2, 3, 1) if self._is_first else tensor
        if self._normalise != "in_graph":
            pixels = np.rint(pixels.astype(np.float64) * self._normalise.scale + self._normalise.mean).clip(0, 255)
        return np.ascontiguousarray(self._turn(pixels), np.float32)

    def tensor(self, values: Array) -> Array:
        levels = np.rint(values)
        return self.smooth(levels) if self._normalise != "in_graph" else self._arrange(levels).astype(np.uint8)

    def smooth(self, values: Array) -> Array:
        pixels = self._turn(values.astype(np.float32))
        if self._normalise != "in_graph":
            mean, scale = (np.array(part, np.float32) for part in (self._normalise.mean, self._normalise.scale))
            pixels = (pixels - mean) / scale
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if self._is_first else pixels)

    def slope(self, gradient: Array) -> Array:
        pixels = gradient.transpose(0, 2, 3, 1) if self._is_first else gradient
        if self._normalise != "in_graph":
            pixels = pixels / np.array(self._normalise.scale, np.float32)
        return np.ascontiguousarray(self._turn(pixels))

    def hold(self, values: Array, origin: Array, strength: float) -> Array:
        return _whole(values, origin, strength).clip(0, 255)

    def strengths(self, values: Array) -> tuple[float, ...]:  # noqa: ARG002
        return (1.0, 2.0, 4.0, 8.0)

    def check_strengths(self, strengths: tuple[float, ...]) -> None:
        for strength in strengths:
            if not strength.is_integer() or not 1 <= strength <= 255:
                raise InvalidContent(
                    f"--strengths {strength:g}: a photo has 255 levels, so a strength is a whole number of 1 to 255"
                )

    def _turn(self, pixels: Array) -> Array:
        return pixels[..., ::-1] if self._is_bgr else pixels

    def _arrange(self, values: Array) -> Array:
        pixels = self._turn(values)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if self._is_first else pixels)


class Rows:
    """Numbers as they come, [n, columns]. Their ends are those of `values.range` in model.yaml, where there are any."""

    unit = "units of the input"

    def __init__(self, servable: Servable) -> None:
        entry = servable.manifest.inputs[0]
        self._dtype = NUMPY_DTYPES[entry.datatype]
        self._is_whole = np.dtype(self._dtype).kind != "f"
        bounds = entry.values.range if entry.values is not None else None
        self.low: Array | None = None
        self.high: Array | None = None
        if bounds is not None:
            self.low, self.high = np.broadcast_arrays(_ends(bounds.low, -np.inf), _ends(bounds.high, np.inf))
        self.least_step = 1.0 if self._is_whole else 0.0

    def values(self, tensors: Tensors) -> Array:
        (tensor,) = tensors.values()
        return tensor.astype(np.float32)

    def tensor(self, values: Array) -> Array:
        return (np.rint(values) if self._is_whole else values).astype(self._dtype)

    def smooth(self, values: Array) -> Array:
        return values.astype(np.float32)

    def slope(self, gradient: Array) -> Array:
        return gradient

    def hold(self, values: Array, origin: Array, strength: float) -> Array:
        if self._is_whole:
            held = _whole(values, origin, strength)
        else:
            held = np.clip(values, origin - np.float32(strength), origin + np.float32(strength))
        return held if self.low is None or self.high is None else held.clip(self.low, self.high)

    def strengths(self, values: Array) -> tuple[float, ...]:
        """Parts of the columns' mean standard deviation, which they are to be understood by."""
        spread = float(np.mean(np.std(values.astype(np.float64), axis=0))) or 1.0
        return tuple(float(f"{part * spread:.2g}") for part in (0.05, 0.1, 0.2, 0.4))

    def check_strengths(self, strengths: tuple[float, ...]) -> None:
        for strength in strengths:
            if self._is_whole and strength < 1:
                raise InvalidContent(f"--strengths {strength:g}: the model takes whole numbers, so name 1 or more")


def space_of(servable: Servable) -> Pixels | Rows:
    processing = servable.manifest.processing
    return Pixels(processing) if isinstance(processing, ImageProcessing) else Rows(servable)


def _whole(values: Array, origin: Array, strength: float) -> Array:
    """Steps of whole numbers, rounded towards the origin: never further than `strength`.

    A thousandth is what float32 leaves of a step that was whole.
    """
    steps = np.fix(np.round(values - origin, 3))
    moved: Array = origin + steps.clip(-np.floor(strength), np.floor(strength))
    return moved.astype(np.float32)


def _ends(numbers: tuple[float | None, ...] | None, open_end: float) -> Array:
    return np.array([open_end if one is None else one for one in numbers or (None,)], np.float32)
