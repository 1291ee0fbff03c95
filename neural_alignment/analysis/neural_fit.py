"""How well a layer's features predict neural responses (Kunin et al. 2020, Figure 6 and Appendix B.5).

A partial least squares regression with 25 components from features to the responses of all units of an area, fitted to
75 % of the images of each category and tested on the rest: the Pearson correlation over test images of each unit, its
median over units, and its standard error of the mean over units. With repeats, correlations are also corrected for the
noise of the responses.

What the paper leaves open is as in Brain-Score (Schrimpf et al. 2018), the public implementation of the procedure:
neither features nor responses are standardised (PLS centres them), and one regression serves all units of an area.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sklearn.cross_decomposition import PLSRegression

Array = np.ndarray

COMPONENTS = 25
"""Components of the regression (Figure 6)."""

TRAIN_FRACTION = 0.75
"""Part of the images of each category that the regression is fitted to (Appendix B.5)."""

BLOCK_BYTES = 2**27
"""How much of the features is held in float64 at a time."""


class Split(NamedTuple):
    """Which images are for what.

    Attributes:
        train: numbers of the images to fit, ascending.
        test: numbers of the others, ascending.
    """

    train: Array
    test: Array


def split_by_category(categories: Array, train_fraction: float = TRAIN_FRACTION, seed: int = 0) -> Split:
    """Splits the images of each category at random, so that every category stands in both parts.

    Args:
        categories: `(images,)`, of any type that can be sorted.
        train_fraction: part of each category to fit, between 0 and 1; rounded to whole images.
        seed: of the choice.

    Raises:
        ValueError: if a category has a single image, or the fraction is not between 0 and 1.
    """
    if not 0 < train_fraction < 1:
        raise ValueError(f"`train_fraction` must be between 0 and 1. Received {train_fraction!r}. Example: 0.75.")
    rng = np.random.default_rng(seed)
    train = []
    names, numbers = np.unique(np.asarray(categories), return_inverse=True)
    for number, name in enumerate(names):
        images = rng.permutation(np.flatnonzero(numbers == number))
        if len(images) < 2:
            raise ValueError(f"`categories` must have two or more images each. Received one image of {str(name)!r}.")
        count = min(max(round(train_fraction * len(images)), 1), len(images) - 1)
        train.append(images[:count])
    chosen = np.zeros(len(numbers), bool)
    chosen[np.concatenate(train)] = True
    return Split(np.flatnonzero(chosen), np.flatnonzero(~chosen))


class Predictors(NamedTuple):
    """Features as the regression takes them.

    Attributes:
        train: `(train images, dimensions)` float64, centred.
        test: `(test images, dimensions)`, in the same coordinates.
    """

    train: Array
    test: Array


def predictors(features: Array, split: Split) -> Predictors:
    """Turns features into at most as many dimensions as there are images to fit; exact, not a sample or a sketch.

    PLS sees the features through their inner products alone: a rotation of feature space changes no prediction. Where
    there are more features than images the centred features are therefore expressed in the basis of their own span,
    U S of their singular value decomposition, which is found from the matrix of inner products. That is summed up over
    blocks of features, so the memory is that of `features`, which may be a memory-mapped file, and a few matrices of
    images times images (5,120 images: 210 MB each), whatever the layer's size.

    Args:
        features: `(images, features)`, any real dtype.
        split: which images are for what.

    Raises:
        ValueError: if a feature is not finite.
    """
    images, count = features.shape
    block = max(1, BLOCK_BYTES // (8 * images))
    narrow = count <= len(split.train)
    products = np.zeros((images, len(split.train)))
    for begin in range(0, count, block):
        part = np.asarray(features[:, begin : begin + block], np.float64)
        if not np.isfinite(part).all():
            raise ValueError("`features` must be finite. Received NaN or infinity.")
        part = part - part[split.train].mean(axis=0)
        if narrow and block >= count:
            return Predictors(part[split.train], part[split.test])
        products += part @ part[split.train].T
    squares, basis = np.linalg.eigh(products[split.train])
    # Centring takes one dimension, and copies of images others; what is left of those is rounding.
    kept = squares > squares[-1] * len(squares) * np.finfo(np.float64).eps
    basis = basis[:, kept] / np.sqrt(squares[kept])
    return Predictors(products[split.train] @ basis, products[split.test] @ basis)


def predict(predictors: Predictors, responses: Array, components: int = COMPONENTS) -> Array:
    """Fits the responses to the training images and predicts those to the test images.

    Args:
        predictors: the features.
        responses: `(train images, units)`.
        components: components of the regression; all there are where the features have fewer dimensions.

    Returns:
        `(test images, units)`.

    Raises:
        ValueError: if there are not more training images than components.
    """
    images, dimensions = predictors.train.shape
    if not 1 <= components < images:
        raise ValueError(
            f"`components` must be at least 1 and less than the number of training images, {images}. Received "
            f"{components!r}."
        )
    if dimensions == 0 or not np.ptp(responses, axis=0).any():
        # Features that are the same for all images predict the mean, as does what was fitted to no variation.
        return np.tile(responses.mean(axis=0), (len(predictors.test), 1))
    regression = PLSRegression(n_components=min(components, dimensions), scale=False)
    return regression.fit(predictors.train, responses).predict(predictors.test)


def pearson(first: Array, second: Array) -> Array:
    """Returns the correlation of each column over the rows, `(units,)`; NaN where a column does not vary.

    Args:
        first: `(images, units)`.
        second: the same shape.
    """
    first, second = (np.asarray(each, np.float64) for each in (first, second))
    varies = (np.ptp(first, axis=0) > 0) & (np.ptp(second, axis=0) > 0)
    first, second = (each - each.mean(axis=0) for each in (first, second))
    norms = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    return np.divide((first * second).sum(axis=0), norms, out=np.full(len(norms), np.nan), where=varies & (norms > 0))


def reliability(repeats: Array, splits: int = 20, seed: int = 0) -> Array:
    """Returns the reliability of each unit's mean over repeats: split halves, Spearman-Brown.

    r_h is the correlation over images between the means of two random halves of the repeats, averaged over `splits`
    divisions. The reliability of the mean over k times as many repeats as a half has is (Spearman 1910; Brown 1910)

        k r_h / (1 + (k - 1) r_h)

    with k = 2 where the number of repeats is even; of an odd number one is left out of the halves, another at each
    division.

    Args:
        repeats: `(images, units, repeats)`; NaN where an image was shown to a unit less often.
        splits: number of random divisions.
        seed: of the divisions.

    Returns:
        `(units,)`; an estimate, which may be negative; NaN where a unit's halves do not vary.

    Raises:
        ValueError: if an image was shown fewer than two times.
    """
    present = ~np.isnan(repeats)
    shown = present.sum(axis=-1)
    if shown.min(initial=2) < 2:
        image, unit = np.argwhere(shown < 2)[0]
        raise ValueError(
            f"`repeats` must hold two or more of every image and unit. Received {shown[image, unit]} of image {image}, "
            f"unit {unit}."
        )
    rng = np.random.default_rng(seed)
    halves = shown // 2
    correlations = []
    for _ in range(splits):
        order = rng.permuted(np.tile(np.arange(repeats.shape[-1]), (len(repeats), 1)), axis=1)[:, np.newaxis]
        shuffled = np.take_along_axis(np.where(present, repeats, 0.0), order, axis=2)
        here = np.take_along_axis(present, order, axis=2)
        rank = np.cumsum(here, axis=2)
        first = here & (rank <= halves[..., np.newaxis])
        second = here & ~first & (rank <= 2 * halves[..., np.newaxis])
        correlations.append(pearson(*((shuffled * half).sum(axis=2) / halves for half in (first, second))))
    half = np.mean(correlations, axis=0)
    times = shown.mean(axis=0) / halves.mean(axis=0)
    return times * half / (1 + (times - 1) * half)


def correct_for_noise(correlations: Array, reliabilities: Array) -> Array:
    """Divides by the square root of the reliability: the correction for attenuation (Spearman 1904).

    A prediction that is no noise itself correlates with the mean response by its correlation with the noiseless
    response times that response's correlation with the mean, which is the root of the reliability. The noise in the
    responses that were fitted is not corrected for: it makes the prediction itself worse.

    Args:
        correlations: `(units,)`, of predictions with mean responses.
        reliabilities: `(units,)`, of `reliability` on the same images.

    Returns:
        `(units,)`; above 1 where the reliability is underestimated by chance, NaN where it is not positive.
    """
    positive = np.nan_to_num(reliabilities) > 0
    return np.divide(
        correlations,
        np.sqrt(np.where(positive, reliabilities, 1.0)),
        out=np.full(len(positive), np.nan),
        where=positive,
    )


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well one layer predicts the units of one area.

    Attributes:
        correlations: over test images, `(units,)`; NaN for a unit whose response or prediction does not vary there.
        corrected: the same, corrected for noise; None without repeats.
    """

    correlations: Array
    corrected: Array | None = None

    @property
    def units(self) -> int:
        """Number of units that have a correlation."""
        return int(np.isfinite(self.correlations).sum())

    @property
    def median(self) -> float:
        """Median correlation over units; the error bar of Figure 6 is `sem`."""
        return median(self.correlations)

    @property
    def sem(self) -> float:
        """Standard error of the mean of the correlations over units."""
        return standard_error(self.correlations)


