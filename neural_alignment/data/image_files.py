"""Folders of image files, with one subfolder per class: their classes and files, and reading them as records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from neural_alignment.data.damage import DamagedRecord, DamageList
from neural_alignment.data.index import first_line
from neural_alignment.data.order import without_autograph
from neural_alignment.data.records import Records, fault_of_image
from neural_alignment.errors import DataError, DataUnavailable
from neural_alignment.paths import is_local, problem_of_file

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
"""Endings of image files, in lower case. Other files are ignored."""


class LabelledFiles(NamedTuple):
    """The image files of a split.

    Attributes:
        classes: the names of the classes, sorted; the labels are their indices.
        paths: `(files,)` strings, sorted by class and name.
        labels: `(files,)` integers.
        folder: the folder that contains the folders of the classes.
    """

    classes: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    folder: str

    def part(self, numbers: np.ndarray) -> LabelledFiles:
        """Returns the files with some numbers, in ascending order."""
        chosen = np.sort(numbers)
        return self._replace(paths=self.paths[chosen], labels=self.labels[chosen])


def labelled_files(key: str, folder: str) -> LabelledFiles:
    """Finds the image files in a folder with one subfolder per class.

    Hidden files and files with other endings than `ENDINGS` are ignored, and so are files outside of the class folders.
    A class folder may be a link and may have subfolders.

    Args:
        key: key of the folder in a configuration, for messages.
        folder: the folder, local or remote.

    Raises:
        DataError: if the folder has no class folders, or a class folder has no images.
        DataUnavailable: if a folder is missing or cannot be read.
    """
    try:
        if not tf.io.gfile.isdir(folder):
            state = "is not a folder" if tf.io.gfile.exists(folder) else "does not exist"
            raise DataUnavailable(f"{key}: must be a folder with one folder per class; found {folder!r}, which {state}")
        classes, files = _content(folder)
        paths = [sorted(_image_files(os.path.join(folder, name))) for name in classes]
    except (OSError, tf.errors.OpError) as error:
        raise DataUnavailable(f"{key}: cannot be read; found {folder!r}: {first_line(error)}") from error
    if not classes:
        images = sum(name.lower().endswith(ENDINGS) for name in files)
        raise DataError(f"{key}: must have one folder per class; found {folder!r} with {images} images and no folder")
    for name, found in zip(classes, paths, strict=True):
        if not found:
            raise DataError(
                f"{key}: each class folder must have images ({', '.join(ENDINGS)}); found none in "
                f"{os.path.join(folder, name)!r}"
            )
    _check_webp(key, paths)
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in paths])
    return LabelledFiles(tuple(classes), np.array([path for each in paths for path in each], object), labels, folder)


def _check_webp(key: str, paths: Sequence[Sequence[str]]) -> None:
    """Raises `DataError` if there are WebP files that this TensorFlow cannot decode."""
    webp = [path for each in paths for path in each if path.lower().endswith(".webp")]
    if webp and not hasattr(tf.io, "decode_webp"):
        raise DataError(f"{key}: WebP files need TensorFlow 2.21 or later; found {tf.__version__} and {webp[0]!r}")


def check_several_classes(key: str, files: LabelledFiles) -> None:
    """Raises `DataError` if there is only one class."""
    if len(files.classes) == 1:
        raise DataError(f"{key}: must have folders of two or more classes; found only {files.classes[0]!r}")


def check_same_classes(key: str, files: LabelledFiles, expected: LabelledFiles) -> None:
    """Raises `DataError` unless two splits have the same classes.

    Args:
        key: key of the folder of `files` in a configuration.
        files: the files of one split.
        expected: the files of the training split.
    """
    for names, others, state in (
        (expected.classes, files.classes, "no folder"),
        (files.classes, expected.classes, "also a folder"),
    ):
        known = set(others)
        different = [name for name in names if name not in known]
        if different:
            more = f" ({len(different) - 1} more)" if len(different) > 1 else ""
            raise DataError(
                f"{key}: must have a folder for each of the {len(expected.classes)} classes of the training data and "
                f"no other; found {state} {different[0]!r}{more}"
            )


def _image_files(folder: str) -> Iterator[str]:
    """Yields the paths of the images in a folder and its subfolders."""
    folders, files = _content(folder)
    for name in files:
        path = os.path.join(folder, name)
        if name.lower().endswith(ENDINGS):
            yield path
    for name in folders:
        path = os.path.join(folder, name)
        if not (is_local(path) and os.path.islink(path)):  # A link may lead back to a folder above.
            yield from _image_files(path)


def _content(folder: str) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the files in a folder, without hidden ones, sorted."""
    if is_local(folder):
        with os.scandir(folder) as entries:
            kinds = {entry.name: _is_folder(entry) for entry in entries}
    else:
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
        # A request for each image would take minutes.
        kinds = {
            name: not name.lower().endswith(ENDINGS) and tf.io.gfile.isdir(os.path.join(folder, name)) for name in names
        }
    visible = sorted(name for name in kinds if name and not name.startswith("."))
    return [name for name in visible if kinds[name]], [name for name in visible if not kinds[name]]


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder. Raises `OSError` if reading it could block forever, as for a FIFO."""
    if entry.is_dir():
        return True
    if not entry.is_file() and entry.name.lower().endswith(ENDINGS):
        problem = problem_of_file(entry.path)
        if problem != "no such file":  # A broken link is a damaged record.
            raise OSError(f"{entry.path} {problem}")
    return False


class ImageFiles(Records):
    """The examples of one split, stored in one file per image. A record is one file.

    The records that pass through the pipeline are the numbers of the files. A file is read when it is decoded, so
    several workers read only their own files, and shuffling needs no memory for images.

    Args:
        name: name of the split in error messages.
        files: the files and their labels.
        damage: the list to which damaged files are added, with the limit on their number.

    Raises:
        DataError: if the first files are not images.
    """

    def __init__(self, name: str, files: LabelledFiles, damage: DamageList):
        super().__init__(name, len(files.classes), damage)
        self._paths = files.paths
        damage.add_files(name, files.paths, files.folder)
        self.found = self.examples = len(files.paths)
        self.blocks = np.stack([np.arange(self.found), np.ones(self.found, np.int64)], axis=1)
        with tf.device("CPU:0"):  # Created eagerly, so that graphs reference them instead of copying them.
            self._tensors = (
                tf.constant([os.fsencode(path) for path in files.paths]),
                tf.constant(files.labels, tf.int32),
            )
        self._check_first()

    def read(self, runs: tf.data.Dataset) -> tf.data.Dataset:  # noqa: D102 (inherited)
        return runs.map(
            without_autograph(lambda first, count: tf.strings.as_string(tf.range(first, first + count)))
        ).unbatch()

    def read_one(self, record: tf.Tensor) -> tf.Tensor:  # noqa: D102 (inherited)
        return tf.strings.as_string(record)

    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:  # noqa: D102 (inherited)
        paths, labels = self._tensors
        number = tf.strings.to_number(record, tf.int64)
        return tf.io.read_file(paths[number]), labels[number]

    def fault(self, record: int, decode: Callable[[tf.Tensor], tf.Tensor] | None = None) -> DamagedRecord | None:  # noqa: D102
        path = self.path(record)
        try:
            if problem := problem_of_file(path):
                raise OSError(problem)
            encoded = tf.io.read_file(os.fsencode(path))
        except (OSError, tf.errors.OpError) as error:
            reason = f"{self.name}: {path} cannot be read: {first_line(error)}"
            return DamagedRecord(path, 0, reason)
        fault = fault_of_image(encoded, decode)
        return fault and DamagedRecord(path, 0, f"{self.name}: {fault.replace('{where}', path)}")

    def path(self, record: int) -> str:  # noqa: D102 (inherited)
        return str(self._paths[record])
