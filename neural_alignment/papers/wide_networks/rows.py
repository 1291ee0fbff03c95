"""Tidy rows of the tables and figures: accuracies, alignment scores, losses, updates, seconds of a step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neural_alignment.errors import InputError, RunError
from neural_alignment.jobs.plans import Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import grouped
from neural_alignment.papers.wide_networks.compute import add_task, scoring
from neural_alignment.papers.wide_networks.compute.limits import QUANTITIES
from neural_alignment.papers.wide_networks.compute.updates import ALIGNED, COMPARED_RULES
from neural_alignment.papers.wide_networks.printed import TABLE_8
from neural_alignment.papers.wide_networks.runs import SCORED, TABLE_RULES
from neural_alignment.reporting import Row, Spread, read_csv


def _arrays(source: Source, **labels: Any) -> Iterator[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]:
    """Yields the labels and the arrays of each computed piece with some labels."""
    for own, results in source.results(**labels):
        yield from ((own, result.arrays) for result in results)


# Accuracies.

DIFFERS = "differs"
"""Column with the differences between the protocol of a row and that of the paper."""

COLUMNS = ("rule", "width", "seed", "rate", "validation_accuracy", "test_accuracy", "paper_accuracy", DIFFERS)
"""Columns of the CSV files; accuracies are percent."""


class NetworkRuns(NamedTuple):
    """The results of one network trained at several learning rates.

    The validation accuracy in percent and the mean training loss have the shape `(rates, epochs)`, with NaN after a
    divergence. The test accuracy in percent is that of the best epoch at the best rate; NaN if it was not evaluated.
    """

    labels: Mapping[str, Any]
    seed: int
    rates: tuple[float, ...]
    validation: np.ndarray
    loss: np.ndarray
    test: float

    def by_rate(self) -> dict[float, float]:
        """Returns rate -> best accuracy over epochs; NaN if training diverged in the first epoch."""
        known = [row[~np.isnan(row)] for row in self.validation]
        return dict(zip(self.rates, (float(row.max()) if row.size else math.nan for row in known), strict=True))

    @property
    def best(self) -> tuple[float, float]:
        """The rate of the best accuracy (the first of equals), and that accuracy; NaN if all rates diverged.

        A network with one rate has this rate in any case.
        """
        found = {rate: accuracy for rate, accuracy in self.by_rate().items() if not math.isnan(accuracy)}
        only = self.rates[0] if len(self.rates) == 1 else math.nan
        return max(found.items(), key=lambda item: item[1]) if found else (only, math.nan)


def networks(source: Source) -> list[NetworkRuns]:
    """Returns the networks of a table: of the lab from its pieces, of the paper's size from ordinary runs per rate."""
    found = []
    for labels, arrays in _arrays(source):
        curves = arrays["validation_accuracy"], arrays["train_loss"]
        found.append(NetworkRuns(labels, labels["seed"], labels["rates"], *curves, float(arrays["test_accuracy"])))
    runs: dict[tuple, list[tuple[Mapping[str, Any], Outcome]]] = {}
    for cell, outcomes in source.outcomes():
        network = [item for item in cell.labels.items() if item[0] not in ("rate", DIFFERS)]
        for outcome in outcomes:
            runs.setdefault((*network, outcome.config.seed), []).append((cell.labels, outcome))
    of_rates = [(own[0][0], [(labels["rate"], outcome) for labels, outcome in own]) for own in runs.values()]
    return found + [_of_runs(*each) for each in of_rates]


