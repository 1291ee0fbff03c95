"""The networks of `keras.applications`, with aligned layers."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

import keras
import pydantic

from neural_alignment.errors import ArgumentError
from neural_alignment.models.base import MODELS, ModelOptions
from neural_alignment.models.convert import convert
from neural_alignment.models.parts import Rules

APPLICATIONS = tuple(
    sorted(name for name in dir(keras.applications) if inspect.isfunction(getattr(keras.applications, name)))
)
"""The networks of the installed Keras."""

_FIXED = {
    *("weights", "include_top", "input_tensor", "input_shape", "pooling", "classes", "classifier_activation", "name"),
    *("weights_name",),
}
"""Arguments of a network that the builder sets, or that do not apply to a network trained from new weights."""


_PREPROCESSING = (keras.layers.Rescaling, keras.layers.Normalization)
"""Layers that some networks contain although the images are prepared already."""


def application(
    application: str,
    classes: int,
    input_shape: tuple[int, int, int],
    alignment: Rules = None,
    arguments: dict[str, Any] | None = None,
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds a network of `keras.applications` with new weights that returns logits.

    Layers have the names that Keras gives them; `describe` lists them. Preprocessing layers within a network are
    replaced by identities, because the data pipeline scales the images.

    Args:
        application: name of the network, such as `"MobileNetV2"`.
        classes: number of classes.
        input_shape: `(height, width, channels)`.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        arguments: other arguments of the function in `keras.applications`, such as `{"alpha": 0.35}`.
        weight_decay: coefficient of J's L2 term on all kernels that have no regulariser of the network itself.

    Returns:
        A functional model, `(batch, height, width, channels)` -> `(batch, classes)`.

    Raises:
        ValueError: if the name or an argument is unknown, or the network does not take images of this shape.
        ConfigError: if a rule matches no layer.
    """
    if application not in APPLICATIONS:
        raise ArgumentError(
            "application", f"must be one of {', '.join(APPLICATIONS)}", application, 'application="MobileNetV2"'
        )
    build = getattr(keras.applications, application)
    given = {**_defaults(build), **_checked(build, arguments or {})}
    try:
        network = build(
            weights=None, classes=classes, input_shape=tuple(input_shape), classifier_activation=None, **given
        )
    except ValueError as error:
        shape = "x".join(map(str, input_shape))
        raise ArgumentError("application", f"must take images of {shape}; Keras says: {error}", application) from error
    if weight_decay or any(isinstance(layer, _PREPROCESSING) for layer in network.layers):
        network = keras.models.clone_model(network, clone_function=lambda layer: _adapted(layer, weight_decay))
    return network if alignment is None else convert(network, alignment).model


def _defaults(build: Any) -> dict[str, Any]:
    """Returns the arguments that differ from Keras' defaults."""
    return {"include_preprocessing": False} if "include_preprocessing" in inspect.signature(build).parameters else {}


def _checked(build: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the additional arguments.

    Raises:
        ArgumentError: if the function has no such argument.
    """
    allowed = [name for name in inspect.signature(build).parameters if name not in _FIXED]
    for name in arguments:
        if name not in allowed:
            raise ArgumentError("arguments", f"must be among {', '.join(allowed) or 'none'}", name)
    return arguments


def _adapted(layer: Any, weight_decay: float) -> Any:
    """Returns a copy of a layer with weight decay on its kernels; an identity in place of a preprocessing layer."""
    if isinstance(layer, _PREPROCESSING):
        return keras.layers.Identity(name=layer.name)
    config = layer.get_config()
    for name in ("kernel_regularizer", "depthwise_regularizer", "pointwise_regularizer"):
        if weight_decay and name in config and config[name] is None:
            config[name] = keras.regularizers.L2(0.5 * weight_decay)
    return type(layer).from_config(config)


@MODELS.register
class Application(ModelOptions):
    """A network of `keras.applications`, with new weights."""

    builder: ClassVar = staticmethod(application)
    size_key: ClassVar[str] = "application"

    name: Literal["application"]
    application: Literal[APPLICATIONS]
    """The network, such as MobileNetV2."""
    arguments: dict[str, bool | int | float | str] = pydantic.Field(default_factory=dict)
    """Other arguments of the function in `keras.applications`, such as {alpha: 0.35}."""

    @pydantic.model_validator(mode="after")
    def _has_known_arguments(self):
        _checked(getattr(keras.applications, self.application), self.arguments)
        return self
