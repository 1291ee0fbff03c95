"""Initial values of backward weights, drawn independently of the forward kernels."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.errors import ArgumentError, Words

Tensor = tf.Tensor

Initializer = Callable[..., Any]
"""The type of `kernel_initializer` in Keras: an `Initializer`, or a function of shape and dtype."""


def independent_draw(
    initializer: Initializer,
    kernel: Any,
    layer: str,
    dtype: str,
    drawn: np.ndarray | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Draws B from the distribution of W, independently of W.

    A Keras initializer returns the same numbers at every call, so a second call of W's initializer would make B equal
    to W. B is therefore drawn by the same initializer with another seed. If the initializer has no seed, or returns W
    or a multiple of W despite the other seed, B is drawn from a normal distribution with the mean and the variance of
    W's entries. In both cases the seed is computed from the layer's name and the seed of W's initializer, or from W
    itself if the initializer has no seed. Keras' global seed is not used, so W does not depend on the rule.

    Args:
        initializer: W's initializer.
        kernel: the variable W. It has no value yet if Keras builds the layer inside a graph.
        layer: name of the layer.
        dtype: dtype of the result.
        drawn: the initial values of W, in the shape of W. Default: the value of `kernel`.
        shape: shape of B. Default: that of W.

    Returns:
        B in the layout of W.

    Raises:
        ValueError: if no independent draw is possible, because all entries of W are equal or some are not finite.
    """
    shape = tuple(kernel.shape) if shape is None else shape
    with tf.init_scope():  # The draws are compared by value, which requires eager execution.
        backward = _reseeded_by_keras(initializer, shape, layer, dtype)
        if backward is None:
            drawn = _values_drawn(initializer, kernel, dtype) if drawn is None else drawn
            backward = _compared_draw(initializer, drawn, layer, dtype, shape)
        values = keras.ops.convert_to_numpy(backward)
    return tf.constant(values)


def generator(
    weight: str, initializer: Initializer, kernel: Any, layer: str, drawn: np.ndarray | None = None
) -> np.random.Generator:
    """Returns random numbers for a further weight of a layer.

    The seed is computed as for a B that no initializer can draw; see `independent_draw`.

    Args:
        weight: name of the weight. Weights with different names are independent.
        initializer: W's initializer.
        kernel: the variable W.
        layer: name of the layer.
        drawn: as in `independent_draw`.
    """
    seed = getattr(initializer, "seed", None)
    if not isinstance(seed, int):
        with tf.init_scope():
            seed = _seed_of(initializer, _values_drawn(initializer, kernel, kernel.dtype) if drawn is None else drawn)
    return np.random.default_rng(_seed(seed, layer, weight))


def drawable(initializer: Initializer, kernels: Sequence[Any]) -> Initializer:
    """Returns an initializer from which B can be drawn in a new layer, whatever values W has later.

    Keras builds a saved layer before it reads the weights. If its initializer gives all entries of W the same value, no
    B could be drawn then.

    Args:
        initializer: the initializer of some trained kernels.
        kernels: the kernels, as variables.

    Returns:
        `initializer`, or a normal distribution with the mean and the variance of the kernels' entries if `initializer`
        gives all entries the same value, but the kernels do not.
    """
    if isinstance(getattr(initializer, "seed", None), int):
        return initializer

    def entries(values: Iterable[Any]) -> np.ndarray:
        return np.concatenate([keras.ops.convert_to_numpy(each).ravel() for each in values])

    trained = entries(kernels)
    drawn = entries(initializer(tuple(kernel.shape), dtype=kernel.dtype) for kernel in kernels)
    mean, deviation = _moments(trained)
    if _moments(drawn)[1] > 0 or not 0 < deviation < np.inf:
        return initializer
    return keras.initializers.RandomNormal(mean, deviation, seed=zlib.crc32(trained.tobytes()) & 0x7FFFFFFF)


