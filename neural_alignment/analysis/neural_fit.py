"""Predicting neural responses from a layer's features (Kunin et al. 2020, Figure 6 and Appendix B.5).

A partial least squares (PLS) regression with 25 components predicts the responses of all units of an area from the
features. It is fitted to 75 % of the images of each category and tested on the rest. Each unit is scored by the Pearson
correlation over test images. The results are the median over units and the standard error of the mean. If images were
shown repeatedly, the correlations are also corrected for the noise of the responses.

Details that the paper does not state follow Brain-Score (Schrimpf et al. 2018), the public implementation of the
procedure: features and responses are not standardised (PLS centres them), and one regression serves all units of an
area.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sklearn.cross_decomposition import PLSRegression

Array = np.ndarray

COMPONENTS = 25
"""Number of components of the regression (Figure 6)."""

TRAIN_FRACTION = 0.75
"""Fraction of the images of each category to which the regression is fitted (Appendix B.5)."""

BLOCK_BYTES = 2**27
"""Maximum size of the block of features that is in memory as float64 at a time."""


class Split(NamedTuple):
    """The split of the images into training and test images.

    Attributes:
        train: indices of the training images, ascending.
        test: indices of the test images, ascending.
    """

    train: Array
    test: Array


def split_by_category(categories: Array, train_fraction: float = TRAIN_FRACTION, seed: int = 0) -> Split:
    """Splits the images of each category at random, so that both parts contain every category.

    Args:
        categories: `(images,)`, of any sortable type.
        train_fraction: fraction of each category to fit, between 0 and 1; rounded to whole images.
        seed: seed of the split.

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
            raise ValueError(
                f"`categories` must have two or more images each. Received one image of {str(name)!r}. "
                "Example: ['a', 'a', 'b', 'b']."
            )
        count = min(max(round(train_fraction * len(images)), 1), len(images) - 1)
        train.append(images[:count])
    chosen = np.zeros(len(numbers), bool)
    chosen[np.concatenate(train)] = True
    return Split(np.flatnonzero(chosen), np.flatnonzero(~chosen))


class Predictors(NamedTuple):
    """Features in the form used by the regression.

    Attributes:
        train: `(train images, dimensions)` float64, centred.
        test: `(test images, dimensions)`, in the same coordinates.
    """

    train: Array
    test: Array


