"""The tables of Boopathy and Fiete 2022: accuracies, alignment scores, losses on the Add task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from neural_alignment.papers.claims import NOT_YET, difference, seeds_by
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Column, chosen, crossed, grouped, runs_of, spread, table
from neural_alignment.papers.wide_networks import rows as tidy
from neural_alignment.papers.wide_networks.compute.add_task import ADD_TASK_RULES, PUBLISHED_SEED, TIME
from neural_alignment.papers.wide_networks.printed import (
    BY_WIDTH,
    CHANCE,
    TABLE_1,
    TABLE_2,
    TABLE_6,
    TABLE_7,
    TABLE_9,
    TABLE_10,
)
from neural_alignment.papers.wide_networks.rows import COLUMNS, DIFFERS
from neural_alignment.papers.wide_networks.runs import COMPARED, RULE_NAMES, SCORED, SEEDED_WIDTHS
from neural_alignment.reporting import Artifact, Row

Make = Callable[[Source], Artifact]

DIFFERENCES = "differs from the paper (paper)"
"""Header of the last column of the tables."""

REMARK = (
    "Accuracies are percent, the best over epochs and rates. The paper's are of a held-out part of the training "
    "images, on which it chooses epoch and rate as well: here validation. Test is that network on the test images. In "
    "brackets: the paper's value."
)


def by_rule(rules: Sequence[str], columns: Mapping[str, Callable[[str], object]], corner: str = "rule") -> str:
    """Returns a Markdown table with a line per rule: header -> content of a cell, from the rule."""
    return crossed(corner, {RULE_NAMES[rule]: rule for rule in rules}, columns, lambda rule, cell: cell(rule))


def by_width(widths: Iterable[int], cell: Callable[[Any, int], object]) -> dict[str, Callable[[Any], object]]:
    """Returns a column for each width; `cell` gives its content from a line and the width."""
    return {f"x{width}": partial(cell, width=width) for width in widths}


def _accuracies(rows: Sequence[Row]) -> str:
    """Returns the accuracies of some rows, and that of the paper in brackets."""
    if not rows:
        return NOT_YET
    paper = rows[0]["paper_accuracy"]
    validation, test = (spread(rows, f"{part}_accuracy") for part in ("validation", "test"))
    return f"{validation}, test {test} ({'-' if math.isnan(paper) else f'{paper:.1f}'})"


def differences(source: Source) -> str:
    """Returns paragraphs about the differences between the networks of a table or figure and those of the paper."""
    labels = [cell.labels for cell in source.cells]
    found = grouped(labels, DIFFERS)
    return "".join(
        f"\n\n{_whose(own, labels)} from the paper (paper): {text}." for (text,), own in sorted(found.items()) if text
    )


def _whose(own: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]) -> str:
    """Returns the beginning of a sentence about some of the networks: which data sets or rules differ, if not all."""
    for key, names in (("dataset", {}), ("rule", RULE_NAMES)):
        ours, all_values = ({each[key]: None for each in group if key in each} for group in (own, every))
        if len(ours) < len(all_values):
            return f"{', '.join(names.get(value, value) for value in ours)} differ{'' if len(ours) > 1 else 's'}"
    return "Differs"


def _grid(rows: Sequence[Row], source: Source, **key: Any) -> str:
    """Returns a table of rules by widths, of the networks with some labels."""
    labels = [cell.labels for cell in source.cells if key.items() <= cell.labels.items()]
    differs = {each["rule"]: each[DIFFERS] for each in labels}
    widths = sorted({each["width"] for each in labels})
    columns = by_width(widths, lambda rule, width: _accuracies(chosen(rows, **key, rule=rule, width=width)))
    columns[DIFFERENCES] = lambda rule: differs[rule] or "-"
    return by_rule([rule for rule in RULE_NAMES if rule in differs], columns)


def accuracy_table(
    printed: Mapping[Any, Any], *more: str, key: str = "", heading: str = "", columns: Sequence[str] = COLUMNS
) -> Make:
    """Returns the function that makes a table of accuracies by rule and width, with those that the paper prints.

    `printed` and `key` are as of `rows.accuracies`. A key divides the table into parts, each with a heading, in which
    {} stands for the value of the key. `more` are further paragraphs, `columns` those of the CSV file. Of a network
    with a row per rate the text shows the best one.
    """
    labels = [name for name in columns if name not in COLUMNS and name != key]

    def make(source: Source) -> Artifact:
        rows = [{name: row[name] for name in columns} for row in tidy.accuracies(source, printed, key, labels)]
        values = [value for value in printed if any(cell.labels[key] == value for cell in source.cells)] if key else []
        best = tidy.best_rates(rows, *labels, *([key] if key else []))
        grids = [f"{heading.format(value)}:\n\n{_grid(best, source, **{key: value})}" for value in values]
        return Artifact(columns, rows, "\n\n".join([*(grids or [_grid(best, source)]), REMARK, *more]))

    return make


COLUMNS_9 = ("rule", "width", "train_images", *COLUMNS[2:])

_COLUMNS_1 = by_width(TABLE_1["align_prop"], lambda rule, width: TABLE_1[rule][width])
_PRINTED_1 = by_rule(list(TABLE_1), _COLUMNS_1, "the paper")

table_1 = accuracy_table({**TABLE_6, "align_prop": TABLE_1["align_prop"]}, _PRINTED_1)
table_6 = accuracy_table(TABLE_6)
table_7 = accuracy_table(TABLE_7)
table_9 = accuracy_table(TABLE_9, key="train_images", heading="{} training images", columns=COLUMNS_9[:-1])
longer = accuracy_table(BY_WIDTH, key="dataset", heading="{}", columns=("dataset", *COLUMNS))
subsets = accuracy_table(TABLE_9, key="train_images", heading="{} training images", columns=("subset", *COLUMNS_9[:-1]))
table_10 = accuracy_table(TABLE_10, key="setting", heading="The paper's {}", columns=("setting", *COLUMNS))


def table_2(source: Source) -> Artifact:
    """Mean and standard deviation over five seeds at one width; the paper has another width than the lab."""
    [width], [papers] = SEEDED_WIDTHS[source.profile], SEEDED_WIDTHS["paper"]
    other = "" if width == papers else f"width {width} ({papers}); "
    found = tidy.accuracies(source, {rule: {width: mean} for rule, (mean, _) in TABLE_2.items()})
    rows = [{**row, DIFFERS: other + row[DIFFERS]} for row in found]
    differs = {cell.labels["rule"]: other + cell.labels[DIFFERS] for cell in source.cells}
    columns: dict[str, Callable[[str], object]] = {
        "seeds": lambda rule: len(chosen(rows, rule=rule)),
        "validation": lambda rule: spread(chosen(rows, rule=rule), "validation_accuracy"),
        "test": lambda rule: spread(chosen(rows, rule=rule), "test_accuracy"),
        f"paper, x{papers}": lambda rule: "{} ± {}".format(*TABLE_2[rule]),
        DIFFERENCES: lambda rule: differs[rule] or "-",
    }
    return Artifact(COLUMNS, rows, f"{by_rule(list(TABLE_2), columns)}\n\n{REMARK}")


def seeds(source: Source) -> Artifact:
    """Backpropagation and Align-ada over seeds at a narrow and a wide width, and the gap between them."""
    columns = ("dataset", *COLUMNS)
    rows = tidy.accuracies(source, BY_WIDTH, "dataset")
    cells: dict[str, Column] = {"data set": "dataset", "width": "width"} | {
        RULE_NAMES[rule]: lambda own, rule=rule: spread(chosen(own, rule=rule), "validation_accuracy")
        for rule in COMPARED
    }

    def gap(own: Sequence[Row]) -> str:
        by_rule = seeds_by(own, "rule", "validation_accuracy")
        if len(by_rule) < len(COMPARED):
            return NOT_YET
        found = difference(*(by_rule[rule] for rule in COMPARED))
        error = f" ± {found.error:.2f}" if len(found.known) > 1 else ""
        return f"{found.mean:.2f}{error} ({len(found.known)})"

    cells["gap ± its standard error (seeds)"] = gap
    text = f"{table(rows, ('dataset', 'width'), cells)}\n\nValidation accuracy in percent, mean and standard deviation."
    return Artifact(columns, rows, text + differences(source))


def score_table(name: str) -> Make:
    """Returns the function that makes a table of the final scores of an entry of `SCORED`, with the printed ones."""

    def make(source: Source) -> Artifact:
        rows = tidy.final_scores(source, name)
        layers, widths = (sorted({row[key] for row in rows}) for key in ("layer", "width"))
        down, across = {f"layer {layer}": layer for layer in layers}, {f"x{width}": width for width in widths}

        def cell(layer: int, width: int) -> str:
            own = chosen(rows, layer=layer, width=width)
            return f"{spread(own, 'score'):.3f} ({own[0]['paper_score']:.3f})" if own else NOT_YET

        means = (
            ", ".join(f"{spread(chosen(rows, width=width), column).mean:.3f} (x{width})" for width in widths)
            for column in ("score", "permuted_score")
        )
        last = "Mean over layers and seeds: {}; with permuted weights {}.".format(*means) if rows else "No network yet."
        text = crossed("score (paper)", down, across, cell)
        seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
        text += f"\n\nMean and standard deviation over the seeds {seeds}. {SCORED[name].differs}. {last}"
        return Artifact(tidy.SCORE_COLUMNS, [{key: row[key] for key in tidy.SCORE_COLUMNS} for row in rows], text)

    return make


def by_seed(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Returns the rows of the published seed, and those of the other seeds."""
    return chosen(rows, seed=PUBLISHED_SEED), [row for row in rows if row["seed"] != PUBLISHED_SEED]


