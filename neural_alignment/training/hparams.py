"""Settings and results of many runs for TensorBoard's dashboard HPARAMS."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary

from neural_alignment import files
from neural_alignment.training.event_files import SUMMARY_OF_RUNS, EventFile, names_in, scalar

_STATUS = {
    "finished": api_pb2.STATUS_SUCCESS,
    "diverged": api_pb2.STATUS_FAILURE,
    "failed": api_pb2.STATUS_FAILURE,
}


Columns = Mapping[str, Sequence[Any]]
"""Name of a metaparameter -> its values in some runs; of numbers, the smallest and the largest value are enough."""


def write_experiment(folder: str, columns: Columns, results: Mapping[str, str]) -> None:
    """Writes the columns of the dashboard HPARAMS, once per folder.

    Args:
        folder: a folder that contains the run directories.
        columns: the metaparameters.
        results: name of a result -> its name for readers.
    """
    infos = [_setting_info(name, values) for name, values in columns.items()]
    for info, short in zip(infos, _short_names(list(columns)), strict=True):
        info.display_name = short
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"result/{name}"), display_name=text)
        for name, text in results.items()
    ]
    plain = [{name: _shown(values, values) for name, values in columns.items()}, dict(results)]
    _write_once(folder, "experiment", plain, lambda: hparams_summary.experiment_pb(infos, metrics).value)


def write_session(
    folder: str,
    columns: Columns,
    settings: Mapping[str, Any],
    results: Mapping[str, float],
    state: str,
    seconds: float,
) -> None:
    """Writes the settings and results of a run that has ended as a row of the dashboard HPARAMS.

    Args:
        folder: the run directory. If it does not exist, nothing is written.
        columns: the columns, as for `write_experiment`. The row has values of their types, because filters of
            TensorBoard would hide it otherwise.
        settings: name of a column -> its value in this run. The run may lack some columns.
        results: name of a result -> its value; NaN is left out.
        state: how the run ended: `finished`, `diverged` or `failed`.
        seconds: its duration.
    """
    if not tf.io.gfile.isdir(folder):
        return
    plain = {name: _shown([value], columns[name])[0] for name, value in settings.items()}
    known = {name: float(value) for name, value in results.items() if not math.isnan(value)}

    def values() -> list[Any]:
        now = time.time()
        begin = hparams_summary.session_start_pb(plain, start_time_secs=now - (0 if math.isnan(seconds) else seconds))
        end = hparams_summary.session_end_pb(_STATUS[state], now)
        return [*begin.value, *end.value, *(scalar(f"result/{name}", value) for name, value in known.items())]

    _write_once(folder, "session", [plain, known, state], values)


def _type(values: Sequence[Any]) -> Any:
    """Returns the type of a column with these values."""
    if all(isinstance(value, bool) for value in values):
        return api_pb2.DATA_TYPE_BOOL
    are_numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return api_pb2.DATA_TYPE_FLOAT64 if are_numbers else api_pb2.DATA_TYPE_STRING


def _shown(values: Sequence[Any], column: Sequence[Any]) -> list[bool | float | str]:
    """Returns some values of a column as TensorBoard shows them; in a column of strings, other values as JSON.

    Args:
        values: the values.
        column: all values of the column.
    """
    if _type(column) != api_pb2.DATA_TYPE_STRING:
        return list(values)
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


def _short_names(names: Sequence[str]) -> list[str]:
    """Returns the last parts of key paths, as many as make each of them different from the others.

    The first part, such as `optimization`, is left out if possible; the part before the last one is not, because a key
    such as `name` means nothing without it.
    """
    parts = [name.split(".") for name in names]
    counts = [2 if len(own) > 2 else 1 for own in parts]
    while True:
        found = [".".join(own[-count:]) for own, count in zip(parts, counts, strict=True)]
        equal = [place for place, short in enumerate(found) if found.count(short) > 1]
        if not equal:
            return found
        for place in equal:
            counts[place] += 1


def _setting_info(name: str, values: Sequence[Any]) -> Any:
    """Returns the column of one metaparameter with its type and its possible values."""
    info = api_pb2.HParamInfo(name=name, type=_type(values))
    if info.type == api_pb2.DATA_TYPE_FLOAT64:
        info.domain_interval.MergeFrom(api_pb2.Interval(min_value=min(values), max_value=max(values)))
    else:
        info.domain_discrete.extend(dict.fromkeys(_shown(values, values)))
    return info


def _write_once(folder: str, kind: str, content: Any, values: Callable[[], Iterable[Any]]) -> None:
    """Writes an event file of one kind unless the folder has it already, and removes others of this kind.

    Args:
        folder: the folder.
        kind: the kind.
        content: JSON data that identify the content.
        values: returns the values of the only event.
    """
    mark = f"{SUMMARY_OF_RUNS}{kind}-"
    suffix = f"{mark}{files.plain_digest(content)[:12]}"
    others = [name for name in names_in(folder) if mark in name]
    if any(name.endswith(suffix) for name in others):
        return
    for name in others:
        files.remove(tf.io.gfile.join(folder, name))
    file = EventFile(folder, suffix)
    file.write(0, values())
    file.close()
