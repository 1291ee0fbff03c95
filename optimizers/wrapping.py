"""The base class of optimizers that wrap other optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from optimizers.keras_internals import (
    AveragingOptimizer,
    copies_weights,
    moving_averages,
    scales_by_weights,
    trainable_variables,
)


class Wrapper(AveragingOptimizer):
    """An optimizer that delegates its updates to inner optimizers.

    It also forwards the methods of Keras that concern variables, weights, moving averages (`use_ema`) and the exclusion
    of variables from weight decay.

    Args:
        inner_optimizers: the inner optimizers. They must not be used elsewhere afterwards.
        name: name of the optimizer.

    Raises:
        ValueError: if an inner optimizer scales the loss or contains optimizers of several losses.
    """

    serves_several_losses = False
    """Whether the class contains one optimizer per loss. Such an optimizer cannot be wrapped."""

    def __init__(self, inner_optimizers: Sequence[keras.optimizers.Optimizer], name: str | None = None):
        super().__init__(learning_rate=0.0, name=name)
        for optimizer in inner_optimizers:
            self._check_inner(optimizer)
        # Not `optimizers`: Keras' learning-rate callbacks would set the rate of each optimizer found there.
        self.inner_optimizers = list(inner_optimizers)

    def _check_inner(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Raises if an optimizer cannot be an inner optimizer."""
        outer, inner = type(self).__name__, type(optimizer).__name__
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                f"Loss scaling must be outside {outer}: inner optimizers do not see the loss. Received "
                f"{inner} inside {outer}. Example: LossScaleOptimizer({outer}(...)), or the mixed_float16 policy."
            )
        if optimizer.loss_scale_factor is not None:
            raise ValueError(
                f"`loss_scale_factor` must be None inside {outer}: J and R are differentiated together. Received "
                f"loss_scale_factor={optimizer.loss_scale_factor!r} of {inner}. "
                f"Example: LossScaleOptimizer({outer}(...))."
            )
        if hasattr(optimizer, "optimizers") or getattr(optimizer, "serves_several_losses", False):
            raise ValueError(
                f"{outer} cannot contain an optimizer of several losses. Received {inner} inside {outer}. "
                "Example: MultiOptimizer([Noisy(Momentum(0.1), variance=1e-4), Adam(1e-3)])."
            )

    def check_tied(self, rule: str) -> None:
        """Checks that the wrapper itself fits a rule whose W and B get equal updates; see `check_equal_steps`.

        Args:
            rule: name of the rule, for the message.

        Raises:
            ValueError: if it does not.
        """

    def shares(self, variables: Sequence[Any]) -> list[list[Any]]:
        """Returns, for each inner optimizer, the variables that it updates."""
        return [list(variables) for _ in self.inner_optimizers]

    @property
    def variables(self) -> list[Any]:
        """The wrapper's own variables and those of the inner optimizers."""
        return [*super().variables, *(each for optimizer in self.inner_optimizers for each in optimizer.variables)]

    def averages_of_variables(self) -> list[Any]:
        """Returns the moving averages that the inner optimizers keep, in the order of the variables.

        Raises:
            AttributeError: if no inner optimizer keeps moving averages.
            ValueError: if only one of two does, because Keras expects an average for every variable of the model.
        """
        averaging = [optimizer for optimizer in self.inner_optimizers if averages(optimizer)]
        if not averaging:
            raise AttributeError(f"{type(self).__name__} has no optimizer with `use_ema=True`.")
        variables = trainable_variables(self)
        shares = self.shares(variables)
        moved = [own for own in shares if own]
        if len(averaging) < len(moved):
            raise ValueError(
                "SwapEMAWeights needs `use_ema=True` in every inner optimizer. Received it in "
                f"{len(averaging)} of {len(self.inner_optimizers)}. Example: "
                "MultiOptimizer([SGD(0.1, use_ema=True), Adam(1e-3, use_ema=True)])."
            )
        kept = {
            id(variable): average
            for optimizer, own in zip(self.inner_optimizers, shares, strict=True)
            if own
            for variable, average in zip(own, moving_averages(optimizer), strict=True)
        }
        return [kept[id(variable)] for variable in variables]

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Sets variables of optimizers with `use_ema=True` to their averages. Keras calls it at the end of `fit`."""
        for optimizer, own in zip(self.inner_optimizers, self.shares(var_list), strict=True):
            if own and optimizer.built:
                optimizer.finalize_variable_values(own)

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Excludes variables from the weight decay of every inner optimizer."""
        for optimizer in self.inner_optimizers:
            optimizer.exclude_from_weight_decay(var_list, var_names)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets the values of all `variables`.

        Raises:
            ValueError: if the optimizer is not built, or the number or shapes of the weights differ.
        """
        shapes = [tuple(variable.shape) for variable in self.variables]
        found = [tuple(weight.shape) for weight in weights]
        if not self.built or found != shapes:
            expected = shapes if self.built else "an optimizer that is not built"
            raise ValueError(
                "`weights` must have the shapes of the variables of a built optimizer. "
                f"Received {found} for {expected}. Example: [variable.numpy() for variable in optimizer.variables]."
            )
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)


def averages(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer, or one inside of it, keeps moving averages of the variables."""
    return optimizer.use_ema or any(averages(each) for each in getattr(optimizer, "inner_optimizers", []))


