"""Features: responses of the layers of a trained network to images, as in Figure 6 of Kunin et al. 2020."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.config import Config
from neural_alignment.data.recordings import load_images
from neural_alignment.errors import ArgumentError, DataError, RunError, Words
from neural_alignment.keras_internals import calls, copy_of, has_graph
from neural_alignment.training import setup
from neural_alignment.training.run_directory import RunDirectory


class SourceNetwork(NamedTuple):
    """A network whose features are computed: of a run, at its end or at its beginning, or a model of the caller.

    Attributes:
        name: the run directory, or the name of the model, for messages.
        model: the network.
        config: the configuration of the run; None for a model.
        pixel_scale: center and scale of the pixels; uint8 images become the inputs (pixels - center) / scale. None for
            a run that is not finished, and for a model without one.
    """

    name: str
    model: keras.Model
    config: Config | None
    pixel_scale: tuple[np.ndarray, np.ndarray] | None = None


def trained(run_dir: str | Path) -> SourceNetwork:
    """Returns the network at the end of a run.

    Raises:
        RunError: if the run has no final model, or the model is damaged; the message is one line.
    """
    directory = RunDirectory(run_dir)
    status = directory.status()
    path = directory.model_path(status)
    model = setup.load_network(path)
    return SourceNetwork(directory.path, model, directory.checked_config(status), directory.pixel_scale(status))


def initial(run_dir: str | Path) -> SourceNetwork:
    """Returns the initial network of a run, drawn again from its seed: the baseline "Random" of Figure 6.

    Batch normalization has its initial moving statistics, mean 0 and variance 1.

    Raises:
        RunError: if the run has no final model, from which the shapes of inputs and outputs are taken.
    """
    last = trained(run_dir)
    shapes = (last.model.output_shape[-1], last.model.input_shape[1:])
    return last._replace(model=setup.build_network(last.config, *shapes, steps_per_epoch=1))


def of_model(model: keras.Model, pixel_scale: tuple[Any, Any] | None = None, random: bool = False) -> SourceNetwork:
    """Returns a Keras model as a network whose features are computed.

    Args:
        model: a functional or built Sequential model whose only input is images.
        pixel_scale: center and scale of the pixels that the model was trained with, numbers or one number for each
            channel. Without it uint8 images are refused.
        random: whether to draw new weights: the baseline "Random" of Figure 6.

    Raises:
        ArgumentError: if the model is not of this kind.
    """
    shapes = [tuple(each.shape) for each in model.inputs] if has_graph(model) else []
    if len(shapes) != 1 or len(shapes[0]) != 4:
        requirement = "must be a functional or built Sequential model with one input (batch, height, width, channels)"
        found = Words(f"{type(model).__name__} {model.name!r}" + (f" with {shapes}" if shapes else ""))
        raise ArgumentError("model", requirement, found, "keras.Model(images, outputs)")
    drawn = keras.models.clone_model(model, clone_function=_redrawn) if random else model
    scale = None if pixel_scale is None else tuple(np.asarray(value, np.float32) for value in pixel_scale)
    return SourceNetwork(f"the model {model.name!r}", drawn, None, scale)


def _redrawn(layer: Any) -> Any:
    """Returns a copy of a layer with new weights. Statistics of the data, as in `Normalization`, are kept."""
    copy = copy_of(layer)
    if isinstance(layer, keras.layers.Normalization):
        copy.build(layer.get_build_config()["input_shape"])
        copy.set_weights(layer.get_weights())
        copy.finalize_state()
    return copy


_RATES = (
    *(keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.PReLU, keras.layers.ELU, keras.layers.Softmax),
    *(keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalAveragePooling3D),
    *(keras.layers.GlobalMaxPooling1D, keras.layers.GlobalMaxPooling2D, keras.layers.GlobalMaxPooling3D),
)
"""Layers that are a nonlinearity, without an attribute `activation`, or global pooling."""


def rate_layers(model: keras.Model) -> list[str]:
    """Returns the names of the layers that end with a nonlinearity or global pooling, as models of firing rates."""
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, _RATES)
        or getattr(layer, "activation", keras.activations.linear) is not keras.activations.linear
    ]


def matching_layers(network: SourceNetwork, patterns: Sequence[str] = ()) -> list[str]:
    """Returns the names of the layers that match patterns such as `group*_relu`, in the order of the forward pass.

    Args:
        network: the network.
        patterns: the patterns. Default: all of `rate_layers`.

    Raises:
        RunError: if a pattern matches no layer; the message names the nearest layers. Also if there are no patterns and
            no `rate_layers`.
    """
    if not patterns:
        if not (found := rate_layers(network.model)):
            raise RunError(
                f"{network.name}: no layer ends with a nonlinearity or is global pooling; give patterns in `layers`"
            )
        return found
    names = [layer.name for layer in network.model.layers]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise _unknown(network, pattern, names)
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


class ImageSet:
    """Batches of images as inputs of a network.

    Args:
        network: the network.
        images: a file of images (see `data.recordings`), or an array `(images, height, width, channels)`. Default: the
            validation split of the run, in the order of its files. Float images are not changed. uint8 images are
            resized to the input size of the network (bilinear, without antialiasing, and without cropping, because the
            edge is part of the stimulus) and scaled like the images that the network was trained with.
        batch_size: images per batch.

    Raises:
        DataError: if the images cannot be read, or do not have the shape of the network.
    """

    def __init__(self, network: SourceNetwork, images: str | Path | np.ndarray | None = None, batch_size: int = 64):
        self._shape = tuple(network.model.inputs[0].shape[1:])
        self._batch_size = batch_size
        if images is None:
            if network.config is None:
                raise DataError(f"{network.name}: a model has no data; `images` must be given")
            self._dataset = setup.load_data(network.config)
            self._dataset.validation_order = None  # Row i of the features belongs to image i of the files.
            self._pixels, self.size = None, self._dataset.validation_examples
            return
        is_array = isinstance(images, np.ndarray)
        self._pixels = images if is_array else load_images(str(images))
        self.size = len(self._pixels)
        self._is_raw = self._pixels.dtype == np.uint8
        check_images("the array" if is_array else str(images), self._pixels, self._shape)
        if not self._is_raw:
            return
        if network.pixel_scale is None:
            remedy = "as in features.of_model(model, (0.0, 255.0))"
            if network.config is not None:
                remedy = "which a run stores when it is finished; finish the run first"
            raise DataError(f"{network.name}: uint8 images need its `pixel_scale`, {remedy}")
        self._center, self._scale = network.pixel_scale

    def batches(self) -> Iterator[Any]:
        """Yields `(batch, height, width, channels)` float32."""
        if self._pixels is None:
            yield from (images for images, _ in self._dataset.validation())
            return
        for begin in range(0, self.size, self._batch_size):
            images = tf.cast(self._pixels[begin : begin + self._batch_size], tf.float32)
            yield self._prepared(images) if self._is_raw else images

    def _prepared(self, images: Any) -> Any:
        if None not in self._shape and images.shape[1:] != self._shape:
            images = tf.image.resize(images, self._shape[:2], method="bilinear")
        return (images - self._center) / self._scale


def check_images(path: str, images: np.ndarray, input_shape: Sequence[int | None]) -> None:
    """Checks that images can be the inputs of a network: uint8 images of any size, float images of its size.

    Args:
        path: name of their file in the message.
        images: the images.
        input_shape: `(height, width, channels)` of an input of the network.

    Raises:
        DataError: if they do not fit.
    """
    if images.ndim != 4 or 0 in images.shape or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        found = f"{images.shape} of {images.dtype}"
        raise DataError(f"{path}: must be (images, height, width, channels), uint8 or float; found {found}")
    found, (height, width, channels) = images.shape[1:], input_shape
    raw = images.dtype == np.uint8
    fits = raw or all(size in (None, own) for own, size in zip(found, input_shape, strict=True))
    if found[-1] != channels or not fits:
        size = "any size" if raw else f"{height} x {width} pixels"
        raise DataError(
            f"{path}: `images` of {images.dtype} must be of {size} and {channels} channels for this network; "
            f"found {found[0]} x {found[1]} pixels and {found[2]} channels"
        )


def extract(network: SourceNetwork, layer: str, images: ImageSet, folder: str | Path | None = None) -> np.ndarray:
    """Returns the outputs of one layer in inference mode, one row per image.

    Args:
        network: the network; later layers are not computed.
        layer: the name of the layer.
        images: the images.
        folder: a local folder for a memory-mapped file of the features, for features that do not fit into memory (those
            of the stem of a ResNet-18 for 5,120 images of 224 pixels take 16 GB). Default: in memory.

    Returns:
        `(images, features)` float32.

    Raises:
        RunError: if there is no such layer, it is used several times, its output is not finite, or the disk of the
            folder is full.
    """
    part = keras.Model(network.model.inputs, _output(network, layer))
    forward = tf.function(lambda batch: tf.cast(part(batch, training=False), tf.float32), reduce_retracing=True)

    def rows() -> Iterator[np.ndarray]:
        for batch in images.batches():
            outputs = forward(batch).numpy().reshape(len(batch), -1)
            if not np.isfinite(outputs).all():
                raise RunError(f"{network.name}: layer {layer!r} gives values that are not finite")
            yield outputs

    return (
        np.concatenate(list(rows())) if folder is None else _on_disk(rows(), os.path.join(folder, f"{layer}.float32"))
    )


def _on_disk(rows: Iterator[np.ndarray], path: str) -> np.ndarray:
    """Writes rows to a file and returns it memory-mapped.

    The file is written before it is mapped, so that a full disk raises an error instead of killing the process.
    """
    try:
        with open(path, "wb") as file:
            for part in rows:
                file.write(part)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; set TMPDIR, or the folder, to a place with enough space") from None
    return np.memmap(path, np.float32, "r").reshape(-1, part.shape[1])


def features(
    source: str | Path | keras.Model | SourceNetwork,
    layer: str,
    images: str | Path | np.ndarray | None = None,
    random: bool = False,
    batch_size: int = 64,
    folder: str | Path | None = None,
) -> np.ndarray:
    """Returns the features of one layer of a network.

    Args:
        source: a finished run, a Keras model, or the result of `of_model`.
        layer: the name of a layer, as shown by `neural-alignment describe`.
        images: a file of images, as in `ImageSet`. Default: the validation split of the run.
        random: whether to use a network with initial weights instead of the trained one.
        batch_size: images per batch.
        folder: a folder for a memory-mapped file. Default: in memory.

    Returns:
        `(images, features)` float32.

    Raises:
        RunError: if there is no such run or layer, the layer is used several times, or its output is not finite.
        DataError: if the images cannot be read, or do not have the shape of the network.
        ArgumentError: if a model has no graph, or has other inputs than images.
    """
    network = network_of(source, random)
    _output(network, layer)  # Checks the layer before the images are loaded, which may take long.
    return extract(network, layer, ImageSet(network, images, batch_size), folder)


def network_of(source: str | Path | keras.Model | SourceNetwork, random: bool = False) -> SourceNetwork:
    """Returns the network of a run directory or of a model. See `features`."""
    if isinstance(source, keras.Model):
        return of_model(source, random=random)
    if isinstance(source, SourceNetwork):
        return (
            of_model(source.model, source.pixel_scale, random)
            if source.config is None
            else (initial(source.name) if random else source)
        )
    return initial(source) if random else trained(source)


def _output(network: SourceNetwork, name: str) -> Any:
    """Returns the symbolic output of a layer.

    Raises:
        RunError: if there is no such layer, or it is used several times.
    """
    names = [layer.name for layer in network.model.layers]
    if name not in names:
        raise _unknown(network, name, names)
    # The attribute `output` of a layer is that of its first call, which may be in another model.
    uses = [call.outputs for call in calls(network.model) if call.operation.name == name]
    if len(uses) > 1:
        raise RunError(f"{network.name}: layer {name!r} is used {len(uses)} times, so that it has several outputs")
    return uses[0][0] if uses else network.model.get_layer(name).output


def _unknown(network: SourceNetwork, name: str, names: Sequence[str]) -> RunError:
    close = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))
    return RunError(f"{network.name}: no layer is called {name!r}; nearest of its {len(names)}: {close}")
