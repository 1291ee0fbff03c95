"""Noise added to the updates of an optimizer."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from optimizers import noise
from optimizers.arguments import integer, number
from optimizers.keras_internals import call_count, index_of
from optimizers.keras_internals import trainable_variables as built_on
from optimizers.wrapping import Wrapper, is_backward_kernel


@keras.saving.register_keras_serializable(package="optimizers")
class Noisy(Wrapper):
    """Adds zero-mean noise to every update of another optimizer, scaled by the current learning rate.

    w <- update(w) + rate e, where e is noise of the given variance (Kunin et al. 2020, section 5 and Appendix B.3). It
    is a function of the seed, the variable's path and the number of calls of `apply`, so a resumed run gets the same
    noise as an uninterrupted run. In steps without an update (`gradient_accumulation_steps`) there is no noise. Moving
    averages (`use_ema`) and constraints apply to the noisy weights.

    Args:
        optimizer: the optimizer that makes the updates.
        variance: variance of e.
        distribution: `"normal"`, `"uniform"` or `"sign"`.
        only: noise is added only to variables whose path contains this text. `"backward_kernel"` also stands for the
            backward kernels with other names, such as `backward_recurrent_kernel`. Default: all variables.
        seed: seed of the noise.
        name: name of the optimizer.

    Raises:
        ValueError: if an argument has a wrong type or is out of range, or `optimizer` cannot be wrapped.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variance: float,
        distribution: str = "normal",
        only: str | None = None,
        seed: int = 0,
        name: str | None = None,
    ):
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ValueError(f"`optimizer` must be a Keras optimizer. Received {optimizer!r}. Example: Momentum(0.1).")
        if isinstance(optimizer, Noisy):
            raise ValueError(
                "`optimizer` must not be a Noisy: the variances would add up. Received Noisy inside Noisy. "
                "Example: Noisy(Momentum(0.1), variance=2e-4)."
            )
        variance = number("variance", variance, 1e-4, least=0)
        if distribution not in noise.DISTRIBUTIONS:
            raise ValueError(
                f'`distribution` must be one of {noise.DISTRIBUTIONS}. Received {distribution!r}. Example: "normal".'
            )
        if only is not None and not isinstance(only, str):
            raise ValueError(
                "`only` must be a part of the paths of variables, or None. "
                f"Received {only!r}. Example: only='backward_kernel'."
            )
        seed = integer("seed", seed, 3)
        super().__init__([optimizer], name=name)
        self.optimizer = optimizer
        self.variance = variance
        self.distribution = distribution
        self.only = only
        self.seed = seed
        # The noise is added inside `update_step`, which Keras calls on each replica, and only if there is an update.
        update_step = optimizer.update_step
        self._calls = 0  # Number of active calls of `apply`. Each replica is a thread, which makes one call.

        def noisy_update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
            update_step(gradient, variable, learning_rate)
            if self._calls:  # No noise if the inner optimizer is used without this wrapper.
                self._add_noise(variable, learning_rate)

        optimizer.update_step = noisy_update_step

    def build(self, variables: list[Any]) -> None:
        """Builds the inner optimizer.

        Raises:
            ValueError: if the path of no variable contains `only`.
        """
        if self.built:
            return
        self.optimizer.build(variables)
        if self.only is not None and not any(map(self._chooses, variables)):
            raise ValueError(
                f"`only` must be part of the path of a variable. Received {self.only!r} with the paths "
                f"{[variable.path for variable in variables]}. Example: only='backward_kernel'."
            )
        super().build(variables)

    def check_tied(self, rule: str) -> None:
        """Raises if noise is added to other updates than those of B. See `check_equal_steps` for the reason."""
        if self.only != "backward_kernel":
            raise ValueError(
                f"`only` must be 'backward_kernel' with {rule!r}, which allows noise only on the updates of B. "
                f"Received {self.only!r}. Example: Noisy(Momentum(0.1), variance=1e-4, only='backward_kernel')."
            )

    @property
    def learning_rate(self) -> Any:
        """The current learning rate of the inner optimizer."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizer.learning_rate = value

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Runs the update of the inner optimizer and adds noise."""
        variables = list(built_on(self) if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        self._calls += 1
        try:
            self.optimizer.apply(grads, variables)
        finally:
            self._calls -= 1
        call_count(self).assign_add(1)

    def _add_noise(self, variable: tf.Variable, learning_rate: Any) -> None:
        """Adds learning rate * e to one variable on one replica. All replicas draw the same e."""
        known = built_on(self)[index_of(self, variable)]
        if not self._chooses(known):
            return
        pair = noise.key(self.seed, known.path, call_count(self).value)
        drawn = noise.draw(self.distribution, tuple(variable.shape), pair, self.variance**0.5, variable.dtype)
        variable.assign_add(tf.cast(learning_rate, variable.dtype) * drawn)

    def _chooses(self, variable: Any) -> bool:
        """Returns whether noise is added to a variable."""
        if self.only is None or self.only in variable.path:
            return True
        return self.only == "backward_kernel" and is_backward_kernel(variable)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "variance": self.variance,
            "distribution": self.distribution,
            "only": self.only,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Noisy:
        """Builds the optimizer from its configuration."""
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        return cls(**{**config, "optimizer": optimizer})
