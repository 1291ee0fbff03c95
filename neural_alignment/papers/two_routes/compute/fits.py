"""How well the layers of networks predict recorded responses of V4 and IT (Figure 6, Appendix B.5)."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import keras

from neural_alignment.analysis import neural_fit
from neural_alignment.data.recordings import Recordings, load_images, load_recordings
from neural_alignment.errors import DataError, InputError
from neural_alignment.reporting import Row
from neural_alignment.training import features


@dataclass(frozen=True)
class FitSettings:
    """Options of a fit.

    Attributes:
        layers: patterns of layer names. Default: the layers that end with a nonlinearity.
        random: whether the initial network of the first run is fitted as well.
        components: number of components of the regression.
    """

    layers: Sequence[str] = ()
    random: bool = True
    components: int = neural_fit.COMPONENTS


ALL_LAYERS = FitSettings()


def read_recordings(
    recordings: str,
    images: str | None = None,
    components: int = neural_fit.COMPONENTS,
    input_shapes: Iterable[tuple[int, ...]] = (),
) -> tuple[Recordings, neural_fit.Split]:
    """Reads recordings, and checks them and the images before any network is needed.

    Args:
        recordings: file of the responses.
        images: file of the images shown; `None` if `recordings` contains them.
        components: number of components of the regression.
        input_shapes: `(height, width, channels)` of the inputs of the networks, where they are known.

    Returns:
        The recordings, and the images that a layer is fitted to and tested on.

    Raises:
        DataError: if a file cannot be read, or the recordings, the images, the regression and
            the networks do not fit each other.
    """
    recorded = load_recordings(recordings)
    pixels = load_images(images or recordings)
    for shape in input_shapes:
        features.check_images(images or recordings, pixels, shape)
    shown = len(pixels)
    if shown != len(recorded.responses):
        raise DataError(
            f"{images or recordings}: must have one image for each of the {len(recorded.responses)} rows of "
            f"`responses` in {recordings}; found {shown}"
        )
    split = neural_fit.split_by_category(recorded.categories)
    if components >= len(split.train):
        raise DataError(
            f"{recordings}: must have more training images than the {components} components of the regression; found "
            f"{len(split.train)}"
        )
    return recorded, split


def fit_rows(
    runs: Mapping[str, str | keras.Model | features.SourceNetwork],
    recordings: str,
    images: str | None = None,
    settings: FitSettings = ALL_LAYERS,
    report: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Fits the layers of runs to recordings.

    The features of one layer at a time are kept in a temporary file of 4 bytes times images times outputs.

    Args:
        runs: name in the figure -> directory of a finished run, Keras model, or result of `training.features.of_model`.
        recordings: file of the responses, see `data.recordings`.
        images: file of the images shown; `None` if `recordings` contains them.
        settings: options of the fit.
        report: called with a line of text for each fitted layer.

    Returns:
        A row per network, area and layer. Correlations over test images are medians over units, with the standard error
        of their mean over units; the corrected ones exist if the recordings have repeats.

    Raises:
        RunError: if a run or a layer is missing.
        DataError: if the recordings or the images cannot be read, or do not fit each other.
    """
    if not runs:
        raise InputError("figure two_routes/6 needs one or more finished runs; found none")
    recorded, split = read_recordings(recordings, images, settings.components)
    networks = {}
    if settings.random:
        networks["Random"] = functools.partial(features.network_of, next(iter(runs.values())), random=True)
    networks |= {name: functools.partial(features.network_of, source) for name, source in runs.items()}
    rows: list[Row] = []
    for name, load in networks.items():
        network = load()
        image_set = features.ImageSet(network, images or recordings)
        fits = {}
        for layer in features.matching_layers(network, settings.layers):
            with tempfile.TemporaryDirectory() as folder:
                outputs = features.extract(network, layer, image_set, folder)
                fits[layer] = neural_fit.fit(outputs, recorded.responses, recorded.areas, split, settings.components)
            found = ", ".join(f"{area} {fit.median:.3f} ± {fit.sem:.3f}" for area, fit in fits[layer].items())
            report(f"{name}, {layer}: {found}")
        rows += _rows(name, fits)
    return rows


def _rows(name: str, fits: Mapping[str, Mapping[str, neural_fit.Fit]]) -> list[Row]:
    """Returns the rows of one network, from a mapping from layer to area to fit."""
    best, rows = neural_fit.best_layers(fits), []
    for layer, area, fit in ((layer, *each) for layer, areas in fits.items() for each in areas.items()):
        row = {"network": name, "area": area, "layer": layer, "units": fit.units}
        row |= {"correlation": fit.median, "sem": fit.sem, "best": int(best[area] == layer)}
        if fit.corrected is not None:
            row["corrected"] = neural_fit.median(fit.corrected)
            row["corrected_sem"] = neural_fit.standard_error(fit.corrected)
        rows.append(row)
    return rows
