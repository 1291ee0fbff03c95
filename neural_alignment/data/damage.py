"""The list of damaged records of a data set, and the limit on their number."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from neural_alignment.errors import DataError, DataUnavailable

NO_STEP = -1
"""`DamagedRecord.step` of a record that was not found in a training batch."""


class DamagedRecord(NamedTuple):
    """A record that cannot be used.

    Attributes:
        path: path of its file.
        record: index in the file, counted from 0.
        reason: the fault, in one line.
        step: first step of the run whose batch should contain the record; -1 if it was found while loading or in the
            validation data.
    """

    path: str
    record: int
    reason: str
    step: int = NO_STEP


class DamageList:
    """The damaged records of a data set. Each record is listed once, even if it is read repeatedly.

    Args:
        allowed: maximum number of damaged records.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self._records: dict[tuple[str, int], DamagedRecord] = {}
        self._lock = threading.Lock()  # input pipelines add records from their own threads

    @property
    def records(self) -> list[DamagedRecord]:
        """The damaged records, sorted by file and index."""
        with self._lock:
            return sorted(self._records.values())

    @property
    def exceeds_limit(self) -> bool:
        """Whether there are more damaged records than allowed."""
        return len(self._records) > self.allowed

    def add(self, damaged: DamagedRecord) -> bool:
        """Adds a record and returns whether it is new. A known record keeps its reason and the earliest step."""
        key = damaged.path, damaged.record
        with self._lock:
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
            return DataUnavailable(latest.reason)
        return DataUnavailable(
            f"{latest.reason}; this is more than `tolerate_corrupt` allows; found {len(self._records)} damaged "
            f"records; allowed: {self.allowed}"
        )

    def state(self) -> list[list[Any]]:
        """Returns the records as plain lists, for a JSON file."""
        return [list(damaged) for damaged in self.records]

    def load(self, state: Iterable[Any]) -> None:
        """Adds the records of a list returned by `state`.

        Raises:
            DataError: if the list has the wrong form.
        """
        kinds = (str, int, str, int)
        for entry in state if isinstance(state, (list, tuple)) else [state]:
            fits = isinstance(entry, (list, tuple)) and len(entry) == len(kinds)
            if not fits or any(type(value) is not kind for value, kind in zip(entry, kinds, strict=True)):
                raise DataError(
                    f"The list of damaged records is wrong; found {entry!r:.100}; "
                    "allowed: lists of path, record, reason and step"
                )
            self.add(DamagedRecord(*entry))
