"""Reads neural recordings and the images shown: .npz or HDF5 files (.h5, .hdf5) on any file system of TensorFlow.

| array | shape | type |
|---|---|---|
| `responses` | `(images, units)`, or `(images, units, repeats)` with NaN where a repeat is missing | real numbers |
| `categories` | `(images,)` | integers or strings |
| `areas` | `(units,)` | strings, such as "V4" and "IT" |
| `images` | `(images, height, width, channels)`, in the order of the responses | uint8 or float |

The images may be in a separate file.

For safety, arrays of Python objects and HDF5 links are rejected.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np
import tensorflow as tf

from neural_alignment.errors import DataError, nearest
from neural_alignment.paths import is_local, problem_of_file

HOW_TO_OBTAIN = (
    "recordings are not part of this package; docs/neural_fit.md explains how to make a file of the public recordings "
    "of Majaj et al. 2015 (Brain-Score's MajajHong2015.public)"
)

_HDF5_ENDINGS = (".h5", ".hdf5")


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
    with _arrays(path) as arrays:
        responses, categories, areas = (_read(path, arrays, name) for name in Recordings._fields)
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
    with _arrays(path) as arrays:
        images = _read(path, arrays, "images")
    if images.ndim != 4 or 0 in images.shape or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise DataError(
            f"{path}: `images` must be (images, height, width, channels), uint8 or float; found shape "
            f"{images.shape} of {images.dtype}"
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError(f"{path}: `images` must be finite; found NaN or infinity")
    return images


@contextlib.contextmanager
def _arrays(path: str) -> Iterator[Any]:
    """Opens the file as a mapping of names to arrays."""
    path = str(path)
    ending = os.path.splitext(path)[1].lower()
    if ending != ".npz" and ending not in _HDF5_ENDINGS:
        raise DataError(f"{path}: must be a .npz, .h5 or .hdf5 file; {HOW_TO_OBTAIN}")
    problem = problem_of_file(path) if is_local(path) else None if tf.io.gfile.exists(path) else "no such file"
    if problem:
        raise DataError(f"{path}: {problem}; {HOW_TO_OBTAIN}")
    try:
        with _local(path) as local, contextlib.ExitStack() as stack:
            if ending == ".npz":  # By its name, `np.load` would leave a damaged file open.
                opened = np.load(stack.enter_context(open(local, "rb")), allow_pickle=False)
            else:
                opened = h5py.File(local, "r")
            if not hasattr(opened, "keys"):  # A single array with the wrong file extension.
                raise DataError(f"{path}: is not a .npz file of named arrays")
            with opened:
                yield opened
    except DataError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        tf.errors.OpError,
    ) as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: is damaged, or not a {ending} file: {line}") from None


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
    """Yields a path on this machine's file system, because HDF5 cannot read from others."""
    if "://" not in path:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(path))
        tf.io.gfile.copy(path, copy)
        yield copy


def _read(path: str, arrays: Any, name: str) -> np.ndarray:
    """Returns an array of numbers or strings."""
    if name not in arrays:
        found = ", ".join(sorted(arrays)[:10]) or "nothing"
        raise DataError(f"{path}: has no array `{name}`; found {found}{nearest(name, arrays)}")
    array = _read_hdf5(path, arrays, name) if isinstance(arrays, h5py.File) else _read_npz(path, arrays, name)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    return array


def _read_npz(path: str, arrays: Any, name: str) -> np.ndarray:
    try:
        return arrays[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(f"{path}: `{name}` holds Python objects; allowed: numbers and strings") from None


def _read_hdf5(path: str, arrays: h5py.File, name: str) -> np.ndarray:
    # A link, or a data set whose values are stored elsewhere, would read a file other than the one named by the user.
    is_own = isinstance(arrays.get(name, getlink=True), h5py.HardLink) and isinstance(arrays[name], h5py.Dataset)
    if not is_own or arrays[name].is_virtual or arrays[name].external:
        raise DataError(f"{path}: `{name}` must be a data set whose values are in this file; found a link or a group")
    dataset = arrays[name]
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return np.asarray(dataset.asstr()[...], str)
    if dataset.dtype.kind == "O":
        raise DataError(f"{path}: `{name}` holds HDF5 objects; allowed: numbers and strings")
    return dataset[...]


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