def _of_runs(labels: Mapping[str, Any], runs: Sequence[tuple[float, Outcome]]) -> NetworkRuns:
    """Returns a network from its runs at several rates; evaluations count as epochs."""
    evaluations = [[row for row in run.rows if row["step"]] for _, run in runs]
    validation, loss = np.full((2, len(runs), max(map(len, evaluations))), math.nan)
    for number, rows in enumerate(evaluations):
        validation[number, : len(rows)] = [100 * row["top1"] for row in rows]
        loss[number, : len(rows)] = [row["train_J"] for row in rows]
    known = [row for rows in evaluations for row in rows if not math.isnan(row["top1"])]
    test = 100 * max(known, key=lambda row: row["top1"], default={}).get("test_top1", math.nan)
    return NetworkRuns(labels, runs[0][1].config.seed, tuple(rate for rate, _ in runs), validation, loss, test)


def accuracies(source: Source, printed: Mapping[Any, Any], key: str = "", more: Sequence[str] = ()) -> list[Row]:
    """Returns a row with `COLUMNS` per network, the accuracy that the paper prints beside it.

    `printed` is rule -> width -> accuracy. A key is a further label, such as the number of training images: it is a
    column as well, and `printed` then has the accuracies of each of its values. `more` are labels that are columns.
    """
    found = []
    for network in networks(source):
        labels = network.labels
        by_rule = printed[labels[key]] if key else printed
        paper = by_rule.get(labels["rule"], {}).get(labels["width"], math.nan)
        values = labels["rule"], labels["width"], network.seed, *network.best, network.test, paper, labels[DIFFERS]
        found.append({name: labels[name] for name in (key, *more) if name} | dict(zip(COLUMNS, values, strict=True)))
    return found


