"""Several configurations, several seeds, one table."""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.errors import Diverged, RunError
from neural_alignment.training import callbacks, run
from neural_alignment.training.files import write_whole

COLUMNS = ("config", "seed", "top1", "first_angle", "last_angle", "last_angle_max", "diverged", "seconds")


def compare(
    configs: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str],
    place: Callable[[str, int], str],
    output: str,
    progress: Callable[[], callbacks.Progress],
    write_line: Callable[[str], None],
) -> str:
    """Trains every configuration with every seed and writes `output`.csv, a line per run, and `output`.md.

    A run directory that is finished already is read, one that was interrupted goes on.

    Args:
        configs: YAML files.
        seeds: seeds of each.
        overrides: as for `config.load`.
        place: configuration file and seed -> run directory.
        output: path of the tables without their ending.
        progress: makes what shows the progress of one run.
        write_line: told which run is next.

    Returns:
        The Markdown table.
    """
    rows: list[dict[str, object]] = []
    plans = [(path, seed) for seed in seeds for path in configs]
    loaded = {plan: configuration.load(plan[0], [*overrides, f"seed={plan[1]}"]) for plan in plans}
    for path, seed in plans:
        run.stored_state(run.RunDirectory(place(path, seed)), loaded[path, seed])
    _probe(output)
    seconds: list[float] = []
    for number, (path, seed) in enumerate(plans, start=1):
        left = ""
        if seconds:
            left = f", about {statistics.fmean(seconds) * (len(plans) - number + 1) / 60:.0f} min left"
        write_line(f"run {number} of {len(plans)}{left}: {path}, seed {seed}")
        began = time.monotonic()
        rows.append({"config": path, "seed": seed, **_row(loaded[path, seed], place(path, seed), progress())})
        _write(output, rows)
        seconds.append(time.monotonic() - began)
    return _table(rows, configs)


def _row(config: configuration.Config, run_dir: str, progress: callbacks.Progress) -> dict[str, object]:
    """Trains one run, or reads it if it is there."""
    directory = run.RunDirectory(run_dir)
    diverged = run.stored_state(directory, config) == "diverged"
    if not diverged:
        try:
            run.train(config, run_dir, resume=True, progress=progress)
        except Diverged as error:
            progress.write_line(f"diverged: {error}")
            diverged = True
    rows = run.MetricsFile(directory.file("metrics.csv")).rows()
    first, last = rows[0], rows[-1]
    angles = [[row[key] for key in row if key.startswith("weight_angle/")] for row in (first, last)]
    return {
        "top1": last["top1"],
        "first_angle": statistics.fmean(angles[0]) if angles[0] else "",
        "last_angle": statistics.fmean(angles[1]) if angles[1] else "",
        "last_angle_max": max(angles[1]) if angles[1] else "",
        "diverged": int(diverged),
        "seconds": round(last["seconds"], 1),
    }


def _write(output: str, rows: list[dict[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(f"{output}.csv", text.getvalue())
    write_whole(f"{output}.md", _table(rows, list(dict.fromkeys(str(row["config"]) for row in rows))) + "\n")


def _probe(output: str) -> None:
    """Makes sure that the tables can be written, before hours of training; an earlier table stays as it is.

    Raises:
        RunError: if they cannot.
    """
    trial = f"{output}.trial"
    try:
        if folder := output.rpartition("/")[0]:
            tf.io.gfile.makedirs(folder)
        write_whole(trial, "")
        tf.io.gfile.remove(trial)
    except tf.errors.OpError as error:
        raise RunError(f"{output}: cannot be written: {' '.join(error.message.split())[:200]}") from None


def _table(rows: Sequence[dict[str, object]], configs: Sequence[str]) -> str:
    """Returns the Markdown table: mean and standard deviation over seeds."""
    lines = [
        "| configuration | seeds | validation top-1 (%) | mean angle of W to B^T, first to last (degrees) | seconds |",
        "|---|---|---|---|---|",
    ]
    for path in configs:
        own = [row for row in rows if row["config"] == path]
        top1 = _spread([100 * row["top1"] for row in own])
        diverged = sum(row["diverged"] for row in own)
        accuracy = top1 + (f", {diverged} diverged" if diverged else "")
        aligned = own and own[0]["last_angle"] != ""
        angles = "none"
        if aligned:
            angles = " to ".join(_spread([row[key] for row in own]) for key in ("first_angle", "last_angle"))
        seconds = statistics.fmean(row["seconds"] for row in own)
        lines.append(f"| {path} | {len(own)} | {accuracy} | {angles} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "none"  # Diverged before the first evaluation.
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