def predictors(features: Array, split: Split) -> Predictors:
    """Reduces features to at most as many dimensions as there are training images, without approximation.

    PLS depends on the features only through their inner products, so a rotation of feature space does not change its
    predictions. If there are more features than images, the centred features are expressed in a basis of the space that
    they span: U S of their singular value decomposition, from the matrix of inner products. This matrix is summed
    over blocks of features. Besides `features`, which may be a memory-mapped file, the memory holds only a few matrices
    of images times images (210 MB each for 5,120 images), for a layer of any size.

    Args:
        features: `(images, features)`, any real dtype.
        split: the training and test images.

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
            raise ValueError("`features` must be finite. Received NaN or infinity. Example: np.nan_to_num(x).")
        part = part - part[split.train].mean(axis=0)
        if narrow and block >= count:
            return Predictors(part[split.train], part[split.test])
        products += part @ part[split.train].T
    squares, basis = np.linalg.eigh(products[split.train])
    # Centring and repeated images reduce the rank. The remaining directions are rounding errors.
    kept = squares > squares[-1] * len(squares) * np.finfo(np.float64).eps
    basis = basis[:, kept] / np.sqrt(squares[kept])
    return Predictors(products[split.train] @ basis, products[split.test] @ basis)


def predict(predictors: Predictors, responses: Array, components: int = COMPONENTS) -> Array:
    """Fits the regression to the training images and predicts the responses to the test images.

    Args:
        predictors: the features.
        responses: `(train images, units)`.
        components: number of components, reduced to the number of dimensions if the features have fewer.

    Returns:
        `(test images, units)`.

    Raises:
        ValueError: if there are not more training images than components.
    """
    images, dimensions = predictors.train.shape
    if not 1 <= components < images:
        raise ValueError(
            f"`components` must be at least 1 and less than the number of training images, {images}. Received "
            f"{components!r}. Example: components=25."
        )
    if dimensions == 0 or not np.ptp(responses, axis=0).any():
        # Without variation in the features or the responses, the prediction is the mean.
        return np.tile(responses.mean(axis=0), (len(predictors.test), 1))
    regression = PLSRegression(n_components=min(components, dimensions), scale=False)
    return regression.fit(predictors.train, responses).predict(predictors.test)


def pearson(first: Array, second: Array) -> Array:
    """Returns the correlation of corresponding columns, `(units,)`; NaN for a column that does not vary.

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
    """Returns the split-half reliability of each unit's mean over repeats, with the Spearman-Brown correction.

    r_h is the correlation over images between the means of two random halves of the repeats, averaged over `splits`
    random divisions. The reliability of the mean over k times as many repeats as in one half is (Spearman 1910;
    Brown 1910)

        k r_h / (1 + (k - 1) r_h)

    k is 2 for an even number of repeats. For an odd number, each division leaves out one random repeat.

    Args:
        repeats: `(images, units, repeats)`; NaN for missing repeats.
        splits: number of random divisions.
        seed: seed of the divisions.

    Returns:
        An estimate `(units,)`, which may be negative; NaN if a unit's halves do not vary.

    Raises:
        ValueError: if an image was shown fewer than two times.
    """
    present = ~np.isnan(repeats)
    shown = present.sum(axis=-1)
    if shown.min(initial=2) < 2:
        image, unit = np.argwhere(shown < 2)[0]
        raise ValueError(
            f"`repeats` must hold two or more repeats of every image and unit. Received {shown[image, unit]} of "
            f"image {image}, unit {unit}. Example: an array (images, units, 10)."
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

    The correlation of a noiseless prediction with the mean response is its correlation with the noiseless response
    times the square root of the reliability. Noise in the responses used for fitting makes the prediction itself worse
    and is not corrected.

    Args:
        correlations: correlations of predictions with mean responses, `(units,)`.
        reliabilities: `reliability` on the same images, `(units,)`.

    Returns:
        `(units,)`; above 1 if the reliability is underestimated by chance, NaN if it is not positive.
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
    """The fit of one layer to the units of one area.

    Attributes:
        correlations: correlations over test images, `(units,)`; NaN for a unit whose response or prediction does not
            vary.
        corrected: the correlations corrected for noise; None without repeats.
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
    """Returns the median of the finite values, or NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def standard_error(values: Array) -> float:
    """Returns the standard error of the mean of the finite values, or NaN if there are fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1) / np.sqrt(finite.size)) if finite.size > 1 else float("nan")


def fit(
    features: Array, responses: Array, areas: Array, split: Split, components: int = COMPONENTS, seed: int = 0
) -> dict[str, Fit]:
    """Fits one layer to every area.

    Args:
        features: `(images, features)`, a memory-mapped file or an array; see `predictors`.
        responses: `(images, units)`, or `(images, units, repeats)` with NaN for missing repeats. The mean over repeats
            is predicted.
        areas: the area of each unit, `(units,)`.
        split: the training and test images.
        components: number of components of the regression.
        seed: seed of the random halves of the repeats.

    Returns:
        A mapping from area to fit. The areas are ordered by their first unit.

    Raises:
        ValueError: if the shapes disagree, or if there are too few images for the components.
    """
    areas = np.asarray(areas)
    if features.ndim != 2 or len(features) != len(responses) or np.shape(responses)[1] != len(areas):
        raise ValueError(
            "`features`, `responses` and `areas` must agree in images and units. Received the shapes "
            f"{features.shape}, {np.shape(responses)} and {areas.shape}. Example: (100, 512), (100, 20) and (20,)."
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
    """Returns the layer with the highest median correlation for each area.

    As usual in this field, the layer is chosen by the same test images on which its correlation is reported. With many
    similar layers the reported value is therefore slightly too high, equally for all networks with the same number of
    layers.

    Args:
        fits: a mapping from layer to area to fit. Of equally good layers the first is chosen.
    """
    areas = dict.fromkeys(area for by_area in fits.values() for area in by_area)
    return {area: max(fits, key=lambda layer: np.nan_to_num(fits[layer][area].median, nan=-2.0)) for area in areas}
