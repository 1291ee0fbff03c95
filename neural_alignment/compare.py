"""Compares configurations: trains each with several seeds and writes one table."""

from __future__ import annotations

import contextlib
import math
import posixpath
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import paths
from neural_alignment.config.yaml_files import read_chain
from neural_alignment.errors import InputError
from neural_alignment.jobs.batch import Execution
from neural_alignment.jobs.plans import Cell, Outcome, carry_out, unique
from neural_alignment.losses import ACCURACY, Criterion
from neural_alignment.reporting import Artifact, Row, Spread, check_replaceable, check_writable, markdown, write
from neural_alignment.training import hparams, setup
from neural_alignment.training.config_comparison import flat_values
from neural_alignment.training.metrics import by_layer


def columns(criterion: Criterion) -> tuple[str, ...]:
    """Returns the columns of the CSV file.

    Args:
        criterion: the metric by which the runs are judged.
    """
    return ("config", "seed", criterion.column, "first_angle", "last_angle", "last_angle_max", "diverged", "seconds")


@dataclass(frozen=True)
class Comparison:
    """The runs to compare.

    Attributes:
        configs: paths of configuration files.
        seeds: seeds of the runs of each configuration.
        overrides: `key.path=value`, as for `config.load`.
        folder: folder of the run directories.
        name: returns, for a configuration file, the name of its directory below `folder`, which contains a run
            directory per seed.
    """

    configs: Sequence[str]
    seeds: Sequence[int]
    overrides: Sequence[str]
    folder: str
    name: Callable[[str], str]

    def cells(self) -> list[Cell]:
        """Returns a cell per configuration.

        Raises:
            InputError: if a seed, a file or the name of a directory occurs twice, or an override sets the seed.
            ConfigError: if a file cannot be read.
        """
        if seed := next((each for each in self.overrides if each.partition("=")[0].strip() == "seed"), None):
            raise InputError(f"--set {seed}: each run has its own seed; give --seeds")
        _check_different(self.seeds, self.configs, self.name)
        return [
            Cell(path, self.name(path), {"config": path}, tuple(self.overrides), tuple(self.seeds))
            for path in self.configs
        ]

    def criterion(self) -> Criterion:
        """Returns the metric that judges all runs.

        Raises:
            InputError: if two configurations have different metrics.
            ConfigError: if a configuration is wrong.
        """
        criteria = {path: configuration.load(path, self.overrides).loss.criterion for path in self.configs}
        first, *others = self.configs
        for path in others:
            if criteria[path] != criteria[first]:
                raise InputError(
                    f"{path}: its runs are judged by {criteria[path].name}, those of {first} by "
                    f"{criteria[first].name}; compare configurations with one metric"
                )
        return criteria[first]


def compare(comparison: Comparison, output: str, execution: Execution) -> str:
    """Trains every configuration with every seed and writes `output`.csv, with a line per run, and `output`.md.

    Runs that have ended are not trained again, and interrupted runs resume.

    Args:
        comparison: the runs.
        output: path of the tables without extension.
        execution: where the runs are trained.

    Returns:
        The Markdown table in `output`.md: mean and standard deviation over seeds.

    Raises:
        InputError: if a run or a configuration is wrong, the tables cannot be written, or a run diverged and the data,
            which determine the accuracy of chance, cannot be read.
        Stopped: at SIGTERM, SIGINT or SIGHUP.
    """
    cells, seeds, folder = comparison.cells(), comparison.seeds, comparison.folder
    criterion = comparison.criterion()
    check_writable(output.rpartition("/")[0] or ".")
    check_replaceable(output, columns(criterion))
    carry_out(unique(cells), folder, "", execution)
    found = [(cell, each) for cell in cells for each in cell.read(folder, "")]
    found.sort(key=lambda each: seeds.index(each[1].config.seed))
    rows = [_row(cell, outcome, criterion) for cell, outcome in found]
    table = _table(rows, comparison.configs, criterion)
    write(Artifact(columns(criterion), rows, table), output)
    with contextlib.suppress(tf.errors.PermissionDeniedError):  # The runs may be in a folder that is only read.
        _show_in_tensorboard(comparison, found, rows, criterion)
    return table


