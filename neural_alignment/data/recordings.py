"""Reads neural recordings and the images shown: .npz or HDF5 files (.h5, .hdf5) on any file system of TensorFlow.

| array | shape | type |
|---|---|---|
| `responses` | `(images, units)`, or `(images, units, repeats)` with NaN where a repeat is missing | real numbers |
| `categories` | `(images,)` | integers or strings |
| `areas` | `(units,)` | strings, such as "V4" and "IT" |
| `images` | `(images, height, width, channels)`, in the order of the responses | uint8 or float |

The images may be in a separate file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neural_alignment.data import array_files
from neural_alignment.errors import DataError

HOW_TO_OBTAIN = (
    "recordings are not part of this package; docs/neural_fit.md explains how to make a file of the public recordings "
    "of Majaj et al. 2015 (Brain-Score's MajajHong2015.public)"
)


class Recordings(NamedTuple):
    """Responses of units to images.

    Attributes:
        responses: `(images, units)`, or `(images, units, repeats)` with NaN where a repeat is missing.
        categories: `(images,)` integers or strings.
        areas: `(units,)` strings.
    """

    responses: np.ndarray
    categories: np.ndarray
    areas: np.ndarray


def load_recordings(path: str) -> Recordings:
    """Loads responses with their categories and areas.

    Args:
        path: a file with the arrays listed at the top of this module.

    Raises:
        DataError: if the file is missing, damaged, or has wrong contents. The message is one line.
    """
    with array_files.opened(str(path), remedy=HOW_TO_OBTAIN) as arrays:
        responses, categories, areas = (array_files.read(str(path), arrays, name) for name in Recordings._fields)
    _check_responses(path, responses)
    images, units = responses.shape[:2]
    categories = _labels(path, "categories", categories, images, "image", integers=True)
    areas = _labels(path, "areas", areas, units, "unit", integers=False)
    names, counts = np.unique(categories, return_counts=True)
    if counts.min() < 2:
        raise DataError(
            f"{path}: `categories` must have two or more images each, for fitting and for testing; found one of "
            f"{str(names[counts.argmin()])!r}"
        )
    return Recordings(responses, categories, areas)


def load_images(path: str) -> np.ndarray:
    """Loads the images of a file.

    Args:
        path: a file with the array `images`, as described at the top of this module.

    Returns:
        `(images, height, width, channels)`, uint8 or float.

    Raises:
        DataError: if the file is missing, damaged, or has wrong contents. The message is one line.
    """
    with array_files.opened(str(path), remedy=HOW_TO_OBTAIN) as arrays:
        images = array_files.read(str(path), arrays, "images")
    if images.ndim != 4 or 0 in images.shape or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise DataError(
            f"{path}: `images` must be (images, height, width, channels), uint8 or float; found shape "
            f"{images.shape} of {images.dtype}"
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError(f"{path}: `images` must be finite; found NaN or infinity")
    return images


def _check_responses(path: str, responses: np.ndarray) -> None:
    """Raises `DataError` unless the responses are numbers, with at least two repeats each if there are repeats."""
    if responses.ndim not in (2, 3) or 0 in responses.shape or responses.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: `responses` must be real numbers (images, units) or (images, units, repeats); found shape "
            f"{responses.shape} of {responses.dtype}"
        )
    if responses.ndim == 2:
        wrong, allowed = ~np.isfinite(responses), "a finite number"
    else:
        wrong, allowed = np.isinf(responses).any(axis=2), "finite, or NaN for a missing repeat"
    if wrong.any():
        image, unit = np.argwhere(wrong)[0]
        raise DataError(f"{path}: `responses` of image {image}, unit {unit} must be {allowed}; found NaN or infinity")
    if responses.ndim == 3:
        shown = (~np.isnan(responses)).sum(axis=2)
        if shown.min() < 2:
            image, unit = np.argwhere(shown < 2)[0]
            raise DataError(
                f"{path}: `responses` must hold two or more repeats of each image and unit; found "
                f"{shown[image, unit]} of image {image}, unit {unit}; without repeats, use means of shape "
                "(images, units)"
            )


def _labels(path: str, name: str, labels: np.ndarray, count: int, of: str, integers: bool) -> np.ndarray:
    """Returns one label per image or unit, or raises a `DataError`."""
    if labels.shape != (count,) or labels.dtype.kind not in ("iuU" if integers else "U"):
        kinds = "integers or strings" if integers else "strings"
        raise DataError(
            f"{path}: `{name}` must be {kinds}, one per {of} of `responses`, ({count},); found shape {labels.shape} of "
            f"{labels.dtype}"
        )
    return labels
