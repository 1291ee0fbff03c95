"""The figures of Boopathy and Fiete 2022: accuracies, alignment scores, losses, updates and seconds of a step."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neural_alignment.errors import InputError
from neural_alignment.jobs.plans import unique, waiting
from neural_alignment.papers import figures as draw
from neural_alignment.papers.figures import Panel, Style, drawn, lines, panel, panels_by, points, ticks
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key, chosen, grouped, table
from neural_alignment.papers.wide_networks import rows as tidy
from neural_alignment.papers.wide_networks import runs
from neural_alignment.papers.wide_networks.compute.limits import QUANTITIES
from neural_alignment.papers.wide_networks.compute.updates import ALIGNED, COMPARED_RULES
from neural_alignment.papers.wide_networks.printed import BY_WIDTH, CHANCE, TABLE_8, TABLE_9, WIDTHS
from neural_alignment.papers.wide_networks.rows import COLUMNS, DIFFERS
from neural_alignment.papers.wide_networks.runs import RULE_NAMES, SCORED, TABLE_RULES
from neural_alignment.papers.wide_networks.tables import (
    COLUMNS_9,
    Make,
    by_rule,
    by_seed,
    by_width,
    differences,
    largest_difference,
)
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

TITLES = {"cifar10": "CIFAR-10", "kmnist": "KMNIST"}
"""Data set -> title."""

ACCURACY, PERCENT = "validation_accuracy", "validation accuracy (%)"
"""Column, and its label in figures."""


def over(rows: Sequence[Row], x: str) -> draw.RowMark:
    """Returns the accuracies of each rule over x on a logarithmic axis; of several seeds the first is drawn."""
    return lines(rows, moved(x, RULE_STYLES), ACCURACY, "rule", RULE_STYLES, draw.first)


def moved(x: str, rules: Iterable[str], factor: float = 1.03) -> Key:
    """Returns x of a row on a logarithmic axis, moved a little by rule: by a factor from each to the next."""
    return draw.apart(x, "rule", [*rules], lambda place, number: place * factor**number)


MOVED = "Rules are moved apart a little."
"""Sentence below figures whose x is that of `moved`."""


def _one_seed(rows: Sequence[Row], what: str) -> str:
    """Returns the sentences below figures that `over` draws: the seed of the lines, and `MOVED`."""
    return f"{what} one seed ({rows[0]['seed']}). {MOVED}" if rows else MOVED


def _published(numbers: Mapping[Any, Mapping[str, Mapping[int, float]]], key: str) -> list[Row]:
    """Returns a row per published accuracy: value of a key column -> rule -> width -> accuracy."""
    return [
        {key: value, "rule": rule, "width": width, ACCURACY: accuracy}
        for value, rules in numbers.items()
        for rule, own in rules.items()
        for width, accuracy in own.items()
    ]


CHANCE_LEVEL = draw.level(10, "chance")

OURS, PAPERS = "{}, here", "{}, the paper"
"""Titles of panels of the same axes: our results, and the published ones."""


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
    axes = {"xlabel": "learning rate", "ylabel": PERCENT}
    places = ticks(sorted({row["rate"] for row in rows}) or [1.0])
    panels = [
        panels_by("width", over(own, "rate"), CHANCE_LEVEL, places, title=title, values=widths, **axes)
        for name in names
        for own, title in [(chosen(rows, dataset=name), f"{TITLES[name]}, width {{}}".format)]
    ]
    text = f"{_counted(len(found), source)}. Nothing is drawn where J became infinite.{differences(source)}"
    size = (4.4 * len(widths), 1 + 3.8 * len(panels))
    return drawn(rows, text, panels, size, columns, share_y="row", note=_one_seed(rows, "Lines:"), **BELOW)


def figure_4(source: Source) -> Artifact:
    """Accuracy over the width, beside the accuracies that the paper prints."""
    rows, printed = tidy.accuracies(source, BY_WIDTH, "dataset"), _published(BY_WIDTH, "dataset")
    axes = {"xlabel": "filters of each convolution", "ylabel": PERCENT}
    panels = []
    for own, title in (
        (tidy.best_rates(rows, "dataset"), lambda name: OURS.format(TITLES[name])),
        (printed, lambda name: PAPERS.format(TITLES[name])),
    ):
        widths = sorted({row["width"] for row in own}) or WIDTHS
        marks = (over(own, "width"), CHANCE_LEVEL, ticks(widths))
        axes["xlim"] = widths[0] / 1.3, widths[-1] * 1.3
        panels.append(panels_by("dataset", *marks, title=title, values=TITLES, **axes))
    text = f"{_counted(len(rows), source)}. Left: here; right: Tables 6 and 7 of the paper, with its protocol."
    note = f"Left and right have different axes. {_one_seed(rows, 'Here:')}"
    by_dataset = [*zip(*panels, strict=True)]
    return drawn(rows, text + differences(source), by_dataset, (10, 8), ("dataset", *COLUMNS), note=note, **BELOW)


def figure_6(source: Source) -> Artifact:
    """Accuracy over the number of training images, above the accuracies that the paper prints."""
    x = "train_images"
    widths, numbers = (sorted({cell.labels[name] for cell in source.cells}) for name in ("width", x))
    rows, printed = tidy.accuracies(source, TABLE_9, x), _published({each: TABLE_9[each] for each in numbers}, x)
    panels = [
        panels_by(
            "width", over(own, x), CHANCE_LEVEL, ticks(numbers), title=title, values=widths, xlabel="training images"
        )
        for own, title in ((rows, "width {}, here".format), (printed, "width {}, the paper".format))
    ]
    text = f"{_counted(len(rows), source)}. Above: here; below: Table 9 of the paper."
    size, layout = (3.7 * len(widths), 7.6), {"ylabels": [PERCENT] * 2, "share_y": True, **BELOW}
    note = _one_seed(rows, "Here:")
    return drawn(rows, text + differences(source), panels, size, COLUMNS_9, note=note, **layout)


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
        lines(rows, "epoch", "train_loss", "rule", RULE_STYLES, draw.first),
        lambda axis: axis.set_title(IMAGENET_LOSS + check, fontsize="small"),
        ticks(sorted({row["epoch"] for row in rows}), log=False),
        xlabel="epoch",
        ylabel="mean training loss of the epoch",
    )

    def loss(rule: str, place: int) -> str:
        own = chosen(rows, rule=rule)
        return f"{own[place]['train_loss']:.5f}" if own else "diverged"

    ends = {"loss, first epoch": lambda rule: loss(rule, 0), "last": lambda rule: loss(rule, -1)}
    text = f"{IMAGENET_LOSS}{check}. {_counted(len(found), source)}.\n\n"
    text += by_rule([each.labels["rule"] for each in found], ends) + differences(source)
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
    """Returns the seconds of a step in each round, and shows their medians and quartiles."""
    rows, widths = tidy.times(rounds), sorted(rounds["normal"])
    panels = [
        panel(
            lines(rows, moved("width", rounds), name, "rule", RULE_STYLES, draw.quartiles),
            ticks(widths),
            xlabel="filters of each convolution",
            **axes,
        )
        for name, axes in (
            ("seconds", {"yscale": "log", "ylabel": "seconds of a step"}),
            ("ratio", {"ylabel": "seconds over those of Normal", "ylim": (0, None)}),
        )
    ]

    def cell(rule: str, width: int) -> str:
        own = chosen(rows, rule=rule, width=width)
        seconds, ratio = (statistics.median(row[column] for row in own) for column in ("seconds", "ratio"))
        return f"{seconds:.3f} s ({ratio:.2f})"

    text = by_rule(list(rounds), by_width(widths, cell), "step (ratio to Normal)")
    text += "\n\nMedians over rounds, of the ratio those of the ratios within a round; bars are quartiles. The 8-layer "
    text += "CIFAR-10 network on random images. Differs from the paper: one step, not an epoch; on a CPU."
    note = f"Points: medians of the rounds. Bars: quartiles. {MOVED}"
    return drawn(rows, text, [panels], (10, 4.8), tidy.TIME_COLUMNS, note=note, **BELOW)


# Alignment scores.

_LOOKS = ("o", "-", 0.6), ("s", "--", 0.45), ("D", "-.", 0.25), ("^", ":", 0.0)

WIDTH_STYLES = {width: Style(f"x{width}", *look) for width, look in zip(runs.SCORED_WIDTHS, _LOOKS, strict=True)}
"""Width -> look of its scores."""


def score_figure(x: str, rows_of: Callable[[Source, str], list[Row]], note: str, *parts: Sequence) -> Make:
    """Returns the function that makes a figure of scores over a column x, with a panel for each of `SHOWN_SCORES`.

    `rows_of` returns the rows of an entry of `SCORED`, and `note` explains the marks. Each of the parts is a row of
    panels: its title, and functions that return a mark for rows.
    """

    def make(source: Source) -> Artifact:
        rows = [{"setting": name, **row} for name in runs.SHOWN_SCORES for row in rows_of(source, name)]
        panels = [
            [
                panel(
                    *(mark(own) for mark in marks),
                    ticks(sorted({row[x] for row in own}), log=False),
                    title=title.format(SCORED[name].title),
                    xlabel=x,
                    ylim=(0, 1.02),
                )
                for name, own in ((name, chosen(rows, setting=name)) for name in runs.SHOWN_SCORES)
            ]
            for title, *marks in parts
        ]
        differing = (f"{SCORED[name].title}: {SCORED[name].differs}." for name in runs.SHOWN_SCORES)
        text, columns = " ".join([note, *differing]), ("setting", "epoch", *tidy.SCORE_COLUMNS)
        layout = {"ylabels": ["alignment score"] * len(parts), "share_y": True, "note": note, **BELOW}
        return drawn(rows, text, panels, (10, 0.6 + 3.7 * len(parts)), columns, **layout)

    return make


def _scores(x: Key, column: str, summary: draw.Summary, **changes: Any) -> Callable[[Sequence[Row]], draw.Mark]:
    """Returns a function of rows that returns a line per width; `changes` of its look remove it from the legend."""
    styles = _changed(WIDTH_STYLES, **changes) if changes else WIDTH_STYLES
    return lambda rows: lines(rows, x, column, "width", styles, summary)


def _layer_means(column: str, **changes: Any) -> Callable[[Sequence[Row]], draw.Mark]:
    """Returns a function of rows that returns a line per width over the epochs; bars are the range over seeds."""
    draw_lines = _scores(_EPOCH_BY_WIDTH, column, draw.mean_and_range, **changes)
    return lambda rows: draw_lines(
        [
            {**own[0], column: statistics.fmean(row[column] for row in own)}
            for own in grouped(rows, "epoch", "width", "seed").values()
        ]
    )


def _single_scores(x: Key) -> Callable[[Sequence[Row]], draw.Mark]:
    """Returns a function of rows that returns a dot for the score of each seed, in the shade of its width."""
    seeds = SCORED["kmnist"].seeds
    dots = _changed(WIDTH_STYLES, marker=".", line="")
    styles = {(width, seed): style for width, style in dots.items() for seed in seeds}
    return lambda rows: lines(rows, x, "score", lambda row: (row["width"], row["seed"]), styles, draw.first)


_BY_WIDTH = draw.apart("layer", "width", [*WIDTH_STYLES], lambda place, number: place + 0.07 * number)

_EPOCH_BY_WIDTH = draw.apart("epoch", "width", [*WIDTH_STYLES], lambda place, number: place + 0.05 * number)

*_FIRST, _LAST = map(str, SCORED["kmnist"].seeds)
_SEEDS = f"seeds {', '.join(_FIRST)} and {_LAST}"

figure_1 = score_figure(
    "layer",
    tidy.final_scores,
    f"Here: means over {_SEEDS}, and a dot for each. The paper: one seed. Widths are moved apart a little.",
    (OURS, _single_scores(_BY_WIDTH), _scores(_BY_WIDTH, "score", _middle(statistics.fmean))),
    (PAPERS, _scores(_BY_WIDTH, "paper_score", draw.first)),
)
figure_8 = score_figure(
    "epoch",
    tidy.scores,
    f"Means over layers and {_SEEDS}; bars: lowest and highest seed. Filled: scores; open: permuted weights.",
    ("{}", _layer_means("score"), _layer_means("permuted_score", filled=False)),
)

# The Add task.

LOSS_STYLES = _styles(
    normal=("o", "-", 0.0), align_ada=("s", "-", 0.3), align_zero=("^", "-", 0.5), readout_only=("D", "-", 0.65)
)


def _beside(row: Row) -> float:
    """Returns x of the mean of other seeds: the width, moved to the right by rule."""
    return row["width"] * 1.07 ** (1 + list(LOSS_STYLES).index(row["rule"]))


def _left(row: Row) -> float:
    """Returns x of the paper's loss: the width, moved to the left."""
    return row["width"] / 1.1


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
            lines(others, _beside, name, "rule", _changed(LOSS_STYLES, line="", filled=False)),
            lines(printed, _left, name, "rule", _changed(LOSS_STYLES, marker="x", line=""), markersize=5),
            draw.level(chance, "the constant 0.5"),
            ticks(WIDTHS),
            draw.plain_ticks(),
            title=name.replace("_", " "),
            xlabel="hidden units m",
        )
        for name, chance in (("test_loss", CHANCE.test), ("train_loss", CHANCE.train))
    ]
    note = "lines: seed 99; crosses, moved to the left: the paper\n"
    note += "open, moved to the right: mean and standard deviation of seeds "
    note += f"{runs.ADD_SEEDS[0]} to {runs.ADD_SEEDS[-1]}"
    layout = {"ylabels": ["lowest loss over the epochs"], "share_y": True, "note": note, **BELOW}
    text = "Lines: seed 99, test loss left, training loss right. Crosses: the paper. Bars: mean and standard deviation "
    text += f"of seeds {runs.ADD_SEEDS[0]} to {runs.ADD_SEEDS[-1]}. Dotted: the constant 0.5. "
    diverged = [row for row in rows if math.isnan(row["test_loss"])]
    networks = "; ".join(f"{RULE_NAMES[row['rule']]}, {row['width']} units, seed {row['seed']}" for row in diverged)
    text += f"Diverged and not drawn: {networks}. " if diverged else ""
    return drawn(rows, text + largest_difference(rows), [panels], (10, 4.5), tidy.LOSS_COLUMNS, **layout)


