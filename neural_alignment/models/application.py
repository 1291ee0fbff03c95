"""The networks of `keras.applications`, with aligned layers."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

import keras
import pydantic

from neural_alignment.errors import ArgumentError
from neural_alignment.keras_internals import all_layers
from neural_alignment.models.base import MODELS, ModelOptions
from neural_alignment.models.convert import convert
from neural_alignment.models.parts import Rules

APPLICATIONS = tuple(
    sorted(name for name in dir(keras.applications) if inspect.isfunction(getattr(keras.applications, name)))
)
"""The networks of the installed Keras."""

_FIXED = {
    *("weights", "include_top", "input_tensor", "input_shape", "pooling", "classes", "classifier_activation", "name"),
    *("weights_name", "include_preprocessing"),
}
"""Arguments of a network that the builder sets, or that do not apply to a network trained from new weights."""


_KINDS = {
    "true or false": (bool,),
    "a number": (int, float),
    "a text": (str,),
    "true, false, a number or a text": (bool, int, float, str, type(None)),
}
"""Kinds of values of an argument, in words -> their types. The default of an argument determines its kind."""

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
        weight_decay: coefficient of J's L2 term on all kernels, and biases of dense layers, that have no regulariser
            of the network itself.

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
    network = _built(build, classes, tuple(input_shape), _checked(build, arguments or {}))
    if weight_decay or any(isinstance(layer, _PREPROCESSING) for layer in all_layers(network)):
        network = keras.models.clone_model(
            network, clone_function=lambda layer: _adapted(layer, weight_decay), recursive=True
        )
    return network if alignment is None else convert(network, alignment).model


def _built(build: Any, classes: int, input_shape: tuple[int, ...], arguments: dict[str, Any]) -> keras.Model:
    """Returns the network of Keras.

    Raises:
        ArgumentError: if Keras refuses one of the additional arguments, several together, or the shape of the images.
    """
    parameters = inspect.signature(build).parameters
    fixed = {"weights": None, "classes": classes, "input_shape": input_shape, "classifier_activation": None}
    fixed |= {"include_preprocessing": False} if "include_preprocessing" in parameters else {}

    def refused(given: dict[str, Any]) -> Exception | None:
        try:
            build(**{**fixed, **given})
        except (ArithmeticError, TypeError, ValueError) as error:
            return error
        return None

    try:
        return build(**{**fixed, **arguments})
    except (ArithmeticError, TypeError, ValueError) as error:
        if refused({}) is not None:
            shape = "x".join(map(str, input_shape))
            requirement = f"must take images of {shape}; Keras says: {error}"
            raise ArgumentError("application", requirement, build.__name__) from error
        for name, value in arguments.items():
            if (reason := refused({name: value})) is not None:
                default = parameters[name].default
                requirement = f"must be a value that {build.__name__} takes, such as its default {default!r}"
                raise ArgumentError(f"arguments.{name}", f"{requirement}; Keras says: {reason}", value) from error
        requirement = f"must be values that {build.__name__} takes together; Keras says: {error}"
        raise ArgumentError("arguments", requirement, arguments) from error


def _checked(build: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the additional arguments.

    Raises:
        ArgumentError: if the function has no such argument, or its default is of another type.
    """
    parameters = inspect.signature(build).parameters
    allowed = [name for name in parameters if name not in _FIXED]
    for name, value in arguments.items():
        if name not in allowed:
            raise ArgumentError("arguments", f"must be among {', '.join(allowed) or 'none'}", name)
        default = parameters[name].default
        kind, types = next((kind, types) for kind, types in _KINDS.items() if type(default) in types)
        if type(value) not in types:
            raise ArgumentError(f"arguments.{name}", f"must be {kind}, such as its default {default!r}", value)
    return arguments


def _adapted(layer: Any, weight_decay: float) -> Any:
    """Returns a copy of a layer with weight decay; an identity in place of a preprocessing layer."""
    if isinstance(layer, _PREPROCESSING):
        return keras.layers.Identity(name=layer.name)
    config = layer.get_config()
    decayed = ["kernel_regularizer", "depthwise_regularizer", "pointwise_regularizer"]
    if isinstance(layer, keras.layers.Dense):
        decayed.append("bias_regularizer")
    for name in decayed:
        if weight_decay and name in config and config[name] is None:
            config[name] = keras.regularizers.L2(0.5 * weight_decay)
    return type(layer).from_config(config)


@MODELS.register
class Application(ModelOptions):
    """A network of `keras.applications`, with new weights."""

    builder = staticmethod(application)
    size_keys: ClassVar[tuple[str, ...]] = ("application",)

    name: Literal["application"]
    application: Literal[APPLICATIONS]
    """The network, such as MobileNetV2."""
    arguments: dict[str, bool | int | float | str] = pydantic.Field(default_factory=dict)
    """Other arguments of the function in `keras.applications`, such as {alpha: 0.35}."""

    @pydantic.model_validator(mode="after")
    def _has_known_arguments(self):
        _checked(getattr(keras.applications, self.application), self.arguments)
        return self
