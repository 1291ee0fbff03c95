"""Computes the activations of a trained run for a set of images, in the form of the Brain-Score benchmark.

    python brainscore.py runs/quickstart --images my_images --layers 'conv*_relu' --output activations.npz

`ActivationsModel` does what Brain-Score's `PytorchWrapper` does for a PyTorch model: it reads image files, prepares
them for the network, and returns the outputs of layers by name. It needs nothing of Brain-Score. The recordings of the
benchmark are not part of this library; Brain-Score downloads them.

`for_brainscore` passes two of its methods to Brain-Score's `ActivationsExtractorHelper`, which works with any
framework, and returns a model that Brain-Score can score on this machine:

    from brainscore_vision.model_helpers.brain_transformation import ModelCommitment

    activations_model = for_brainscore(ActivationsModel("runs/my_run", identifier="my_run"))
    model = ModelCommitment("my_run", activations_model, layers=["conv1_relu", "conv2_relu"])

This part has not been run with Brain-Score, which is not installed where this library is tested. Obstacles for Keras
models (brainscore_vision 2.3.17):

- Submissions to the public leaderboard must be PyTorch models. Version 2.1.0 removed TensorFlow and Keras
  (github.com/brain-score/vision, pull request 1199). A submission needs a copy of the network in PyTorch. It has to
  copy W and not B, because activations do not depend on B.
- The `KerasWrapper` of earlier versions does not work with Keras 3, which has no `keras.backend.learning_phase`.
- Brain-Score requires Python 3.11 or newer and NumPy 1. TensorFlow 2.20 accepts NumPy 1.26, but `constraints.txt` of
  this library does not. Use a separate environment.
- Some benchmarks shift the prepared images by fractions of a pixel, and expect the channels first, as in PyTorch.
  `prepare` and `activations` therefore have the channels first, and only the network has them last.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from PIL import Image

from neural_alignment.errors import InputError
from neural_alignment.training import features

INSTALL = "Brain-Score is not installed; install it in a separate environment: pip install brainscore_vision"


class Activations(NamedTuple):
    """The outputs of some layers for some images.

    Attributes:
        values: `(presentations, neuroids)` float32.
        stimulus_path: path of the image of each presentation.
        layer: name of the layer of each neuroid.
        neuroid_id: MODEL.LAYER.NUMBER of each neuroid, in the order (channel, row, column) within its layer.
    """

    values: np.ndarray
    stimulus_path: np.ndarray
    layer: np.ndarray
    neuroid_id: np.ndarray


class ActivationsModel:
    """Returns the outputs of the layers of a network for image files.

    Args:
        source: a finished run, a Keras model, or the result of `training.features.of_model`, which has the scale of the
            pixels that the model was trained with.
        identifier: name of the model. It must be unique, because Brain-Score stores activations by it.
        batch_size: images per batch.
    """

    def __init__(self, source: Any, identifier: str = "neural_alignment", batch_size: int = 64):
        self.network = features.network_of(source)
        self.identifier = identifier
        self.batch_size = batch_size
        self._parts: dict[tuple[str, ...], keras.Model] = {}

    def prepare(self, paths: Sequence[str | Path]) -> np.ndarray:
        """Reads image files, resizes them to the input of the network, and scales pixels as in training.

        Images are resized bilinearly with antialiasing, as in Brain-Score's preparation for PyTorch.

        Returns:
            `(images, channels, height, width)` float32.
        """
        height, width, channels = self.network.model.input_shape[1:]
        pixels = []
        for path in paths:
            with Image.open(path) as image:
                resized = image.convert("L" if channels == 1 else "RGB").resize(
                    (width, height), Image.Resampling.BILINEAR
                )
            pixels.append(np.asarray(resized, np.uint8).reshape(height, width, channels))
        batches = features.ImageSet(self.network, np.stack(pixels), self.batch_size).batches()
        return np.concatenate([np.moveaxis(np.asarray(batch), -1, 1) for batch in batches])

    def activations(self, images: np.ndarray, layers: Sequence[str]) -> OrderedDict[str, np.ndarray]:
        """Returns the outputs of layers for one batch of prepared images, in inference mode.

        Args:
            images: `(images, channels, height, width)`.
            layers: names of layers, as shown by `neural-alignment describe`.

        Returns:
            Layer -> `(images, channels, height, width)`, or `(images, units)`, float32.

        Raises:
            RunError: if there is no such layer.
        """
        layers = tuple(layers)
        if layers not in self._parts:
            for layer in layers:
                if layer not in features.matching_layers(self.network, [layer]):
                    raise InputError(f"{layer}: must be the name of a layer, not a pattern")
            model = self.network.model
            self._parts[layers] = keras.Model(model.inputs[0], [model.get_layer(layer).output for layer in layers])
        outputs = self._parts[layers](np.moveaxis(np.asarray(images, np.float32), 1, -1), training=False)
        arrays = (np.asarray(output, np.float32) for output in outputs)
        return OrderedDict(
            (layer, np.moveaxis(array, -1, 1) if array.ndim > 2 else array)
            for layer, array in zip(layers, arrays, strict=True)
        )

    def __call__(self, paths: Sequence[str | Path], layers: Sequence[str]) -> Activations:
        """Returns the activations of all images. See `activations` for errors."""
        if not (len(paths) and len(layers)):
            raise InputError(f"one or more images and layers are needed; found {len(paths)} and {len(layers)}")
        batches = []
        for first in range(0, len(paths), self.batch_size):
            images = self.prepare(paths[first : first + self.batch_size])
            batches.append([each.reshape(len(each), -1) for each in self.activations(images, layers).values()])
        values = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        names = np.repeat(layers, [part.shape[1] for part in values])
        numbers = np.concatenate([np.arange(part.shape[1]) for part in values])
        identifiers = [f"{self.identifier}.{name}.{number}" for name, number in zip(names, numbers, strict=True)]
        return Activations(np.concatenate(values, axis=1), np.array([*map(str, paths)]), names, np.array(identifiers))


def for_brainscore(model: ActivationsModel) -> Any:
    """Returns a model for Brain-Score's `ModelCommitment`.

    Raises:
        ImportError: if Brain-Score is not installed; the message says how to install it.
    """
    try:
        from brainscore_vision.model_helpers.activations.core import ActivationsExtractorHelper
    except ImportError as error:
        raise ImportError(f"{INSTALL} ({error})") from None
    options = {"preprocessing": model.prepare, "get_activations": model.activations}
    return ActivationsExtractorHelper(identifier=model.identifier, batch_size=model.batch_size, **options)


def main() -> None:
    """Writes the activations of a run to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a finished run directory")
    parser.add_argument("--images", required=True, type=Path, help="a folder of PNG or JPEG files")
    parser.add_argument("--layers", nargs="+", default=[], help="patterns of layers; default: all nonlinearities")
    parser.add_argument("--output", default="activations.npz", help="default: activations.npz")
    options = parser.parse_args()
    paths = sorted(path for path in options.images.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    try:
        model = ActivationsModel(options.run, identifier=Path(options.run).name)
        found = model(paths, features.matching_layers(model.network, options.layers))
    except InputError as error:
        sys.exit(f"error: {error}")
    np.savez_compressed(options.output, **found._asdict())
    print(f"{options.output}: {len(found.values)} presentations x {found.values.shape[1]} neuroids")
    for layer in dict.fromkeys(found.layer):
        print(f"  {layer}: {np.sum(found.layer == layer)} neuroids")
    try:
        for_brainscore(model)
    except ImportError as error:
        print(error)


if __name__ == "__main__":
    main()
