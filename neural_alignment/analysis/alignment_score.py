"""The alignment score of a layer's weight change (Boopathy and Fiete 2022, section 3).

A is the linear operator from a layer's inputs to its outputs whose kernel is the weight change W(t) - W(0). A* is the
operator of the reference change W*(t) - W(0). Delta = A^T A (equation 2), and Sigma is proportional to A*^T A*
(equation 12). The score is the cosine between them (equation 10): S = tr(Delta Sigma) / sqrt(tr(Delta^2) tr(Sigma^2)).
Equation 9 as printed is not a cosine. The operator of a convolution acts on the whole image, with stride and padding.

Each trace is a mean over Gaussian vectors z: E[z^T Delta Sigma z] = tr(Delta Sigma), and E|Delta z|^2 = tr(Delta^2).
`alignment_score` takes the means over some probes. Its value approaches the exact score as their number grows, and
`standard_error` is the distance to expect. The traces themselves need the matrices of the operators, which have a row
for each input of the layer and are too large for images. The tests compute them for small layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

Array = np.ndarray


class LinearMap(Protocol):
    """An object that applies a kernel and its adjoint, such as `operations.DenseMap` or `operations.ConvMap`."""

    def project(self, inputs: Any, kernel: Any) -> Any:
        """Applies `kernel` to `inputs`, `(batch, ..., inputs)`."""

    def reconstruct(self, outputs: Any, kernel: Any, like: Any) -> Any:
        """Applies the adjoint to `outputs`; the result has the shape of `like`."""


class Score(NamedTuple):
    """An estimate of the score.

    Attributes:
        value: the score, a cosine from -1 to 1; NaN if a change is zero.
        standard_error: standard error of the estimate over the probes.
    """

    value: float
    standard_error: float


def alignment_score(
    linear_map: LinearMap,
    change: Array,
    reference_change: Array,
    input_shape: tuple[int, ...],
    probes: int = 100,
    seed: int = 0,
    batch: int = 25,
) -> Score:
    """Estimates the score by Gaussian probes (equations 10 to 12).

    S = E[z^T Delta Sigma z] / sqrt(E|Delta z|^2 E|Sigma z|^2), z ~ N(0, I). Its standard error is that of the ratio,
    linearised at the means (the delta method).

    Args:
        linear_map: the linear map of the layer.
        change: W(t) - W(0).
        reference_change: W*(t) - W(0), in the same shape.
        input_shape: shape of the layer's input, without the batch axis.
        probes: number of draws of z, at least 2.
        seed: seed of the draws.
        batch: number of probes computed at a time.

    Raises:
        ValueError: if the shapes differ, or there are fewer than two probes.
    """
    change, reference_change = np.asarray(change), np.asarray(reference_change)
    if change.shape != reference_change.shape:
        raise ValueError(
            f"`change` and `reference_change` must have the same shape. Received {change.shape} and "
            f"{reference_change.shape}. Example: W(t) - W(0) of one layer, twice."
        )
    if probes < 2:
        raise ValueError(f"`probes` must be at least 2. Received {probes!r}. Example: probes=100.")
    generator = np.random.default_rng(seed)
    terms = []
    for first in range(0, probes, batch):
        z = generator.normal(size=(min(batch, probes - first), *input_shape)).astype(change.dtype)
        ours, theirs = (_correlated(linear_map, kernel, z) for kernel in (change, reference_change))
        terms.append(np.stack([(ours * theirs).sum(axis=1), (ours**2).sum(axis=1), (theirs**2).sum(axis=1)]))
    return _ratio(np.concatenate(terms, axis=1))


def permuted_change(weights: Array, initial: Array, seed: int = 0) -> Array:
    """Returns the weight change of the control in Figure 8: the entries of W(t) in random order, minus W(0).

    As in the published code, W(t) is permuted before W(0) is subtracted.

    Args:
        weights: W(t).
        initial: W(0), in the same shape.
        seed: seed of the permutation of all entries.
    """
    weights = np.asarray(weights)
    return np.random.default_rng(seed).permutation(weights.ravel()).reshape(weights.shape) - initial


def _correlated(linear_map: LinearMap, kernel: Array, z: Array) -> Array:
    """Returns A^T A z, `(probes, inputs)`."""
    z, kernel = _tensor(z), _tensor(kernel)
    return np.asarray(linear_map.reconstruct(linear_map.project(z, kernel), kernel, like=z)).reshape(z.shape[0], -1)


def _ratio(terms: Array) -> Score:
    """Returns mean(a) / sqrt(mean(b) mean(c)) and its standard error, for the terms (a, b, c) `(3, probes)`."""
    terms = terms.astype(np.float64)
    cross, ours, theirs = terms.mean(axis=1)
    if not ours * theirs > 0:
        return Score(float("nan"), float("nan"))
    value = cross / np.sqrt(ours * theirs)
    slopes = np.array([1.0 / np.sqrt(ours * theirs), -0.5 * value / ours, -0.5 * value / theirs])
    deviations = slopes @ (terms - terms.mean(axis=1, keepdims=True))
    return Score(float(value), float(deviations.std(ddof=1) / np.sqrt(terms.shape[1])))


def _tensor(array: Array) -> tf.Tensor:
    return tf.convert_to_tensor(array)
