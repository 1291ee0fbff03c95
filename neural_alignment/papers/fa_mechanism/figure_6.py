"""Figure 6 of Rahmansetayesh et al.: networks that learn replaced labels."""

from __future__ import annotations

import dataclasses
from typing import Any

from neural_alignment.papers import figures
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.figures import (
    BINS,
    PAIRS,
    RIGHT_ANGLE,
    TERM_ANGLE,
    counted,
    draw_histograms,
    epoch_order,
    layer_panels,
    mean_note,
    other_orders,
    shaded,
)
from neural_alignment.papers.fa_mechanism.runs import FRACTIONS, HIDDEN, LAYERS
from neural_alignment.papers.figures import Panel, drawn, panel, panels_by
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import chosen, grouped, spread, table
from neural_alignment.reporting import Artifact, Row


def _text(own: list[Row]) -> str:
    return FRACTIONS[own[0]["fraction"]].label


def figure_6(source: Source) -> Artifact:
    """Alignment (A) and test error (B) over training with replaced labels."""
    rows = [
        {**labels, **run, **{f"angle_{layer}": measures[f"weight_angle/{LAYERS[layer]}"] for layer in HIDDEN}}
        for labels, run, measures in tidy.evaluations(source)
        for labels in [{"fraction": labels["fraction"]}]
    ]

    def over_epochs(column: str, *marks: Any, **axes: Any) -> Panel:
        return panel(shaded(rows, "epoch", "fraction", FRACTIONS, column), *marks, xlabel="epoch", **axes)

    panels = [over_epochs("test_error_percent", title="(B) test error", ylabel="test error (%)", ylim=(0, 100))]
    for layer in HIDDEN:
        label = "angle of W to Bᵀ (degrees)" if layer == HIDDEN[0] else ""
        title = f"(A) l = {layer}"
        panels.append(over_epochs(f"angle_{layer}", RIGHT_ANGLE, title=title, ylabel=label, ylim=(69, 95)))
    headers = {"test error (%)": "test_error_percent"} | {f"angle, l = {layer}": f"angle_{layer}" for layer in HIDDEN}
    ends = {header: lambda own, column=column: spread(own, column) for header, column in headers.items()}
    last = max(row["epoch"] for row in rows)
    text = f"After 10 epochs, as in the published code, and after {last:g}:\n\n" if last > 10 else ""
    moments = [row for row in rows if row["epoch"] in (10, last)]
    columns = {"labels": _text, "epochs": "epoch", "seeds": len, **ends}
    text += table(moments, ("fraction", "epoch"), columns)
    seeds = counted(*({row["seed"] for row in own} for own in grouped(rows, "fraction").values()))
    return drawn(rows, text, [panels], (14, 3.6), beside=[(0, 4)], note=mean_note(seeds))


def figure_6_terms(source: Source) -> Artifact:
    """Alignment terms of networks that learn replaced labels, a row of panels per part of the labels."""
    found = source.results()
    moment = tidy.moments_of(found[-1][1])[-1]
    rows = [row for labels, own in found for row in tidy.terms(own, [moment], fraction=[labels["fraction"]])]
    plain = {fraction: dataclasses.replace(style, marker="", line="-") for fraction, style in FRACTIONS.items()}
    axes = {"xlabel": "order o", "ylim": (72, 96)}
    groups = grouped(rows, "fraction")
    panels = [
        layer_panels(shaded(own, "order", None, plain[0.0]), RIGHT_ANGLE, first=not fraction, **axes)
        for (fraction,), own in groups.items()
    ]
    columns = {
        "labels": _text,
        "l": "layer",
        "angle of order 60": epoch_order,
        "mean of all others (degrees)": other_orders,
    }
    text = f"k = {moment}, {len(found[-1][1])} seeds.\n\n{table(rows, ('fraction', 'layer'), columns)}"
    labels = [f"{FRACTIONS[fraction].label}\n{TERM_ANGLE}" for (fraction,) in groups]
    note = f"k = {moment}. {mean_note(counted(*(results for _, results in found)))}"
    return drawn(rows, text, panels, (11, 8), ylabels=labels, share_y=True, note=note)


SIGNALS = {"output": "outputs L(l-1)", "error": "errors δ(l+1)"}
"""Signal whose similarities are compared -> label."""


def figure_6_similarity(source: Source) -> Artifact:
    """Similarities of all pairs of examples before training, by the part of the labels that is replaced."""
    rows = [
        {"fraction": labels["similar"], **row}
        for labels, [result] in source.results()
        for row in tidy.similarities(result.arrays, "first", ("within", "between"))
    ]
    panels = [
        panels_by(
            "fraction",
            figures.RowMark(chosen(rows, signal=signal, layer=1), draw_histograms),
            title=(lambda fraction: FRACTIONS[fraction].label) if signal == "output" else (lambda fraction: ""),
            xlabel="similarity",
        )
        for signal in SIGNALS
    ]
    columns = {"labels": _text, "signal": lambda own: SIGNALS[own[0]["signal"]], "l": "layer"}
    columns["within"], columns["between"] = (
        lambda own, group=group: f"{chosen(own, group=group)[0]['mean']:.4g}" for group in ("within", "between")
    )
    text = "One seed, before training; mean similarity of pairs within categories and between them.\n\n"
    text += table(rows, ("fraction", "signal", "layer"), columns)
    labels = [f"{name}, l = 1\n{PAIRS}" for name in SIGNALS.values()]
    layout = {"ylabels": labels, "beside": [(0, 2), (1, 2)], "note": f"Triangles: means of all pairs. {BINS}"}
    return drawn(rows, text, panels, (11, 5.4), **layout)
