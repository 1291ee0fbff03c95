"""Reads arrays from .npz and HDF5 files (.h5, .hdf5) on any file system of TensorFlow.

For safety, arrays of Python objects and HDF5 links are rejected.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from neural_alignment.errors import DataError, DataUnavailable, nearest, one_line
from neural_alignment.paths import problem_of_any_file

NPZ = (".npz",)
HDF5 = (".h5", ".hdf5")


@contextlib.contextmanager
def opened(path: str, endings: Sequence[str] = (*NPZ, *HDF5), remedy: str = "") -> Iterator[Any]:
    """Opens a file as a mapping of names to arrays.

    Args:
        path: the file.
        endings: allowed endings of its name.
        remedy: text for the message if there is no such file.

    Raises:
        DataError: if the file is missing or damaged, or becomes unreadable within the context; the message is one line.
    """
    ending = os.path.splitext(path)[1].lower()
    remedy = remedy and f"; {remedy}"
    if ending not in endings:
        *others, last = endings
        named = f"{', '.join(others)} or {last}" if others else last
        raise DataError(f"{path}: must be a {named} file{remedy}")
    if problem := problem_of_any_file(path):
        raise DataUnavailable(f"{path}: {problem}{remedy}")
    try:
        with _local(path) as local, contextlib.ExitStack() as stack:
            if ending in NPZ:  # By its name, `np.load` would leave a damaged file open.
                arrays = np.load(stack.enter_context(open(local, "rb")), allow_pickle=False)
            else:
                arrays = h5py.File(local, "r")
            if not hasattr(arrays, "keys"):  # A single array with the wrong file extension.
                raise DataError(f"{path}: is not a .npz file of named arrays")
            with arrays:
                yield arrays
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
        line = one_line(error)
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


def read(path: str, arrays: Any, name: str) -> np.ndarray:
    """Returns an array of numbers or strings.

    Args:
        path: the file, for messages.
        arrays: the mapping that `opened` yields.
        name: name of the array.

    Raises:
        DataError: if there is no such array, or it holds objects; the message is one line.
    """
    if name not in arrays:
        found = ", ".join(sorted(arrays)[:10]) or "nothing"
        raise DataError(f"{path}: has no array `{name}`; found {found}{nearest(name, arrays)}")
    try:
        array = _read_hdf5(path, arrays, name) if isinstance(arrays, h5py.File) else _read_npz(path, arrays, name)
    except MemoryError:
        raise DataError(f"{path}: `{name}` does not fit into memory") from None
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
