"""Figures 1B to 5 of Rahmansetayesh et al., and what all of its figures share.

Lines are means over seeds, and shading is one standard deviation. l is the number of a layer, k an iteration, o the
order of an alignment term.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.analysis.curves import thinned
from neural_alignment.jobs.pieces import Result
from neural_alignment.papers.fa_mechanism import tidy
from neural_alignment.papers.fa_mechanism.runs import EVERY, HIDDEN, ORDERS, STEPS
from neural_alignment.papers.figures import Mark, Panel, Style, drawn, level, lines, panel, panels_by, points, steps
from neural_alignment.papers.registry import Source
from neural_alignment.papers.tables import Key, chosen, grouped, spread, table
from neural_alignment.reporting import Artifact, Row, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYER_STYLES = {
    layer: Style(f"l = {layer}", "osD^v"[layer], ("-", "--", "-.", ":", "-")[layer], 0.17 * layer) for layer in range(5)
}

RIGHT_ANGLE = level(90)

AVERAGED = f"Updates: moving averages over {tidy.WIDTH * EVERY} iterations."
"""Sentence below figures of updates over training."""


def counted(*groups: Collection) -> str:
    """Returns the number of seeds of some groups of results, or the smallest and the largest."""
    numbers = sorted({len(each) for each in groups})
    return f"{' to '.join(str(each) for each in dict.fromkeys((numbers[0], numbers[-1])))} seeds"


def mean_note(seeds: str) -> str:
    """Returns the note below figures of mean angles; `seeds` is as of `counted`."""
    return f"Lines: means over {seeds}. Shading: one standard deviation. Dotted: 90 degrees."


def median_note(seeds: str) -> str:
    """Returns the note below figures of medians; `seeds` is as of `counted`."""
    return f"Lines: medians over {seeds}. Shading: smallest to largest."


def shaded(rows: Sequence[Row], x: Key, by: Key | None, styles: Mapping[Any, Style] | Style, y: Key = "value") -> Mark:
    """Returns lines of means with shaded standard deviations; arguments as of `figures.lines`."""
    return lines(rows, x, y, by, styles, band=True)


def layer_panels(*marks: Mark, first: bool = True, **axes: Any) -> list[Panel]:
    """Returns a panel per layer; only those of the first row of a figure have a title, the number of the layer."""
    return panels_by("layer", *marks, title="l = {}".format if first else (lambda layer: ""), **axes)


def lines_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of rows whose keys are the headers."""
    rows = list(rows)
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


OPEN_LOOP_STYLES = {
    "constant": Style("constant: autocorrelated", "o", "--", 0.3),
    "cross_correlated": Style("cross-correlated", "s", ":", 0.0),
    "neither": Style("neither", "^", "-", 0.55),
}


def figure_1b(source: Source) -> Artifact:
    """The open loop: the angle of W₁ to B₁ᵀ under imposed signals."""
    rows = [
        {**labels, "run": run, "iteration": iteration, "angle_degrees": float(angles[iteration])}
        for labels, [result] in source.results()
        for run, angles in enumerate(result.arrays["angles"])
        for iteration in sorted({*range(0, len(angles), 20), len(angles) - 1})
    ]
    marks = shaded(rows, "iteration", "condition", OPEN_LOOP_STYLES, "angle_degrees"), RIGHT_ANGLE
    panels = [panels_by("rate", *marks, title="rate {:g}".format, xlabel="iteration", ylim=(0, 100))]
    columns = {
        "signals": lambda own: OPEN_LOOP_STYLES[own[0]["condition"]].label,
        "rate": "rate",
        "runs": len,
        "angle at the end (degrees)": lambda own: spread(own, "angle_degrees"),
    }
    text = table(chosen(rows, iteration=rows[-1]["iteration"]), ("condition", "rate"), columns)
    layout = {"ylabels": ["angle of W₁ to B₁ᵀ (degrees)"], "beside": [(0, 1)], "share_y": True}
    return drawn(rows, text, panels, (10, 3.6), note=mean_note("10 runs"), **layout)


