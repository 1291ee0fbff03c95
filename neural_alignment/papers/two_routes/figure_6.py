"""Figure 6 of Kunin et al. 2020: how well the layers of each network predict responses of V4 and IT (Appendix B.5)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from neural_alignment.analysis import neural_fit
from neural_alignment.data.recordings import Recordings, load_recordings
from neural_alignment.errors import DataError, InputError
from neural_alignment.reporting import Artifact, markdown, new_figure
from neural_alignment.training import features

COLUMNS = ("network", "area", "layer", "units", "correlation", "sem", "corrected", "corrected_sem", "best")
RANDOM = "Random"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")


def figure_6(
    runs: Mapping[str, str],
    recordings: str,
    images: str | None = None,
    layers: Sequence[str] = (),
    random: bool = True,
    components: int = neural_fit.COMPONENTS,
    seed: int = 0,
    batch_size: int = 64,
    report: Callable[[str], None] = lambda line: None,
) -> Artifact:
    """Fits every layer of every run to the recordings.

    Features are kept in a temporary file, one layer's at a time; its size is 4 bytes times images times outputs.

    Args:
        runs: what to call it in the figure -> a finished run directory.
        recordings: the responses, a file as `data.recordings` describes it.
        images: a file of the images they answer; in `recordings` where none.
        layers: patterns of layer names; all that a nonlinearity ends where none.
        random: whether to add the first run's network as it was at initialisation.
        components: components of the regression.
        seed: of the split into training and test images, and of the halves of the repeats.
        batch_size: images at a time.
        report: told of each layer of each network once it is fitted.

    Returns:
        A row per network, area and layer; correlations over test images are medians over units, with their standard
        error of the mean over units. The figure shows the best layer of each, corrected for noise where there are
        repeats.

    Raises:
        RunError: if a run or a layer is missing.
        DataError: if the recordings or the images cannot be read or do not fit each other.
    """
    if not runs:
        raise InputError("figure two_routes/6 needs one or more finished runs; found none")
    recorded = load_recordings(recordings)
    split = neural_fit.split_by_category(recorded.categories, seed=seed)
    if components >= len(split.train):
        raise DataError(
            f"{recordings}: must have more training images than the {components} components of the regression; found "
            f"{len(split.train)}"
        )
    rows: list[dict[str, Any]] = []
    for name, network in _networks(runs, random):
        image_set = features.ImageSet(network, images or recordings, batch_size)
        if image_set.size != len(recorded.responses):
            raise DataError(
                f"{images or recordings}: must have one image for each of the {len(recorded.responses)} rows of "
                f"`responses` in {recordings}; found {image_set.size}"
            )
        fits = {}
        for layer in features.matching_layers(network, layers):
            with tempfile.TemporaryDirectory() as folder:
                outputs = features.extract(network, layer, image_set, folder)
                fits[layer] = neural_fit.fit(outputs, recorded.responses, recorded.areas, split, components, seed)
            report(_line(name, layer, fits[layer]))
        rows += _rows(name, fits)
    return Artifact(COLUMNS, rows, _text(rows), _draw(rows, recorded))


def _networks(runs: Mapping[str, str], random: bool) -> Iterator[tuple[str, features.RunNetwork]]:
    if random:
        yield RANDOM, features.initial(next(iter(runs.values())))
    for name, run_dir in runs.items():
        yield name, features.trained(run_dir)


def _rows(name: str, fits: Mapping[str, Mapping[str, neural_fit.Fit]]) -> list[dict[str, Any]]:
    best = neural_fit.best_layers(fits)
    rows = []
    for layer, by_area in fits.items():
        for area, fit in by_area.items():
            row = {"network": name, "area": area, "layer": layer, "units": fit.units}
            row |= {"correlation": fit.median, "sem": fit.sem, "best": int(best[area] == layer)}
            if fit.corrected is not None:
                row["corrected"] = neural_fit.median(fit.corrected)
                row["corrected_sem"] = neural_fit.standard_error(fit.corrected)
            rows.append(row)
    return rows


def _line(name: str, layer: str, by_area: Mapping[str, neural_fit.Fit]) -> str:
    found = ", ".join(f"{area} {fit.median:.3f} ± {fit.sem:.3f}" for area, fit in by_area.items())
    return f"{name}, {layer}: {found}"


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the best layers as Markdown."""
    header = ["network", "area", "best layer", "units", "median correlation", "corrected for noise"]
    lines = []
    for row in rows:
        if row["best"]:
            corrected = f"{row['corrected']:.3f} ± {row['corrected_sem']:.3f}" if "corrected" in row else "no repeats"
            correlation = f"{row['correlation']:.3f} ± {row['sem']:.3f}"
            lines.append([row["network"], row["area"], row["layer"], row["units"], correlation, corrected])
    return markdown(header, lines)


def _draw(rows: Sequence[Mapping[str, Any]], recorded: Recordings) -> Any:
    """Returns bars for the best layer of each network, an area below the other as in the paper."""
    value, error = ("corrected", "corrected_sem") if recorded.responses.ndim == 3 else ("correlation", "sem")
    areas = list(dict.fromkeys(row["area"] for row in rows))
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = new_figure(1.5 + 0.8 * len(names), 2.2 * len(areas) + 0.8)
    axes = figure.subplots(len(areas), 1, sharex=True, squeeze=False)[:, 0]
    for axis, area in zip(axes, areas, strict=True):
        best = {row["network"]: row for row in rows if row["area"] == area and row["best"]}
        for place, name in enumerate(names):
            axis.bar(
                place,
                best[name][value],
                yerr=best[name][error],
                color="0.8",
                edgecolor="black",
                hatch=HATCHES[place % len(HATCHES)],
                capsize=3,
            )
        corrected = "\ncorrected for noise" if value == "corrected" else ""
        axis.set_ylabel(f"{area}: median Pearson\ncorrelation over units{corrected}")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    return figure