# Outputs and updates beside those of gradient descent.

UPDATE_STYLES = _styles(normal=("o", "-", 0.0), align_ada=("s", "--", 0.35), align_zero=("^", ":", 0.55))


DOTS = f"Large: geometric means over seeds. Dots: single seeds. Lines: fits from {tidy.FITTED} units on."


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
    widths = _widths(rows)
    panels = [_distance_panel(ends[name], title, widths) for name, title in runs.ACTIVATIONS.items()]
    layout = {
        "ylabels": [f"‖f − f$_{{align}}$‖ after {last} steps"],
        "legends": [(0, 0), (0, 1)],
        "share_y": True,
        "note": DOTS,
    }
    return drawn(rows, f"{text}or less.", [panels], (10, 4.4), tidy.DISTANCE_COLUMNS, **layout)


def limits(source: Source) -> Artifact:
    """The quantities of Proposition 1, Lemma 1 and equation 57 by width, and their fitted exponents."""
    rows = tidy.limits(source)
    by_quantity = {name: chosen(rows, quantity=name) for name in QUANTITIES}
    columns = {
        "quantity": lambda own: QUANTITIES[own[0]["quantity"]],
        "rule": lambda own: RULE_NAMES[own[0]["rule"]],
        "seeds": lambda own: len(grouped(own, "seed")),
        "exponent": _exponent_text,
    }
    text = table(rows, ("quantity", "rule"), columns)
    text += f"\n\nThe largest value over layers, after {runs.SIZES['moments'][-1]} steps. Exponents are fitted from "
    text += f"x{tidy.FITTED} on; the upper bounds are -1 in Proposition 1 and -0.5 in Lemma 1. Equation 22 is 0 with "
    text += "Align-zero and equation 21 with gradient descent; it is not computed for Align-ada."
    widths = _widths(rows)
    panels = [_distance_panel(own, QUANTITIES[name], widths) for name, own in by_quantity.items()]
    layout = {"legends": [*np.ndindex(2, 3)], "ylabels": ["value at the end"] * 2, "note": DOTS}
    return drawn(rows, text, [panels[:3], panels[3:]], (13.5, 7.5), tidy.LIMIT_COLUMNS, **layout)


