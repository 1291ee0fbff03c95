"""The list of damaged records of a data set, and the limit on their number."""

from __future__ import annotations

import itertools
import logging
import posixpath
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from neural_alignment.errors import DataError, DataUnavailable

logger = logging.getLogger(__name__)

NO_STEP = -1
"""`DamagedRecord.step` of a record that was not found in a training batch."""


class DamagedRecord(NamedTuple):
    """A record that cannot be used.

    Attributes:
        path: path of its file when the record was found.
        record: index in the file, counted from 0.
        reason: the fault, in one line.
        step: first step of the run whose batch should contain the record; -1 if it was found while loading or in the
            validation data.
        misfit: whether the record is intact but does not fit the options of the source, such as a label out of range.
            Not stored by `DamageList.state`.
    """

    path: str
    record: int
    reason: str
    step: int = NO_STEP
    misfit: bool = False

    def error(self, message: str) -> DataError:
        """Returns an error about the record. Only data that cannot be read are unavailable, and not wrong."""
        return DataError(message) if self.misfit else DataUnavailable(message)


class _Split(NamedTuple):
    """The files of a split.

    Attributes:
        name: name of the split in the reasons of its damaged records.
        paths: paths of the files.
        root: folder below which the files keep their relative paths if they are moved; empty if only their names stay.
    """

    name: str
    paths: Sequence[str]
    root: str

    def relative(self, path: str) -> str:
        """Returns the part of a path that does not change if the files are moved."""
        return path.removeprefix(self.root).lstrip("/") if self.root else posixpath.basename(path)


class DamageList:
    """The damaged records of a data set. Each record is listed once, even if it is read repeatedly.

    This also holds for the records of a list from before the files were moved.

    Args:
        allowed: maximum number of damaged records.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self._records: dict[tuple[str, int], DamagedRecord] = {}  # by the present path of the file, and the number
        self._splits: list[_Split] = []
        self._mutex = threading.Lock()  # input pipelines add records from their own threads

    @property
    def records(self) -> list[DamagedRecord]:
        """The damaged records, sorted by file and index."""
        with self._mutex:
            return sorted(self._records.values())

    @property
    def exceeds_limit(self) -> bool:
        """Whether there are more damaged records than allowed."""
        return len(self._records) > self.allowed

    def add_files(self, name: str, paths: Sequence[str], root: str = "") -> None:
        """Adds the files of a split, among which `load` finds files that were moved.

        Args:
            name: name of the split in the reasons of its damaged records.
            paths: paths of the files.
            root: folder below which the files keep their relative paths. Default: only their names stay the same.
        """
        self._splits.append(_Split(name, paths, root))

    def include(self, other: DamageList) -> None:
        """Adds the records and the files of another list. From then on, both lists have the same ones.

        Raises:
            DataError: if there are more damaged records than allowed.
        """
        for damaged in other.records:
            self._add(damaged.path, damaged)
        self._splits += other._splits
        other._records, other._splits, other._mutex = self._records, self._splits, self._mutex
        if self.exceeds_limit:
            raise self.error()

    def add(self, damaged: DamagedRecord) -> bool:
        """Adds a record and returns whether it is new. A known record keeps its reason and the earliest step.

        A new record is logged if it is tolerated.
        """
        new = self._add(damaged.path, damaged)
        if new and not self.exceeds_limit:
            logger.warning("Skipped record %d of %s: %s", damaged.record, damaged.path, damaged.reason)
        return new

    def _add(self, path: str, damaged: DamagedRecord) -> bool:
        """Adds a record of the file that is at `path` now. Returns whether it is new."""
        key = path, damaged.record
        with self._mutex:
            new = key not in self._records
            known = self._records.get(key, damaged)
            self._records[key] = known._replace(step=min(known.step, damaged.step))
        return new

    def before(self, step: int) -> int:
        """Returns the number of records found in batches before a step. Prefetched later batches do not count."""
        return sum(damaged.step < step for damaged in self.records)

    def error(self, latest: DamagedRecord | None = None) -> DataError:
        """Returns the error to raise if there are more damaged records than allowed."""
        latest = latest or self.records[-1]
        if not self.allowed:
            return latest.error(latest.reason)
        return latest.error(
            f"{latest.reason}; this is more than `tolerate_corrupt` allows; found {len(self._records)} damaged "
            f"records; allowed: {self.allowed}"
        )

    def state(self) -> list[list[Any]]:
        """Returns the records as plain lists, for a JSON file."""
        return [[*damaged[:-1]] for damaged in self.records]

    def load(self, state: Iterable[Any]) -> None:
        """Adds the records of a list returned by `state`, also one from before the files were moved.

        Raises:
            DataError: if the list has the wrong form.
        """
        kinds, records = (str, int, str, int), []
        for entry in state if isinstance(state, (list, tuple)) else [state]:
            fits = isinstance(entry, (list, tuple)) and len(entry) == len(kinds)
            if not fits or any(type(value) is not kind for value, kind in zip(entry, kinds, strict=True)):
                raise DataError(
                    f"The list of damaged records is wrong; found {entry!r:.100}; "
                    "allowed: lists of path, record, reason and step"
                )
            records.append(DamagedRecord(*entry))
        present = self._present_files({posixpath.basename(damaged.path) for damaged in records})
        for damaged in records:
            self._add(_present_path(damaged, present), damaged)

    def _present_files(self, names: set[str]) -> list[tuple[str, _Split]]:
        """Returns path and split of the files with some names."""
        if not names:
            return []
        return [(path, split) for split in self._splits for path in split.paths if posixpath.basename(path) in names]


def _present_path(damaged: DamagedRecord, files: Sequence[tuple[str, _Split]]) -> str:
    """Returns the present path of the file of a record, or the one in the record if no file corresponds to it.

    Several files may have the same name. A file of the split that the reason names is preferred, then the one whose
    path agrees with the earlier path in most folders.
    """
    before = damaged.path.split("/")

    def agreement(file: tuple[str, _Split]) -> tuple[bool, int]:
        path, split = file
        pairs = zip(reversed(before), reversed(path.split("/")), strict=False)
        return split.name in damaged.reason, len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])

    fitting = [file for file in files if f"/{damaged.path}".endswith(f"/{file[1].relative(file[0])}")]
    if not fitting or any(path == damaged.path for path, _ in fitting):
        return damaged.path
    return max(fitting, key=agreement)[0]
