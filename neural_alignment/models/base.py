"""The base class of the options of all models, and their registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import keras
from pydantic import Field, PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.models.parts import Rules
from neural_alignment.options import Options
from neural_alignment.registry import Registry, misfit

MODELS = Registry("name")
"""The options class of each model, by the name of the model in a configuration."""

MAX_DEPTH = 128
"""Maximum number of layers of a network. Keras traverses them recursively, and Python limits the recursion depth."""

LayerSizes = Annotated[list[PositiveInt], Field(max_length=MAX_DEPTH)]
"""Units or filters of each layer."""

BatchNormTrainable = Annotated[
    bool,
    # Not written at its default, so that the checksums of earlier configurations stay the same.
    Field(
        exclude_if=lambda trainable: trainable,
        description="Whether scale and shift of the batch normalization are trained. Its statistics are updated in "
        "either case.",
    ),
]


class ModelOptions(Options):
    """Base of the options classes of all models.

    A subclass declares `name` as a `Literal` with the name of the model, declares the other arguments of `builder` as
    fields, and is registered in `MODELS`.
    """

    builder: ClassVar[Callable[..., keras.Model]]
    """Builds the model from `classes`, `input_shape`, `alignment`, `weight_decay` and the fields of the options."""

    targets: ClassVar[str] = "classes"
    """The kind of targets for which the model is made. It must equal `targets` of the loss."""

    size_keys: ClassVar[tuple[str, ...]] = ("width",)
    """Names of the options that determine the size of the model, for messages."""

    uses_batch_statistics: ClassVar[bool] = False
    """Whether evaluation, too, depends on statistics of the whole batch."""

    @property
    def whole_batch_reason(self) -> str | None:
        """Why a batch must not be divided among replicas or into minibatches: the rest of a sentence about the model.

        None if it may be divided. A layer for which it must not has an attribute of the same name.
        """
        return None

    def build(
        self, classes: int, input_shape: tuple[int, ...], alignment: Rules = None, weight_decay: float = 0.0
    ) -> keras.Model:
        """Returns the functional model.

        Args:
            classes: number of outputs.
            input_shape: shape of one example, without the batch.
            alignment: None, one rule for all layers, or rules with patterns of layer names.
            weight_decay: coefficient of J's L2 term.

        Raises:
            ArgumentError: if the builder, which may be that of a user, does not take these arguments.
        """
        arguments = {key: value for key, value in self if key != MODELS.key}
        arguments |= {"classes": classes, "input_shape": input_shape}
        arguments |= {"alignment": alignment, "weight_decay": weight_decay}
        builder = getattr(type(self), "builder", None)
        if problem := misfit(builder, named=[*arguments]):
            requirement = f"must be a model whose `builder` takes {', '.join(arguments)}, by name ({problem})"
            raise ArgumentError(MODELS.key, requirement, getattr(self, MODELS.key))
        return builder(**arguments)

    def check_inputs(self, input_shape: Sequence[int]) -> None:
        """Checks that the options fit the examples, before the model is built.

        Args:
            input_shape: shape of one example, without the batch.

        Raises:
            ArgumentError: if they do not.
        """

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns a lower bound on the number of weights in the forward kernels.

        Args:
            outputs: number of outputs.
            input_shape: shape of one example, without the batch.
        """
        del outputs, input_shape
        return 0

    def check_run(self, config: Any) -> None:
        """Checks that the model fits the other options of a run.

        Args:
            config: the configuration of the run.

        Raises:
            ValueError: if it does not.
        """


def sum_of_products(sizes: Sequence[int]) -> int:
    """Returns the sum of the products of neighbouring sizes: the number of weights of dense layers between them."""
    return sum(one * other for one, other in itertools.pairwise(sizes))