def _widths(rows: Sequence[Row]) -> Sequence[int]:
    """Returns the widths of a figure, in ascending order; those of the plan if nothing has been computed."""
    return sorted({row["width"] for row in rows}) or runs.UPDATE_WIDTHS


def _distance_panel(rows: Sequence[Row], title: str, widths: Sequence[int]) -> Panel:
    """Returns a panel of the distances of each rule, with the fit of their decline."""
    marks = []
    for (rule,), own in grouped(rows, "rule").items():
        style = UPDATE_STYLES[rule]
        entry = dataclasses.replace(style, label=f"{style.label}: exponent {_exponent_text(own)}")
        means = dataclasses.replace(style, label=None, line="")
        marks.append(points([], [], entry, markersize=6))
        marks.append(lines(own, "width", "distance", None, means, _middle(statistics.geometric_mean), markersize=6))
        every = ([row[name] for row in own] for name in ("width", "distance"))
        marks.append(points(*every, Style(None, ".", "", 0.7), markersize=3))
        slopes, factor = tidy.exponent(own)
        if slopes.known:
            xs = np.array(sorted({row["width"] for row in own if row["width"] >= tidy.FITTED}), float)
            # The last digits of a fit differ among processors, and the picture would with them.
            ys = [float(f"{y:.6g}") for y in factor * xs**slopes.mean]
            marks.append(points(xs, ys, dataclasses.replace(style, label=None, marker="")))
    axes = {"xlabel": "hidden units m", "xlim": (widths[0] / 1.3, widths[-1] * 1.3)}
    return panel(*marks, ticks(widths), draw.plain_ticks(), title=title, **axes)


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
    note = f"tanh network, seed {seed}; one scale of shades in each row"
    ylabels = [_units(1, width, arrays.get(width)) for width in found]
    return drawn(rows, text, panels, (9.2, 6), UPDATE_COLUMNS, ylabels=ylabels, note=note)


def _units(layer: int, width: int, arrays: Mapping[str, np.ndarray] | None) -> str:
    """Returns the label of an axis with the units of a layer, of which the arrays may have only the first."""
    shown = width if arrays is None else len(arrays["normal_update"])
    return f"unit of layer {layer} ({f'first {shown} of' if shown < width else 'all'} {width:,})"


def _update_panel(rule: str, width: int, arrays: Mapping[str, np.ndarray] | None) -> Panel:
    """Returns a panel of the update by one rule; its shades are the same for all rules."""
    axes = {"xlabel": _units(2, width, arrays), "xticks": [], "yticks": []}
    title = f"{RULE_NAMES[rule]}, x{width}"
    if arrays is None:
        return panel(title=f"{title}: not yet run", **axes)
    largest = max(abs(arrays[f"{each}_update"]).max() for each in COMPARED_RULES)
    marks = [draw.image(arrays[f"{rule}_update"], vmin=-largest, vmax=largest)]
    if rule == [*COMPARED_RULES][-1]:
        marks.append(draw.row_bar("change of W(t)", shrink=0.8))
    return panel(*marks, title=title, **axes)
