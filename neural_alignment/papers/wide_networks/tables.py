"""Tables 1, 2, 6, 7, 9 and 10 of Boopathy and Fiete 2022: accuracies of convolutional networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, spread, table
from neural_alignment.papers.wide_networks.networks import COLUMNS, DIFFERS, networks, row_of
from neural_alignment.papers.wide_networks.printed import TABLE_1, TABLE_2, TABLE_6, TABLE_7, TABLE_9, TABLE_10
from neural_alignment.papers.wide_networks.runs import RULE_STYLES, SEEDED_WIDTH
from neural_alignment.reporting import Artifact, Row

DIFFERENCES = "differs from the paper (paper)"
"""Header of the last column of the tables."""

REMARK = (
    "Accuracies are percent, the best over epochs and rates. The paper's are of a held-out part of the training "
    "images, on which it chooses epoch and rate as well: here validation. Test is that network on the test images. In "
    "brackets: the paper's value."
)


def label(rows: Sequence[Row]) -> str:
    """Returns the name of the rule of some rows."""
    return RULE_STYLES[rows[0]["rule"]].label


def _accuracies(rows: Sequence[Row], **key: Any) -> str:
    """Returns the accuracies of the rows with some labels, and that of the paper in brackets."""
    own = chosen(rows, **key)
    if not own:
        return "not yet run"
    paper = own[0]["paper_accuracy"]
    validation, test = (spread(own, f"{part}_accuracy") for part in ("validation", "test"))
    return f"{validation}, test {test} ({'-' if math.isnan(paper) else f'{paper:.1f}'})"


def _grid(rows: Sequence[Row], source: Source, **key: Any) -> str:
    """Returns a table of rules by widths, of the networks with some labels."""
    labels = [cell.labels for cell in source.cells if key.items() <= cell.labels.items()]
    differs = {each["rule"]: each[DIFFERS] for each in labels}
    columns: dict[str, Any] = {"rule": label}
    for width in sorted({each["width"] for each in labels}):
        columns[f"x{width}"] = lambda own, width=width: _accuracies(rows, **key, rule=own[0]["rule"], width=width)
    columns[DIFFERENCES] = lambda own: differs[own[0]["rule"]] or "-"
    return table([{"rule": rule} for rule in RULE_STYLES if rule in differs], ["rule"], columns)


def _by_width(source: Source, paper: Mapping[str, Mapping[int, float]], *more: str) -> Artifact:
    """Returns a table of rules by widths; `more` are further paragraphs."""
    rows = [row_of(network, paper) for network in networks(source)]
    return Artifact(COLUMNS, rows, "\n\n".join([_grid(rows, source), REMARK, *more]))


def table_1(source: Source) -> Artifact:
    """Align-prop beside all other rules; the paper has it only at widths 128, 256 and 512."""
    columns = {"the paper": label} | {f"x{width}": width for width in TABLE_1["align_prop"]}
    printed = table([{"rule": rule, **row} for rule, row in TABLE_1.items()], ["rule"], columns)
    return _by_width(source, {**TABLE_6, "align_prop": TABLE_1["align_prop"]}, printed)


def table_2(source: Source) -> Artifact:
    """Mean and standard deviation over five seeds at one width; the paper has another width than the lab."""
    width, papers = SEEDED_WIDTH[source.profile], SEEDED_WIDTH["paper"]
    other = "" if width == papers else f"width {width} ({papers}); "
    found = [row_of(each, {rule: {width: mean} for rule, (mean, _) in TABLE_2.items()}) for each in networks(source)]
    rows = [{**row, DIFFERS: other + row[DIFFERS]} for row in found]
    differs = {cell.labels["rule"]: other + cell.labels[DIFFERS] for cell in source.cells}
    columns = {
        "rule": label,
        "seeds": lambda own: len(chosen(rows, rule=own[0]["rule"])),
        "validation": lambda own: spread(chosen(rows, rule=own[0]["rule"]), "validation_accuracy"),
        "test": lambda own: spread(chosen(rows, rule=own[0]["rule"]), "test_accuracy"),
        f"paper, x{papers}": lambda own: "{} ± {}".format(*TABLE_2[own[0]["rule"]]),
        DIFFERENCES: lambda own: differs[own[0]["rule"]] or "-",
    }
    text = table([{"rule": rule} for rule in TABLE_2], ["rule"], columns)
    return Artifact(COLUMNS, rows, f"{text}\n\n{REMARK}")


def table_6(source: Source) -> Artifact:
    """CIFAR-10, by width."""
    return _by_width(source, TABLE_6)


def table_7(source: Source) -> Artifact:
    """KMNIST, by width."""
    return _by_width(source, TABLE_7)


COLUMNS_9 = ("rule", "width", "train_images", *COLUMNS[2:])


def rows_of_9(source: Source) -> list[Row]:
    """Returns the rows of Table 9."""
    return [row_of(each, TABLE_9[each.labels["train_images"]], "train_images") for each in networks(source)]


def table_9(source: Source) -> Artifact:
    """Small CIFAR-10, by number of training images and width."""
    rows = rows_of_9(source)
    numbers = sorted({cell.labels["train_images"] for cell in source.cells})
    parts = [f"{number} training images:\n\n{_grid(rows, source, train_images=number)}" for number in numbers]
    rows = [{name: row[name] for name in COLUMNS_9[:-1]} for row in rows]
    return Artifact(COLUMNS_9[:-1], rows, "\n\n".join([*parts, REMARK]))


def table_10(source: Source) -> Artifact:
    """Standard parameterization, Adam: all epochs, one epoch, and one epoch at a small rate."""
    rows = [row_of(each, TABLE_10[each.labels["setting"]], "setting") for each in networks(source)]
    parts = [f"The paper's {setting}:\n\n{_grid(rows, source, setting=setting)}" for setting in TABLE_10]
    return Artifact(("setting", *COLUMNS), rows, "\n\n".join([*parts, REMARK]))