def _reseeded_by_keras(initializer: Initializer, shape: tuple[int, ...], layer: str, dtype: str) -> Tensor | None:
    """Returns a draw by an initializer of Keras with another seed, or None if the draw must be compared with W.

    The draws of Keras' own initializers are known to depend on the seed. This avoids comparing millions of numbers.
    """
    if not type(initializer).__module__.startswith("keras.") or not isinstance(getattr(initializer, "seed", None), int):
        return None
    reseeded = _reseeded(initializer, _seed(initializer.seed, layer))
    if reseeded is None:
        return None
    backward = reseeded(shape, dtype=dtype)
    first = keras.ops.convert_to_numpy(tf.reshape(backward, [-1])[:16])
    return None if first.size and (first == first[0]).all() else backward


def _compared_draw(
    initializer: Initializer, drawn: np.ndarray, layer: str, dtype: str, shape: tuple[int, ...]
) -> Tensor:
    """Returns a draw that is not a multiple of W, from the initializer or from a normal distribution."""
    seed = _seed(_seed_of(initializer, drawn), layer)
    reseeded = _reseeded(initializer, seed)
    if reseeded is not None:
        backward = reseeded(drawn.shape, dtype=dtype)
        if not drawn.size or not _is_multiple(keras.ops.convert_to_numpy(backward), drawn):
            return backward if shape == drawn.shape else reseeded(shape, dtype=dtype)
    mean, deviation = _moments(drawn)
    if drawn.size and not 0 < deviation < np.inf:
        found = f"the value {drawn.flat[0]:g}" if np.isfinite(drawn).all() else "values that are not finite"
        raise ArgumentError(
            "kernel_initializer",
            "of an aligned layer must draw random numbers, so that the backward kernel can be an independent draw",
            Words(f"{_name(initializer)} for layer {layer!r}, which gives the entries of the kernel {found}"),
            "kernel_initializer='glorot_uniform'",
        )
    return keras.random.normal(shape, mean, deviation, dtype=dtype, seed=seed)


def _values_drawn(initializer: Initializer, kernel: Any, dtype: str) -> np.ndarray:
    """Returns the initial values of W as an array.

    If the variable has no value yet, W is drawn a second time. An initializer without a seed then returns different
    numbers from the same distribution.
    """
    shape = tuple(kernel.shape)
    with contextlib.suppress(tf.errors.FailedPreconditionError, NotImplementedError, AttributeError):
        drawn = np.asarray(kernel.numpy())
        if drawn.shape == shape:  # The value of an uninitialised variable may be empty.
            return drawn
    return keras.ops.convert_to_numpy(initializer(shape, dtype=dtype))


def _seed(seed: int, layer: str, weight: str = "backward_kernel") -> int:
    return zlib.crc32(f"{seed}/{layer}/{weight}".encode()) & 0x7FFFFFFF


def _seed_of(initializer: Initializer, drawn: np.ndarray) -> int:
    """Returns the initializer's integer seed, or a checksum of W if it has none."""
    seed = getattr(initializer, "seed", None)
    return seed if isinstance(seed, int) else zlib.crc32(np.ascontiguousarray(drawn).tobytes())


def _reseeded(initializer: Initializer, seed: int) -> Initializer | None:
    """Returns the initializer with another seed, or None if it has none or cannot be copied."""
    try:
        config = initializer.get_config()
        return type(initializer).from_config({**config, "seed": seed}) if "seed" in config else None
    except Exception:  # Custom classes may raise anything here; native layers never copy an initializer.
        return None


def _is_multiple(backward: np.ndarray, drawn: np.ndarray) -> bool:
    """Returns whether two draws are equal, or nearly equal up to a factor and an additive constant."""
    first, second = (each.astype(np.float64).ravel() for each in (backward, drawn))
    if np.array_equal(first, second) or (first.size > 1 and _cosine(first, second) > 1 - 1e-6):
        return True
    # The probability that two independent draws of 16 numbers are correlated this closely is one in a million.
    return first.size >= 16 and _cosine(first - first.mean(), second - second.mean()) > 0.9


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return abs(float(first @ second)) / norms if norms else 0.0


def _moments(drawn: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation of the entries. For a single entry these are 0 and its absolute value."""
    wide = drawn.astype(np.float64)
    if wide.size == 1:
        return 0.0, float(np.abs(wide).item())
    return (float(wide.mean()), float(wide.std())) if wide.size else (0.0, 0.0)


def _name(initializer: Initializer) -> str:
    return getattr(initializer, "__name__", type(initializer).__name__)