def without_loss_scaling(optimizer: Any) -> Any:
    """Returns the optimizer in the wrapper for loss scaling that Keras adds under mixed_float16, if there is one."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def copy_weights_again(optimizer: keras.optimizers.Optimizer) -> None:
    """Gives a built optimizer, and those in it, the initial state for the present weights if it has copies of weights.

    Weights may be assigned or loaded after it was built. Such an optimizer is `keras.optimizers.ScheduleFreeAdamW`, or
    has an attribute `copies_weights`, which is true.
    """
    for each in _inner(optimizer):
        copy_weights_again(each)
    if copies_weights(optimizer):
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(trainable_variables(optimizer))
        for variable, value in zip(optimizer.variables, fresh.variables, strict=True):
            variable.assign(value)


def check_equal_steps(optimizer: keras.optimizers.Optimizer, rule: str) -> None:
    """Checks that an optimizer, and those in it, make equal steps of W and B from equal gradients.

    Noise is allowed only on the updates of B (`Noisy` with `only="backward_kernel"`), as in configurations. It moves B
    away from W too, but that is its purpose: it disturbs the alignment, which the decay of the rule restores, and the
    updates of W have no noise. Any other `only` adds noise to W, which is independent of the noise of B, or to only
    some of the backward kernels.

    Args:
        optimizer: the optimizer.
        rule: name of the rule that requires this, for the message.

    Raises:
        ValueError: if one scales the step of a variable by the norm of the variable, or adds noise to other updates
            than those of B.
    """
    if scales_by_weights(type(optimizer)):
        raise ValueError(
            f"{rule!r} needs an optimizer whose steps do not depend on the norms of W and B, which differ. Received "
            f"{type(optimizer).__name__}. Example: MultiOptimizer([Momentum(0.1)])."
        )
    if isinstance(optimizer, Wrapper):
        optimizer.check_tied(rule)
    for each in _inner(optimizer):
        check_equal_steps(each, rule)


def _inner(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """Returns the optimizers directly inside of a wrapper of this package or of Keras; none for other optimizers."""
    several = getattr(optimizer, "inner_optimizers", None) or getattr(optimizer, "optimizers", [])
    return [*several, *filter(None, [getattr(optimizer, "inner_optimizer", None)])]


def is_backward_kernel(variable: Any) -> bool:
    """Returns whether a variable is a backward kernel B.

    The last part of its path is `backward_` and the name of a kernel: `backward_kernel`, or, in layers with several
    kernels, `backward_recurrent_kernel` and the like.
    """
    name = variable.path.split("/")[-1]
    return name.startswith("backward_") and name.endswith("kernel")