DATA = ("in file order", "shuffled")
"""Text for each value of the column `shuffled`."""

TERM_ANGLE = "angle of the alignment\nterm to Bᵀ (degrees)"


def term_panels(rows: Sequence[Row], first: bool = True, **axes: Any) -> list[Panel]:
    """Returns a panel per layer of the angles of alignment terms by order, at the first and the last iteration."""
    moments = sorted({row["moment"] for row in rows})
    shades = dict(zip(moments, np.linspace(0, 0.6, len(moments)), strict=True))
    styles = {moment: Style(f"k = {moment}", "", "-", float(shade)) for moment, shade in shades.items()}
    axes = {"xlabel": "order o", "ylim": (74, 96), **axes}
    return layer_panels(shaded(rows, "order", "moment", styles), RIGHT_ANGLE, first=first, **axes)


def figure_2(source: Source) -> Artifact:
    """Alignment terms of every order, in file order (A) and shuffled (B)."""
    both = [source.chosen(shuffle=shuffle) for shuffle in (False, True)]
    moments = both[0][0].arrays["moment"].tolist()
    moments = (moments[0], moments[len(moments) // 2], moments[-1])
    rows = [row for number, own in enumerate(both) for row in tidy.terms(own, moments, shuffled=[number])]
    shown = [row for row in rows if row["moment"] != moments[1]]
    panels = [term_panels(chosen(shown, shuffled=number), first=not number) for number in range(2)]
    columns = {
        "data": lambda own: DATA[own[0]["shuffled"]],
        "l": "layer",
        "iteration k": "moment",
        "orders": lambda own: len(tidy.mean_by(own, "order")),
        "below 90°": lambda own: sum(mean < 90 for mean in tidy.mean_by(own, "order").values()),
        "mean angle, order 60": epoch_order,
        "mean angle, all others": other_orders,
    }
    text = f"{len(both[0])} seeds, shuffled {len(both[1])}; orders 1 to {ORDERS} at most. {_cost_text(both[0])}\n\n"
    text += table(rows, ("shuffled", "layer", "moment"), columns)
    labels = [f"({letter}) {name}\n{TERM_ANGLE}" for letter, name in zip("AB", DATA, strict=True)]
    layout = {"ylabels": labels, "beside": [(0, 3), (1, 3)], "share_y": True, "note": mean_note(_both_counted(both))}
    return drawn(rows, text, panels, (12, 6), **layout)


def _both_counted(both: Sequence[Sequence[Result]]) -> str:
    """Returns the number of seeds in file order, and shuffled."""
    return f"{counted(both[0])} (shuffled: {len(both[1])})"


TERMS = {"epoch": Style("order 60", "^", "-", 0.0), "others": Style("mean of all other orders", "s", "--", 0.5)}
"""Kind of alignment terms -> look of its line."""

KERNELS = {
    ("weight_angle", 0): Style("W, in file order"),
    ("weight_angle", 1): Style("W, shuffled", "o", ":", 0.0, filled=False),
    ("update_to_feedback", 0): Style("update, in file order", "s", "-", 0.5),
    ("update_to_feedback", 1): Style("update, shuffled", "s", ":", 0.5, filled=False),
}
"""Measure and value of the column `shuffled` -> look of its line."""


def figure_2_training(source: Source) -> Artifact:
    """Alignment terms over training, in file order (C) and shuffled (D); W and its updates in both cases (E)."""
    both = [source.chosen(shuffle=shuffle) for shuffle in (False, True)]
    by_moment, curves = [], []
    for number, own in enumerate(both):
        terms = tidy.terms(own, own[0].arrays["moment"].tolist(), shuffled=[number])
        by_moment += tidy.kinds_of_terms(terms)
        for measure in ("weight_angle", "update_to_feedback"):
            curves += tidy.curves(own, measure, 60, shuffled=[number], measure=[measure])
    axes = {"xlabel": "epoch", "ylim": (70, 96)}
    panels = [
        layer_panels(
            shaded(chosen(by_moment, shuffled=number), "epoch", "measure", TERMS),
            RIGHT_ANGLE,
            first=not number,
            **axes,
        )
        for number in range(2)
    ]
    kind = lambda row: (row["measure"], row["shuffled"])  # noqa: E731 (a key of `lines`)
    panels.append(layer_panels(shaded(curves, "epoch", kind, KERNELS), RIGHT_ANGLE, first=False, **axes))
    ends = lines_of(
        {"l": layer, "angle to Bᵀ (degrees), mean over the last epoch": name}
        | {text: tidy.last_epoch(own, measure, layer) for text, own in zip(DATA, both, strict=True)}
        for layer in HIDDEN
        for measure, name in (("weight_angle", "W"), ("update_to_feedback", "update of W"))
    )
    text = f"{len(both[0])} seeds, shuffled {len(both[1])}; terms at {len(tidy.moments_of(both[0]))} iterations.\n\n"
    labels = [f"(C) in file order\n{TERM_ANGLE}", f"(D) shuffled\n{TERM_ANGLE}", "(E)\nangle to Bᵀ (degrees)"]
    note = f"{mean_note(_both_counted(both))} {AVERAGED}"
    layout = {"ylabels": labels, "beside": [(row, 3) for row in range(3)], "share_y": True, "note": note}
    columns = ("measure", "shuffled", "layer", "epoch", "seed", "value")
    return drawn([*by_moment, *curves], text + ends, panels, (12, 8), columns, **layout)


def epoch_order(rows: Sequence[Row]) -> str:
    """Returns the mean angle of the order of one epoch; a dash if there is none."""
    angle = tidy.mean_by(rows, "order").get(STEPS)
    return "-" if angle is None else f"{angle:.1f}"


def other_orders(rows: Sequence[Row]) -> str:
    """Returns mean and range of the angles of all orders that are no multiple of an epoch."""
    others = [mean for order, mean in tidy.mean_by(rows, "order").items() if order % STEPS]
    return f"{np.mean(others):.1f} ({min(others):.1f} to {max(others):.1f})"


def _cost_text(results: Sequence[Result]) -> str:
    """Returns a sentence about the cost of the alignment terms of one seed."""
    memory, operations = (float(results[0].arrays[name].sum()) for name in ("memory", "operations"))
    return (
        f"The history of a seed takes {memory / 1e6:.3g} MB; its alignment terms, each by itself, take "
        f"{operations / 1e9:.3g} billion floating-point operations."
    )


EXPANSION_AXES = {
    tidy.NORM: ((), {"ylabel": "norm / ‖ΔW‖", "ylim": (0, None)}),
    tidy.ANGLE: ((RIGHT_ANGLE,), {"ylabel": "angle to Bᵀ (degrees)"}),
}
"""Measure of a part of the update -> further marks and axes of its panels."""

EXPANSION_LIMITS = {"alignment": (76, 92), "zero_degree": (86, 98), "remainder": (86, 98)}
"""Part of the update -> limits of the axis of its angle."""


def expansion_figure(source: Source, panels: list[list[tuple[str, ...]]], size: tuple[float, float]) -> Artifact:
    """Returns a figure of parts of the update, from the part, measure and title of each panel."""
    results = source.chosen()
    kinds = itertools.product(("alignment", "zero_degree", "remainder"), EXPANSION_AXES)
    rows = {kind: tidy.expansion(results, *kind) for kind in kinds}

    def drawn_part(part: str, measure: str, title: str) -> Panel:
        marks, axes = EXPANSION_AXES[measure]
        curves = shaded(rows[part, measure], "iteration", "layer", LAYER_STYLES)
        if measure == tidy.ANGLE:
            axes = {**axes, "ylim": EXPANSION_LIMITS[part]}
        return panel(curves, *marks, title=title, xlabel="iteration k", **axes)

    last = int(results[0].arrays["moment"][-1])
    ends = [row for own in rows.values() for row in chosen(own, iteration=last)]
    columns = {
        "l": "layer",
        "part": lambda own: own[0]["part"].replace("_", " "),
        "norm over that of the update": lambda own: spread(chosen(own, measure=tidy.NORM), "value"),
        "angle to Bᵀ (degrees)": lambda own: spread(chosen(own, measure=tidy.ANGLE), "value"),
    }
    text = f"{len(results)} seeds; expanded back to the initial weights, all orders, to iteration {last}. "
    text += f"{_cost_text(results)} At iteration {last}:\n\n"
    text += table(sorted(ends, key=lambda row: row["layer"]), ("layer", "part"), columns)
    every = [row for own in rows.values() for row in own]
    layout = {"beside": [(0, len(panels[0]) - 1)], "note": mean_note(counted(results))}
    return drawn(every, text, [[drawn_part(*each) for each in line] for line in panels], size, **layout)


def figure_3(source: Source) -> Artifact:
    """Remainder and zero-degree terms: size of the remainder, and angles to Bᵀ."""
    remainder = [("remainder", tidy.NORM, "(A) size of the remainder"), ("remainder", tidy.ANGLE, "(B) remainder")]
    return expansion_figure(source, [[*remainder, ("zero_degree", tidy.ANGLE, "(C) zero-degree term")]], (12, 3.8))


DISTURBED = {
    "linear": ("(A) without nonlinearity", "moved by linear terms"),
    "feedback": ("(B) other backward weights", "moved by terms of B′, to B′ᵀ"),
    "errors": ("(Figure 5) shuffled errors", "moved by terms of shuffled errors"),
}
"""Disturbance -> title, and the name of the disturbed kernel."""

KERNEL_LIMITS = {"linear": (66, 94), "feedback": (81, 94), "errors": (81, 94)}
"""Disturbance -> limits of the axis of angles."""


def disturbed(source: Source) -> Artifact:
    """W, and kernels moved only by alignment terms, disturbed or not, against the backward weights."""
    controls = source.chosen(how="none")
    last = len(controls[0].arrays["weight_angle"]) - 1
    note = mean_note(counted(*(results for _, results in source.results())))
    rows, ends, panels, labels = [], [], [], []
    for how, results in ((labels["how"], results) for labels, results in source.results() if labels["how"] != "none"):
        title, name = DISTURBED[how]
        styles = {
            "weight": Style("W"),
            "control": Style("moved by undisturbed terms", "^", "-.", 0.25),
            "disturbed": Style(name, "s", "--", 0.55),
        }
        kept = sorted({*thinned(len(results[0].arrays["weight_angle"]), 60).tolist(), last})
        own = tidy.disturbed(results, kept, disturbance=[how], layer=HIDDEN, kernel=("weight", "disturbed"))
        shared = [iteration for iteration in kept if iteration <= last]
        undisturbed = tidy.disturbed(controls, shared, disturbance=[how], layer=HIDDEN, kernel=["disturbed"])
        own += [{**row, "kernel": "control"} for row in undisturbed]
        axes = {"xlabel": "iteration", "ylim": KERNEL_LIMITS[how]}
        curves = shaded(own, "iteration", "kernel", styles)
        panels.append(layer_panels(curves, RIGHT_ANGLE, first=not panels, **axes))
        labels.append(f"{title}\nangle to Bᵀ (degrees)")
        rows += own
        ends += [row for row in own if row["iteration"] in (0, last if row["kernel"] == "control" else kept[-1])]
    columns = {
        "disturbance": lambda own: DISTURBED[own[0]["disturbance"]][0],
        "l": "layer",
        "kernel": lambda own: KERNEL_TEXTS[own[0]["kernel"]],
        "iterations": lambda own: max(row["iteration"] for row in own),
        "seeds": lambda own: len(own) // 2,
        "angle at the start (degrees)": lambda own: spread(chosen(own, iteration=0), "value"),
        "at the end": lambda own: spread([row for row in own if row["iteration"]], "value"),
    }
    text, number = table(ends, ("disturbance", "layer", "kernel"), columns), len(panels)
    layout = {"ylabels": labels, "beside": [(each, 3) for each in range(number)], "share_y": "row", "note": note}
    return drawn(rows, text, panels, (12.5, 2.7 * number + 0.5), **layout)


GROUPS = {
    "within": Style("within categories", "", "-", 0.0),
    "between": Style("between categories", "", "--", 0.5),
    "within/well": Style("within, well classified", "", "-", 0.0),
    "within/poor": Style("within, poorly", "", ":", 0.0),
    "between/well": Style("between, well classified", "", "-", 0.7, width=3),
    "between/poor": Style("between, poorly", "", "--", 0.35),
}
"""Group of pairs of examples -> look of its histogram."""


PAIRS = "part of the pairs in the bins"
"""Label of the y axis of histograms of similarities."""

BINS = "Bins: from the 0.5 % to the 99.5 % quantile among the first 500 examples; pairs outside are not counted."
"""Sentence below histograms of similarities."""

ANGLES = "θ₁: angle of B₁ to W₁ᵀ. θ₂: angle of B₂ to W₂ᵀ. θ₃: angle of B₂B₁ to W₂ᵀW₁ᵀ."
"""Sentence below figures of products of random matrices."""


def draw_histograms(axis: Axes, rows: Sequence[Row]) -> None:
    """Draws the distribution of the similarities of each group of pairs, with a triangle at its mean."""
    for (group,), own in grouped(rows, "group").items():
        total, edges = max(sum(row["pairs"] for row in own), 1), [*(row["low"] for row in own), own[-1]["high"]]
        steps([row["pairs"] / total for row in own], edges, GROUPS[group])(axis)
        place = axis.get_xaxis_transform()  # The triangle is at the lower edge on any scale.
        triangle = Style(None, "^", "", GROUPS[group].shade, filled="well" not in group)
        points([own[0]["mean"]], [0], triangle, markersize=6, clip_on=False, transform=place)(axis)


KERNEL_TEXTS = {"weight": "W", "control": "moved by undisturbed terms", "disturbed": "moved by disturbed terms"}


def disturbed_terms(source: Source) -> Artifact:
    """The angles of single disturbed alignment terms beside those of undisturbed ones, of the same seeds."""
    observed = source.chosen(shuffle=False)[:3]
    cases = {
        "linear": (observed, "linear_angle"),
        **{how: (source.chosen(terms=how), "term_angle") for how in ("feedback", "errors")},
    }
    moments = cases["errors"][0][0].arrays["moment"].tolist()
    rows = [
        {**row, "terms": kind}
        for how, (results, measure) in cases.items()
        for kind, own in (("undisturbed", tidy.terms(observed, moments, disturbance=[how])),
                          ("disturbed", tidy.terms(results, moments, measure, disturbance=[how])))
        for row in own
    ]  # fmt: skip
    styles = {"undisturbed": Style("undisturbed", "", "-", 0.0), "disturbed": Style("disturbed", "", "-", 0.6)}
    axes = {"xlabel": "order o", "ylim": (68, 96)}
    shown = chosen(rows, moment=moments[0])
    panels = [
        layer_panels(shaded(own, "order", "terms", styles), RIGHT_ANGLE, first=how == "linear", **axes)
        for (how,), own in grouped(shown, "disturbance").items()
    ]
    columns = {
        "disturbance": lambda own: DISTURBED[own[0]["disturbance"]][0],
        "l": "layer",
        "iteration k": "moment",
        "terms": "terms",
        "order 60": epoch_order,
        "mean of all others (degrees)": other_orders,
    }
    text = f"{len(observed)} seeds; terms disturbed at every iteration. The figure shows k = {moments[0]}.\n\n"
    text += table(rows, ("disturbance", "layer", "moment", "terms"), columns)
    labels = [f"{DISTURBED[how][0]}\n{TERM_ANGLE}" for how in cases]
    note = f"k = {moments[0]}. {mean_note(counted(observed, *(results for results, _ in cases.values())))}"
    layout = {"ylabels": labels, "beside": [(each, 3) for each in range(3)], "share_y": True, "note": note}
    return drawn(rows, text, panels, (12, 8.4), **layout)
