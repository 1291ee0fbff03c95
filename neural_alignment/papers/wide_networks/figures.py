"""The figures of Boopathy and Fiete 2022: accuracies, alignment scores, losses, updates and seconds of a step."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.errors import InputError
from neural_alignment.jobs.plans import unique, waiting
from neural_alignment.papers import figures as draw
from neural_alignment.papers.figures import Panel, Style, drawn, lines, panel, panels_by, points, ticks
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, grouped, table
from neural_alignment.papers.wide_networks import rows as tidy
from neural_alignment.papers.wide_networks import runs
from neural_alignment.papers.wide_networks.compute.updates import ALIGNED, COMPARED_RULES
from neural_alignment.papers.wide_networks.printed import CHANCE, TABLE_6, TABLE_7, TABLE_8, TABLE_9, WIDTHS
from neural_alignment.papers.wide_networks.rows import COLUMNS, DIFFERS
from neural_alignment.papers.wide_networks.runs import RULE_NAMES, SCORED, TABLE_RULES
from neural_alignment.papers.wide_networks.tables import COLUMNS_9, Make, by_rule, by_seed, by_width, largest_difference
from neural_alignment.reporting import Artifact, Row

BELOW = {"legend": "outside lower center"}
"""Layout of panels with one legend."""


def _styles(**looks: tuple[Any, ...]) -> dict[str, Style]:
    """Returns rule -> look of its lines, from marker, line and shade."""
    return {rule: Style(RULE_NAMES[rule], *look) for rule, look in looks.items()}


def _changed(styles: Mapping[Any, Style], **changes: Any) -> dict[Any, Style]:
    """Returns the same looks with some changes, and without entries in the legend."""
    return {key: dataclasses.replace(style, label=None, **changes) for key, style in styles.items()}


def _middle(function: Callable[[Sequence[float]], float]) -> draw.Summary:
    """Returns a summary without error bars."""
    return lambda values: (function(values),) * 3


RULE_STYLES = _styles(
    normal=("o", "-", 0.0),
    align_ada=("s", "-", 0.25),
    align_zero=("^", "--", 0.25),
    align_prop=("v", "-.", 0.25),
    dfa=("D", "-", 0.6),
    fa=("P", "--", 0.6),
    last_layer=("X", ":", 0.6),
)

# Accuracies.

TITLES, PRINTED = {"cifar10": "CIFAR-10", "kmnist": "KMNIST"}, {"cifar10": TABLE_6, "kmnist": TABLE_7}
"""Data set -> title, and published accuracies."""

CROSSES = _changed(RULE_STYLES, marker="x", line="")
"""Published accuracies."""

NARROW_STYLES = _changed(RULE_STYLES, line=(0, (1, 1.5)), filled=False)
"""The narrower of two networks."""

ACCURACY, PERCENT = "validation_accuracy", "validation accuracy (%)"
"""Column, and its label in figures."""


def over(rows: Sequence[Row], x: str, styles: Mapping[str, Style] = RULE_STYLES, y: str = ACCURACY) -> draw.RowMark:
    """Returns a line per rule; of several seeds the first is drawn."""
    return lines(rows, x, y, "rule", styles, draw.first)


def _published(numbers: Mapping[Any, Mapping[str, Mapping[int, float]]], key: str) -> list[Row]:
    """Returns a row per published accuracy: value of a key column -> rule -> width -> accuracy."""
    return [
        {key: value, "rule": rule, "width": width, ACCURACY: accuracy}
        for value, rules in numbers.items()
        for rule, own in rules.items()
        for width, accuracy in own.items()
    ]


def _differences(source: Source) -> str:
    """Returns the differences between the networks of a figure and those of the paper."""
    differences = sorted({cell.labels[DIFFERS] for cell in source.cells} - {""})
    return "".join(f"\n\nDiffers from the paper (paper): {each}." for each in differences)


def _counted(found: int, source: Source) -> str:
    """Returns the number of networks in words, and in the lab that of the plan if networks are missing."""
    expected = len(source.cells) if source.profile == "lab" else found
    return f"{found} networks" + (f" of {expected}" if expected != found else "")


def figure_3(source: Source) -> Artifact:
    """Accuracy over the learning rate, a narrow and a wide network."""
    found = tidy.networks(source)
    columns = ("dataset", "rule", "width", "seed", "rate", ACCURACY, DIFFERS)
    rows = [
        {**{name: each.labels[name] for name in ("dataset", "rule", "width", DIFFERS)}, "seed": each.seed}
        | {"rate": rate, ACCURACY: accuracy}
        for each in found
        for rate, accuracy in each.by_rate().items()
    ]
    rows.sort(key=lambda row: (row["dataset"], row["width"], TABLE_RULES.index(row["rule"]), row["rate"]))
    widths, names = (sorted({cell.labels[name] for cell in source.cells}) for name in ("width", "dataset"))
    narrow, wide = widths[0], widths[-1]
    marks = (
        over(chosen(rows, width=wide), "rate"),
        over(chosen(rows, width=narrow), "rate", NARROW_STYLES),
        ticks(sorted({row["rate"] for row in rows}) or [1.0]),
    )
    axes = {"xlabel": "learning rate", "ylabel": PERCENT}
    panels = panels_by("dataset", *marks, title=TITLES.get, values=names, **axes)
    text = f"{_counted(len(found), source)}. Lines: width {wide}; dotted: width {narrow}; nothing where J became "
    text += f"infinite.{_differences(source)}"
    return drawn(rows, text, [panels], (5 * len(panels), 4.8), columns, **BELOW)


def figure_4(source: Source) -> Artifact:
    """Accuracy over the width, with the accuracies that the paper prints."""
    rows, printed = tidy.accuracies(source, PRINTED, "dataset"), _published(PRINTED, "dataset")
    marks = over(rows, "width"), over(printed, "width", CROSSES), ticks(WIDTHS)
    axes = {"xlabel": "filters of each convolution", "ylabel": PERCENT}
    panels = panels_by("dataset", *marks, title=TITLES.get, values=TITLES, **axes)
    text = f"{_counted(len(rows), source)}. Lines: here; crosses: Tables 6 and 7 of the paper, with its protocol."
    return drawn(rows, text + _differences(source), [panels], (10, 4.8), ("dataset", *COLUMNS), **BELOW)


def figure_6(source: Source) -> Artifact:
    """Accuracy over the number of training images, with the accuracies that the paper prints."""
    x = "train_images"
    widths, numbers = (sorted({cell.labels[name] for cell in source.cells}) for name in ("width", x))
    rows, printed = tidy.accuracies(source, TABLE_9, x), _published({each: TABLE_9[each] for each in numbers}, x)
    marks = over(rows, x), over(printed, x, CROSSES), ticks(numbers)
    panels = panels_by("width", *marks, title="width {}".format, values=widths, xlabel="training images")
    text = f"{len(rows)} networks of {len(source.cells)}. Lines: here; crosses: Table 9 of the paper."
    size, layout = (3.7 * len(widths), 4.6), {"ylabels": [PERCENT], "share_y": True}
    return drawn(rows, text + _differences(source), [panels], size, COLUMNS_9, **layout, **BELOW)


# ImageNet.

IMAGENET_LOSS = "ImageNet, training loss"


def figure_5(source: Source) -> Artifact:
    """Training losses on ImageNet; the lab only checks on a sample that data, rules and networks fit together."""
    found = tidy.networks(source)
    columns = ("rule", "width", "seed", "rate", "epoch", "train_loss", DIFFERS)
    rows = [
        {**{name: each.labels[name] for name in ("rule", "width", DIFFERS)}, "seed": each.seed, "rate": each.rates[0]}
        | {"epoch": epoch, "train_loss": float(loss)}
        for each in found
        for epoch, loss in enumerate(each.loss[0], start=1)
    ]
    check = ": a check of the pipeline on a sample of 1,000 images" if source.profile == "lab" else ""
    losses = panel(
        over(rows, "epoch", y="train_loss"),
        lambda axis: axis.set_title(IMAGENET_LOSS + check, fontsize="small"),
        ticks(sorted({row["epoch"] for row in rows}), log=False),
        xlabel="epoch",
        ylabel="mean training loss of the epoch",
    )
    ends = {
        "loss, first epoch": lambda rule: f"{chosen(rows, rule=rule)[0]['train_loss']:.5f}",
        "last": lambda rule: f"{chosen(rows, rule=rule)[-1]['train_loss']:.5f}",
    }
    text = f"{IMAGENET_LOSS}{check}. {_counted(len(found), source)}.\n\n"
    text += by_rule([each.labels["rule"] for each in found], ends) + _differences(source)
    return drawn(rows, text, [[losses]], (6.5, 4.6), columns, legends=[(0, 0)])


def check_sample(source: Source) -> None:
    """Raises `InputError` if the lab has to train on the sample of ImageNet, and the environment does not name it."""
    missing = source.profile == "lab" and waiting(unique(source.cells), source.folder, source.configs)
    if missing and not os.environ.get(runs.IMAGENET_SAMPLE):
        raise InputError(
            f"{runs.IMAGENET_SAMPLE}: must name the folder of the sample of ImageNet, TFRecords train-* and "
            "validation-*; it is not set"
        )


# Seconds of a step.


def figure_7(source: Source) -> Artifact:
    """Seconds of a step by width, as `benchmarks/wide.py` timed them; the paper shows those of an epoch."""
    return time_figure(tidy.read_rounds(source.folder))


def time_figure(rounds: tidy.Rounds) -> Artifact:
    """Returns medians and quartiles of the seconds of a step, and of their ratio to gradient descent in a round."""
    rows, widths = tidy.times(rounds), sorted(rounds["normal"])
    samples = [
        {"rule": rule, "width": width, "seconds": seconds}
        for rule, own in rounds.items()
        for width, every in own.items()
        for seconds in every
    ]
    marks = lines(samples, "width", "seconds", "rule", RULE_STYLES, draw.quartiles), ticks(widths)
    seconds = panel(*marks, yscale="log", xlabel="filters of each convolution", ylabel="seconds of a step")

    def cell(rule: str, width: int) -> str:
        return "{seconds:.3f} s ({ratio:.2f})".format(**chosen(rows, rule=rule, width=width)[0])

    text = by_rule(list(rounds), by_width(widths, cell), "step (ratio to Normal)")
    text += "\n\nMedians over rounds, of the ratio those of the ratios within a round; bars are quartiles. The 8-layer "
    text += "CIFAR-10 network on random images. Differs from the paper: one step, not an epoch; on a CPU."
    return drawn(rows, text, [[seconds]], (5.6, 4.6), tidy.TIME_COLUMNS, legends=[(0, 0)])


# Alignment scores.

_LOOKS = ("o", "-", 0.6), ("s", "--", 0.45), ("D", "-.", 0.25), ("^", ":", 0.0)

WIDTH_STYLES = {width: Style(f"x{width}", *look) for width, look in zip(runs.SCORED_WIDTHS, _LOOKS, strict=True)}
"""Width -> look of its scores."""


def score_figure(x: str, rows_of: Callable[[Source, str], list[Row]], note: str, *series: tuple) -> Make:
    """Returns the function that makes a figure of scores over a column x, with a panel for each of `SHOWN_SCORES`.

    `rows_of` returns the rows of an entry of `SCORED`, and `note` begins the text. Each of the series is a column of
    scores, their looks by width, and how those with the same x are combined.
    """

    def make(source: Source) -> Artifact:
        rows = [{"setting": name, **row} for name in runs.SHOWN_SCORES for row in rows_of(source, name)]
        panels = [
            panel(
                *(lines(own, x, column, "width", styles, summary) for column, styles, summary in series),
                ticks(sorted({row[x] for row in own}), log=False),
                title=SCORED[name].title,
                xlabel=x,
                ylim=(0, 1.02),
            )
            for name, own in ((name, chosen(rows, setting=name)) for name in runs.SHOWN_SCORES)
        ]
        differences = (f"{SCORED[name].title}: {SCORED[name].differs}." for name in runs.SHOWN_SCORES)
        text, columns = " ".join([note, *differences]), ("setting", "epoch", *tidy.SCORE_COLUMNS)
        return drawn(rows, text, [panels], (10, 4.2), columns, ylabels=["alignment score"], share_y=True, **BELOW)

    return make


figure_1 = score_figure(
    "layer",
    tidy.final_scores,
    "Small crosses: the paper's scores.",
    ("score", WIDTH_STYLES, draw.mean_and_deviation),
    ("paper_score", _changed(WIDTH_STYLES, marker="x", line=""), draw.first),
)
figure_8 = score_figure(
    "epoch",
    tidy.scores,
    "Means over layers and seeds; open: permuted weights.",
    ("score", WIDTH_STYLES, _middle(statistics.fmean)),
    ("permuted_score", _changed(WIDTH_STYLES, filled=False), _middle(statistics.fmean)),
)

# The Add task.

LOSS_STYLES = _styles(
    normal=("o", "-", 0.0), align_ada=("s", "-", 0.3), align_zero=("^", "-", 0.5), readout_only=("D", "-", 0.65)
)


def figure_9(source: Source) -> Artifact:
    """The losses over the width; crosses are the paper's, bars the other seeds' mean and standard deviation."""
    rows = tidy.losses(source)
    published, others = by_seed(rows)
    printed = [
        {"rule": rule, "width": width, "test_loss": own[width].test, "train_loss": own[width].train}
        for rule, own in TABLE_8.items()
        for width in WIDTHS
    ]
    panels = [
        panel(
            lines(published, "width", name, "rule", LOSS_STYLES),
            lines(others, lambda row: 1.08 * row["width"], name, "rule", _changed(LOSS_STYLES, line="", filled=False)),
            lines(printed, "width", name, "rule", _changed(LOSS_STYLES, marker="x", line=""), markersize=7),
            draw.level(chance, "the constant 0.5"),
            ticks(WIDTHS),
            title=name.replace("_", " "),
            xlabel="hidden units m",
            yscale="log",
        )
        for name, chance in (("test_loss", CHANCE.test), ("train_loss", CHANCE.train))
    ]
    layout = {"ylabels": ["lowest loss over the epochs"], "share_y": True, **BELOW}
    text = "Lines: seed 99, test loss left, training loss right. Crosses: the paper. Bars: mean and standard deviation "
    text += f"of seeds {runs.ADD_SEEDS[0]} to {runs.ADD_SEEDS[-1]}. Dotted: the constant 0.5. "
    return drawn(rows, text + largest_difference(rows), [panels], (10, 4.5), tidy.LOSS_COLUMNS, **layout)


# Outputs and updates beside those of gradient descent.

UPDATE_STYLES = _styles(normal=("o", "-", 0.0), align_ada=("s", "-", 0.2), align_zero=("^", "--", 0.5))


def proposition_2(source: Source) -> Artifact:
    """‖f - f_align‖ at the end of training by width, and the fitted exponents."""
    rows = tidy.distances(source)
    last = max((row["step"] for row in rows), default=0)
    ends = {name: chosen(rows, step=last, activation=name) for name in runs.ACTIVATIONS}

    def distance(own: Sequence[Row], width: int) -> str:
        found = [row["distance"] for row in chosen(own, width=width)]
        return f"{statistics.geometric_mean(found):.4f}" if found else ""

    columns = {
        "activation": "activation",
        "rule": lambda own: RULE_NAMES[own[0]["rule"]],
        "seeds": lambda own: len(grouped(own, "seed")),
        "exponent": _exponent_text,
        **by_width(runs.SHOWN_UPDATES, distance),
    }
    text = table([row for own in ends.values() for row in own], ("activation", "rule"), columns)
    text += f"\n\nFitted from x{tidy.FITTED} on, a line for each seed: mean and standard error; the proposition: -0.5 "
    panels = [_distance_panel(ends[name], title) for name, title in runs.ACTIVATIONS.items()]
    layout = {"ylabels": [f"‖f − f_align‖ after {last} steps"], "legends": [(0, 0), (0, 1)], "share_y": True}
    return drawn(rows, f"{text}or less.", [panels], (10, 4.4), tidy.DISTANCE_COLUMNS, **layout)


def _distance_panel(rows: Sequence[Row], title: str) -> Panel:
    """Returns a panel of the distances of each rule, with the fit of their decline."""
    marks, widths = [], runs.UPDATE_WIDTHS
    for (rule,), own in grouped(rows, "rule").items():
        style = UPDATE_STYLES[rule]
        means = dataclasses.replace(style, label=f"{style.label}: m^({_exponent_text(own)})", line="")
        marks.append(lines(own, "width", "distance", None, means, _middle(statistics.geometric_mean), markersize=6))
        every = ([row[name] for row in own] for name in ("width", "distance"))
        marks.append(points(*every, Style(None, ".", "", 0.7), markersize=3))
        slopes, factor = tidy.exponent(own)
        if slopes.known:
            xs = np.array(sorted({row["width"] for row in own if row["width"] >= tidy.FITTED}), float)
            marks.append(points(xs, factor * xs**slopes.mean, dataclasses.replace(style, label=None, marker="")))
    axes = {"xlabel": "hidden units m", "yscale": "log", "xlim": (widths[0] / 1.3, widths[-1] * 1.3)}
    return panel(*marks, ticks(widths), title=title, **axes)


def _exponent_text(rows: Sequence[Row]) -> str:
    slopes, _ = tidy.exponent(rows)
    return f"{slopes.mean:.2f} ± {slopes.error:.2f}" if slopes.known else "not yet run"


UPDATE_COLUMNS = ("width", "seed", "rule", "row", "column", "update")


def figure_2(source: Source) -> Artifact:
    """Changes of the second layer by gradient descent, Align-ada and Align-zero, narrow above and wide below."""
    seed = runs.UPDATE_SEEDS[0]
    found = {width: source.chosen(width=width, seed=seed) for width in runs.SHOWN_UPDATES}
    arrays = {width: results[0].arrays for width, results in found.items() if results}
    rows = [
        {"width": width, "seed": seed, "rule": rule, "row": row, "column": column, "update": float(value)}
        for width, own in arrays.items()
        for rule in COMPARED_RULES
        for (row, column), value in np.ndenumerate(own[f"{rule}_update"])
    ]
    panels = [[_update_panel(rule, width, arrays.get(width)) for rule in COMPARED_RULES] for width in found]
    columns = {"width": lambda own: f"x{own[0]['width']}"} | {
        f"cosine of ΔW, {RULE_NAMES[rule]} to Normal": lambda own, rule=rule: (
            f"{arrays[own[0]['width']][f'{rule}_cosine'][-1, 1]:.4f}"
        )
        for rule in ALIGNED
    }
    text = table([{"width": width} for width in arrays], ["width"], columns)
    text += f"\n\nThe second layer of a tanh network, its first {runs.SIZES['side']} units each way; "
    text += "the cosine is that of the whole layer. Shades are the same for all of a width."
    return drawn(rows, text, panels, (8.4, 5.6), UPDATE_COLUMNS, ylabels=["unit of layer 1"] * 2)


def _update_panel(rule: str, width: int, arrays: Mapping[str, np.ndarray] | None) -> Panel:
    """Returns a panel of the update by one rule; its shades are the same for all rules."""
    axes = {"xlabel": "unit of layer 2", "xticks": [], "yticks": []}
    title = f"{RULE_NAMES[rule]}, x{width}"
    if arrays is None:
        return panel(title=f"{title}: not yet run", **axes)
    largest = max(abs(arrays[f"{each}_update"]).max() for each in COMPARED_RULES)
    return panel(draw.image(arrays[f"{rule}_update"], vmin=-largest, vmax=largest), title=title, **axes)