def median(values: Array) -> float:
    """Returns the median of the finite values; NaN where there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def standard_error(values: Array) -> float:
    """Returns the standard error of the mean of the finite values; NaN for fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1) / np.sqrt(finite.size)) if finite.size > 1 else float("nan")


def fit(
    features: Array, responses: Array, areas: Array, split: Split, components: int = COMPONENTS, seed: int = 0
) -> dict[str, Fit]:
    """Fits one layer to every area.

    Args:
        features: `(images, features)`, a memory-mapped file or an array; see `predictors`.
        responses: `(images, units)`, or `(images, units, repeats)` with NaN where a repeat is missing; the mean over
            repeats is what is predicted.
        areas: `(units,)`, the area of each unit.
        split: which images are for what.
        components: components of the regression.
        seed: of the halves of the repeats.

    Returns:
        Area -> fit, in the order of the first unit of each.

    Raises:
        ValueError: if shapes disagree, or there are too few images for the components.
    """
    areas = np.asarray(areas)
    if features.ndim != 2 or len(features) != len(responses) or np.shape(responses)[1] != len(areas):
        raise ValueError(
            "`features`, `responses` and `areas` must agree in images and units. Received the shapes "
            f"{features.shape}, {np.shape(responses)} and {areas.shape}."
        )
    repeated = responses.ndim == 3
    means = np.nanmean(responses, axis=2) if repeated else np.asarray(responses, np.float64)
    reduced = predictors(features, split)
    fits = {}
    for area in dict.fromkeys(areas.tolist()):
        units = np.flatnonzero(areas == area)
        predictions = predict(reduced, means[np.ix_(split.train, units)], components)
        correlations = pearson(predictions, means[np.ix_(split.test, units)])
        corrected = None
        if repeated:
            corrected = correct_for_noise(correlations, reliability(responses[split.test][:, units], seed=seed))
        fits[str(area)] = Fit(correlations, corrected)
    return fits


def best_layers(fits: Mapping[str, Mapping[str, Fit]]) -> dict[str, str]:
    """Returns the layer of the highest median correlation for each area.

    It is chosen by the test images that it is reported on, as is the custom: with many layers that are about equal the
    best is a little too good, alike for every network of as many layers.

    Args:
        fits: layer -> area -> fit; the first of equal layers is chosen.
    """
    areas = dict.fromkeys(area for by_area in fits.values() for area in by_area)
    return {area: max(fits, key=lambda layer: np.nan_to_num(fits[layer][area].median, nan=-2.0)) for area in areas}