def table_8(source: Source) -> Artifact:
    """The lowest training and test losses, each over the epochs by itself, and the printed ones."""
    rows = tidy.losses(source)
    columns = {
        "rule": lambda own: RULE_NAMES[own[0]["rule"]],
        "hidden units": "width",
        "train (paper)": lambda own: _loss(own, "train"),
        "test (paper)": lambda own: _loss(own, "test"),
        "other seeds": lambda own: runs_of([{"diverged": math.isnan(row["test_loss"])} for row in by_seed(own)[1]]),
        "train, others": lambda own: spread(by_seed(own)[1], "train_loss"),
        "test, others": lambda own: spread(by_seed(own)[1], "test_loss"),
    }
    ordered = sorted(rows, key=lambda row: (list(ADD_TASK_RULES).index(row["rule"]), row["width"]))
    text = f"{table(ordered, ('rule', 'width'), columns)}\n\nSums over {TIME} steps; the constant 0.5 has "
    return Artifact(tidy.LOSS_COLUMNS, rows, f"{text}{CHANCE.train} and {CHANCE.test}. {largest_difference(rows)}")


def _loss(rows: Sequence[Row], part: str) -> str:
    """Returns a loss of the published seed, and the printed one."""
    published, _ = by_seed(rows)
    if not published:
        return NOT_YET
    return f"{published[0][f'{part}_loss']:.3f} ({published[0][f'paper_{part}_loss']:.3f})"


def largest_difference(rows: Sequence[Row]) -> str:
    """Returns a sentence about the largest difference between the published seed and the printed losses."""
    published, parts = by_seed(rows)[0], ("train_loss", "test_loss")
    if not published:
        return f"No network of seed {PUBLISHED_SEED} yet."
    largest = max(abs(row[part] - row[f"paper_{part}"]) for row in published for part in parts)
    return f"Largest difference of seed {PUBLISHED_SEED} to the paper: {largest:.4f}."
