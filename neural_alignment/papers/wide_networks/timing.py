"""Figure 7 of Boopathy and Fiete 2022: seconds of a step of each rule by width, as `benchmarks/wide.py` timed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neural_alignment.errors import InputError, RunError
from neural_alignment.papers.registry import Item, Source
from neural_alignment.papers.wide_networks.runs import RULES
from neural_alignment.reporting import Artifact, markdown, new_figure, read_csv

BASELINE = "backpropagation"
"""What the benchmark calls `normal`."""

FILE = "wide.csv"
"""Of the benchmark, a line per round: `case,round,contender,quantity,value`; a case is `width N`."""

NEEDS = "--runs benchmarks/results (made by `python -m benchmarks.run wide`)"

COLUMNS = ("rule", "width", "rounds", "seconds", "seconds_low", "seconds_high", "ratio", "ratio_low", "ratio_high")

Rounds = Mapping[str, Mapping[int, Sequence[float]]]
"""Rule -> width -> seconds of a training step in each round; a round makes one step by every rule in turn."""


def check(source: Source) -> None:
    """Reads the rounds, to see that they are there.

    Raises:
        InputError: if the folder of runs has none.
        RunError: if the file is damaged.
    """
    read(source.folder)


def figure_7(source: Source) -> Artifact:
    """Seconds of a step by width; the paper shows those of an epoch."""
    return figure_of(read(source.folder))


def figure_of(rounds: Rounds) -> Artifact:
    """Returns the figure of some rounds: medians and quartiles, and those of the ratio to gradient descent."""
    figure = new_figure(5.6, 4.6)
    axis = figure.subplots()
    rows, lines = [], []
    widths = sorted(rounds["normal"])
    for rule, (_, style) in RULES.items():
        if rule not in rounds:
            continue
        spreads = [_quartiles(rounds[rule][width]) for width in widths]
        ratios = [_quartiles(np.divide(rounds[rule][width], rounds["normal"][width])) for width in widths]
        middle, low, high = np.transpose(spreads)
        axis.errorbar(widths, middle, yerr=[middle - low, high - middle], **style.options())
        for width, seconds, ratio in zip(widths, spreads, ratios, strict=True):
            values = (rule, width, len(rounds[rule][width]), *seconds, *ratio)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        lines.append(
            [style.label, *(f"{seconds[0]:.3f} s ({r[0]:.2f})" for seconds, r in zip(spreads, ratios, strict=True))]
        )
    axis.set(xscale="log", yscale="log", xlabel="filters of each convolution", ylabel="seconds of a step")
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.legend(fontsize="small")
    text = markdown(["step (ratio to Normal)", *(f"x{width}" for width in widths)], lines)
    text += "\n\nMedians over rounds, of the ratio those of the ratios within a round; bars are quartiles. The 8-layer "
    text += "CIFAR-10 network on random images. Differs from the paper: one step, not an epoch; on a CPU."
    return Artifact(COLUMNS, rows, text, figure)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns median, lower and upper quartile."""
    middle, low, high = np.percentile(values, (50, 25, 75))
    return float(middle), float(low), float(high)


def read(folder: str) -> Rounds:
    """Returns the rounds of the benchmark's file in a folder; arguments and errors as of `check`."""
    path = f"{folder}/{FILE}"
    lines = read_csv(path)
    if not lines:
        raise InputError(f"figure wide_networks/7 needs {NEEDS}; there are no rounds in {path}")
    found: dict[str, dict[int, list[float]]] = {}
    try:
        for line in lines:
            if line["quantity"] == "seconds":
                rule = "normal" if line["contender"] == BASELINE else line["contender"]
                width = int(line["case"].removeprefix("width "))
                found.setdefault(rule, {}).setdefault(width, []).append(float(line["value"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is no file of the benchmark: {error}") from None
    counts = [{width: len(values) for width, values in of_rule.items()} for of_rule in found.values()]
    if "normal" not in found or any(each != counts[0] for each in counts) or not set(found) <= set(RULES):
        raise RunError(f"{path}: is no file of the benchmark: not every rule has every width and round")
    return found


ITEMS = [Item("figure", "wide_networks/7", "time of a step by width", figure_7, needs=NEEDS, check=check)]
