"""Which records turned out to be damaged, and how many may."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from neural_alignment.errors import DataError, DataUnavailable

NO_STEP = -1


class DamagedRecord(NamedTuple):
    """A record that cannot be used.

    Attributes:
        path: its file.
        record: its number in the file, from 0.
        reason: what is wrong with it, in one line.
        step: the first step of the run whose batch should have held it; -1 for one that was found while loading or in
            the validation data.
    """

    path: str
    record: int
    reason: str
    step: int = NO_STEP


class DamageList:
    """The damaged records of a data set, each once, however often it is met.

    Args:
        allowed: how many there may be.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self._records: dict[tuple[str, int], DamagedRecord] = {}
        self._lock = threading.Lock()  # input pipelines add to it from threads of their own

    @property
    def records(self) -> list[DamagedRecord]:
        """All of them, by file and number."""
        with self._lock:
            return sorted(self._records.values())

    @property
    def too_much(self) -> bool:
        """Whether there are more than allowed."""
        return len(self._records) > self.allowed

    def add(self, damaged: DamagedRecord) -> bool:
        """Takes in a record and returns whether it is new; one that is not keeps its reason, and the earliest step."""
        key = damaged.path, damaged.record
        with self._lock:
            new = key not in self._records
            known = self._records.get(key, damaged)
            self._records[key] = known._replace(step=min(known.step, damaged.step))
        return new

    def before(self, step: int) -> int:
        """How many were met before a step: those of batches that were only made ahead do not count yet."""
        return sum(damaged.step < step for damaged in self.records)

    def error(self, latest: DamagedRecord | None = None) -> DataError:
        """What to raise when there are more than allowed."""
        latest = latest or self.records[-1]
        if not self.allowed:
            return DataUnavailable(latest.reason)
        return DataUnavailable(
            f"{latest.reason} This is more than `tolerate_corrupt` allows. Received {len(self._records)} damaged "
            f"records. Allowed: {self.allowed}."
        )

    def state(self) -> list[list[Any]]:
        """The records as plain lists, for a JSON file."""
        return [list(damaged) for damaged in self.records]

    def load(self, state: Iterable[Any]) -> None:
        """Adds what `state` returned.

        Raises:
            DataError: it is something else.
        """
        kinds = (str, int, str, int)
        for entry in state if isinstance(state, (list, tuple)) else [state]:
            fits = isinstance(entry, (list, tuple)) and len(entry) == len(kinds)
            if not fits or any(type(value) is not kind for value, kind in zip(entry, kinds, strict=True)):
                raise DataError(
                    f"The list of damaged records is wrong. Received {entry!r:.100}. "
                    "Allowed: lists of path, record, reason and step."
                )
            self.add(DamagedRecord(*entry))