def best_rates(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Returns the row of the best rate of each network; networks differ in the keys, rule, width or seed."""
    networks = grouped(rows, *keys, "rule", "width", "seed").values()
    return [max(own, key=lambda row: np.nan_to_num(row["validation_accuracy"])) for own in networks]


# Alignment scores.

SCORE_COLUMNS = ("layer", "width", "seed", "score", "score_sem", "permuted_score", "paper_score")


def scores(source: Source, name: str) -> list[Row]:
    """Returns a row with `SCORE_COLUMNS` and `epoch` per network, moment and layer, for an entry of `SCORED`."""
    return [
        {**row, "paper_score": SCORED[name].paper[row["layer"], labels["width"]]}
        for labels, arrays in _arrays(source, setting=name)
        for row in scoring.rows(arrays, labels["width"], labels["seed"])
    ]


def final_scores(source: Source, name: str) -> list[Row]:
    """Returns the rows of the last moment of each network, sorted by layer."""
    networks = grouped(scores(source, name), "width", "seed").values()
    kept = [row for own in networks for row in own if row["epoch"] == own[-1]["epoch"]]
    return sorted(kept, key=lambda row: (row["layer"], row["width"], row["seed"]))


# The Add task.

LOSS_COLUMNS = ("rule", "width", "seed", "train_loss", "test_loss", "paper_train_loss", "paper_test_loss")


def losses(source: Source) -> list[Row]:
    """Returns a row with `LOSS_COLUMNS` per network; the paper's losses are those of the published seed."""
    return [
        {**labels, **{name: add_task.best(arrays[name]) for name in ("train_loss", "test_loss")}}
        | {f"paper_{part}_loss": loss for part, loss in TABLE_8[labels["rule"]][labels["width"]]._asdict().items()}
        for labels, arrays in _arrays(source)
    ]


# Outputs and updates beside those of gradient descent.

DISTANCE_COLUMNS = ("activation", "rule", "width", "seed", "step", "distance", "movement", "cosine")
"""The cosine is that of the second layer's update to gradient descent's."""

FITTED = 32
"""Smallest width of the fit: narrower networks are far from the limit."""


def distances(source: Source) -> list[Row]:
    """Returns a row with `DISTANCE_COLUMNS` per network, rule and moment."""
    return [
        {"activation": labels["activation"], "rule": rule, "width": labels["width"], "seed": labels["seed"]}
        | {"step": int(step), "distance": float(distance), "movement": float(movement), "cosine": float(cosines[1])}
        for labels, arrays in _arrays(source)
        for rule in ALIGNED
        for step, distance, movement, cosines in zip(
            *(arrays[name] for name in ("step", f"{rule}_distance", "movement", f"{rule}_cosine")), strict=True
        )
    ]


def limits(source: Source) -> list[Row]:
    """Returns a row with `LIMIT_COLUMNS` per quantity, rule and network."""
    return [
        {"quantity": quantity, "rule": rule, "width": labels["width"], "seed": labels["seed"]}
        | {"distance": float(arrays[f"{rule}_{quantity}"])}
        for quantity, rule in itertools.product(QUANTITIES, COMPARED_RULES)
        for labels, arrays in _arrays(source)
        if f"{rule}_{quantity}" in arrays
    ]


LIMIT_COLUMNS = ("quantity", "rule", "width", "seed", "distance")


def exponent(rows: Sequence[Row]) -> tuple[Spread, float]:
    """Fits distance = c m^a to the widths m of each seed from `FITTED` on, by least squares of the logarithms.

    Returns:
        The exponents a, one per seed that has two widths or more, and the geometric mean of the c.
    """
    fitted = grouped((row for row in rows if row["width"] >= FITTED), "seed").values()
    logarithms = [[np.log([row[name] for row in own]) for name in ("width", "distance")] for own in fitted]
    fits = [np.polyfit(xs, ys, 1) for xs, ys in logarithms if len(xs) > 1]
    factor = float(np.exp(np.mean([offset for _, offset in fits]))) if fits else math.nan
    return Spread([float(slope) for slope, _ in fits]), factor


# Seconds of a step.

ROUNDS_FILE = "wide.csv"
"""File of the benchmark, a row per round: `case,round,contender,quantity,value`; a case is `width N`."""

PLAIN = "plain Keras"
"""The contender of that file that the figure leaves out: it has another batch normalisation."""

NEEDS = "--runs benchmarks/results (made by `python -m benchmarks.run wide`)"

TIME_COLUMNS = ("rule", "width", "round", "seconds", "ratio")
"""The ratio is that to gradient descent in the same round."""

Rounds = Mapping[str, Mapping[int, Sequence[float]]]
"""Rule -> width -> seconds of a training step in each round; a round makes one step by every rule in turn."""


def read_rounds(folder: str) -> Rounds:
    """Returns the rounds of the benchmark's file in a folder, in the order of `TABLE_RULES`.

    Raises:
        InputError: if the folder has none.
        RunError: if the file is damaged.
    """
    path = f"{folder}/{ROUNDS_FILE}"
    samples = read_csv(path)
    if not samples:
        raise InputError(f"figure wide_networks/7 needs {NEEDS}; there are no rounds in {path}")
    found: dict[str, dict[int, list[float]]] = {}
    try:
        for sample in samples:
            if sample["quantity"] == "seconds" and sample["contender"] != PLAIN:
                rule = {"backpropagation": "normal"}.get(sample["contender"], sample["contender"])
                width = int(sample["case"].removeprefix("width "))
                found.setdefault(rule, {}).setdefault(width, []).append(float(sample["value"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is no file of the benchmark: {error}") from None
    counts = [{width: len(values) for width, values in of_rule.items()} for of_rule in found.values()]
    if "normal" not in found or any(each != counts[0] for each in counts) or not set(found) <= set(TABLE_RULES):
        raise RunError(f"{path}: is no file of the benchmark: not every rule has every width and round")
    return {rule: found[rule] for rule in TABLE_RULES if rule in found}


def times(rounds: Rounds) -> list[Row]:
    """Returns a row with `TIME_COLUMNS` per rule, width and round."""
    return [
        dict(zip(TIME_COLUMNS, (rule, width, number, seconds, seconds / normal), strict=True))
        for rule, by_width in rounds.items()
        for width, own in sorted(by_width.items())
        for number, (seconds, normal) in enumerate(zip(own, rounds["normal"][width], strict=True))
    ]
