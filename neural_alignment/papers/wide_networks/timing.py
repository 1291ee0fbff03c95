"""Figure 7 of Boopathy and Fiete 2022: seconds of a step of each rule by width, as `benchmarks/wide.py` timed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neural_alignment.errors import InputError, RunError
from neural_alignment.papers.figures import grid, lines, panel, quartiles, ticks
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.tables import chosen, table
from neural_alignment.papers.wide_networks.runs import RULE_STYLES
from neural_alignment.papers.wide_networks.tables import label
from neural_alignment.reporting import Artifact, read_csv

BASELINE = "backpropagation"
"""Name of `normal` in the benchmark."""

FILE = "wide.csv"
"""File of the benchmark, a row per round: `case,round,contender,quantity,value`; a case is `width N`."""

NEEDS = "--runs benchmarks/results (made by `python -m benchmarks.run wide`)"

COLUMNS = ("rule", "width", "rounds", "seconds", "seconds_low", "seconds_high", "ratio", "ratio_low", "ratio_high")

Rounds = Mapping[str, Mapping[int, Sequence[float]]]
"""Rule -> width -> seconds of a training step in each round; a round makes one step by every rule in turn."""


def check(source: Source) -> None:
    """Checks that the rounds can be read.

    Raises:
        InputError: if the folder of runs has none.
        RunError: if the file is damaged.
    """
    read(source.folder)


def figure_7(source: Source) -> Artifact:
    """Seconds of a step by width; the paper shows those of an epoch."""
    return figure_of(read(source.folder))


def figure_of(rounds: Rounds) -> Artifact:
    """Returns medians and quartiles of the seconds of a step, and of their ratio to gradient descent in a round."""
    rules, widths = [rule for rule in RULE_STYLES if rule in rounds], sorted(rounds["normal"])
    samples = [
        {"rule": rule, "width": width, "seconds": seconds}
        for rule in rules
        for width in widths
        for seconds in rounds[rule][width]
    ]
    rows = []
    for rule in rules:
        for width in widths:
            own, ratios = rounds[rule][width], np.divide(rounds[rule][width], rounds["normal"][width])
            values = (rule, width, len(own), *quartiles(own), *quartiles(ratios))
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    seconds = panel(
        lines(samples, "width", "seconds", "rule", RULE_STYLES, quartiles),
        ticks(widths),
        yscale="log",
        xlabel="filters of each convolution",
        ylabel="seconds of a step",
    )
    columns = {"step (ratio to Normal)": label}
    for width in widths:
        columns[f"x{width}"] = lambda own, width=width: "{seconds:.3f} s ({ratio:.2f})".format(
            **chosen(own, width=width)[0]
        )
    text = table(rows, ["rule"], columns)
    text += "\n\nMedians over rounds, of the ratio those of the ratios within a round; bars are quartiles. The 8-layer "
    text += "CIFAR-10 network on random images. Differs from the paper: one step, not an epoch; on a CPU."
    return Artifact(COLUMNS, rows, text, grid([[seconds]], (5.6, 4.6), legends=[(0, 0)]))


def read(folder: str) -> Rounds:
    """Returns the rounds of the benchmark's file in a folder; errors as of `check`."""
    path = f"{folder}/{FILE}"
    samples = read_csv(path)
    if not samples:
        raise InputError(f"figure wide_networks/7 needs {NEEDS}; there are no rounds in {path}")
    found: dict[str, dict[int, list[float]]] = {}
    try:
        for sample in samples:
            if sample["quantity"] == "seconds":
                rule = "normal" if sample["contender"] == BASELINE else sample["contender"]
                width = int(sample["case"].removeprefix("width "))
                found.setdefault(rule, {}).setdefault(width, []).append(float(sample["value"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is no file of the benchmark: {error}") from None
    counts = [{width: len(values) for width, values in of_rule.items()} for of_rule in found.values()]
    if "normal" not in found or any(each != counts[0] for each in counts) or not set(found) <= set(RULE_STYLES):
        raise RunError(f"{path}: is no file of the benchmark: not every rule has every width and round")
    return found


ITEMS = [Item("figure", "wide_networks/7", "time of a step by width", figure_7, needs=NEEDS, check=check)]