def _show_in_tensorboard(
    comparison: Comparison, found: Sequence[tuple[Cell, Outcome]], rows: Sequence[Row], criterion: Criterion
) -> None:
    """Writes the dashboard HPARAMS: a row per run with its seed, the keys that vary, and its results.

    The columns are written to the folder that all configurations have in common.
    """
    shown = [(*run, row) for run, row in zip(found, rows, strict=True) if run[1].config.logging.tensorboard]
    if not shown:
        return
    options = {cell.name: flat_values(outcome.config) for cell, outcome, _ in shown}
    keys = dict.fromkeys(key for each in options.values() for key in each if key != "seed")
    known = {key: [each[key] for each in options.values() if key in each] for key in keys}
    varied = {key: own for key, own in known.items() if len(own) < len(options) or any(v != own[0] for v in own)}
    names = list(options)
    columns = {"configuration": names, "seed": comparison.seeds, **varied}
    last = f"validation {criterion.label}"
    results = {criterion.column: last, "mean_angle": "mean angle of W to B^T (degrees)"}
    place = tf.io.gfile.join(comparison.folder, posixpath.commonpath(names))
    hparams.write_experiment(place, columns, results)
    for cell, outcome, row in shown:
        own = {key: value for key, value in options[cell.name].items() if key in varied}
        settings = {"configuration": cell.name, "seed": outcome.config.seed, **own}
        values = {criterion.column: row[criterion.column], "mean_angle": row.get("last_angle", math.nan)}
        state = "diverged" if outcome.diverged else "finished"
        hparams.write_session(outcome.directory.path, columns, settings, values, state, outcome.seconds)


def _check_different(seeds: Sequence[int], configs: Sequence[str], name: Callable[[str], str]) -> None:
    """Checks that no two rows of the table describe the same run.

    Raises:
        InputError: if a seed or a file is given twice, or two files would have the same run directories.
        ConfigError: if a file cannot be read.
    """
    if twice := [seed for seed in seeds if list(seeds).count(seed) > 1]:
        raise InputError(f"seeds must be different; found {twice[0]} twice")
    files: dict[str, str] = {}
    names: dict[str, str] = {}
    for path in configs:
        real = paths.real(read_chain(path)[0][0])
        if other := files.get(real):
            raise InputError(f"{path}: is the same file as {other}; give each configuration once")
        files[real] = path
        if other := names.get(name(path)):
            raise InputError(
                f"{path}: would be trained in the same directories as {other}, {name(path)}; rename one of the files, "
                "or compare them one by one with different --runs"
            )
        names[name(path)] = path


def _row(cell: Cell, outcome: Outcome, criterion: Criterion) -> Row:
    """Returns the line of a run. A run that diverged has the accuracy of chance and no angles."""
    first, last = ({}, {}) if outcome.diverged else (outcome.rows[0], outcome.rows[-1])
    angles = [list(by_layer(row).values()) for row in (first, last)]
    value = outcome.measure(criterion.column, _chance(outcome, criterion) if outcome.diverged else math.nan)
    row = {**cell.labels, "seed": outcome.config.seed, criterion.column: value, "diverged": outcome.diverged}
    if angles[0]:
        means = map(statistics.fmean, angles)
        row |= dict(zip(("first_angle", "last_angle"), means, strict=True)) | {"last_angle_max": max(angles[1])}
    return {**row, "seconds": round(outcome.seconds, 1)}


def _chance(outcome: Outcome, criterion: Criterion) -> float:
    """Returns the accuracy of chance; NaN, which is left out of means, if the runs are judged by another metric."""
    return 1.0 / setup.data_facts(outcome.config).classes if criterion == ACCURACY else math.nan


def _table(rows: Sequence[Row], configs: Sequence[str], criterion: Criterion) -> str:
    scale = 100 if criterion.is_fraction else 1
    lines = []
    for path in configs:
        own = [row for row in rows if row["config"] == path]
        diverged = sum(row["diverged"] for row in own)
        values = str(Spread([scale * row[criterion.column] for row in own]))
        values += f", {diverged} diverged" if diverged else ""
        angles = [str(Spread([row[key] for row in own if key in row])) for key in ("first_angle", "last_angle")]
        seconds = Spread([row["seconds"] for row in own if not row["diverged"]]).mean
        known = "" if math.isnan(seconds) else f"{seconds:.0f}"
        lines.append([path, len(own), values, "none" if "none" in angles else " to ".join(angles), known])
    angle = "mean angle of W to B^T, first to last (degrees)"
    metric = f"validation {criterion.label}{' (%)' if criterion.is_fraction else ''}"
    table = markdown(["configuration", "seeds", metric, angle, "seconds"], lines)
    if not any(row["diverged"] for row in rows):
        return table
    note = "Runs that diverged are left out."
    if criterion == ACCURACY:
        note = "A run that diverged counts as chance; its angles and its time are left out."
    return f"{table}\n\n{note}"
