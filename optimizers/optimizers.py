"""An optimizer that contains one optimizer per loss."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from optimizers.arguments import flag, is_number
from optimizers.keras_internals import call_count, leave_sum_to_caller, schedule_of
from optimizers.keras_internals import trainable_variables as built_on
from optimizers.wrapping import Wrapper, averages, check_equal_steps, is_backward_kernel

J, R = 0, 1
"""Indices of the two losses: the task loss J and the alignment regulariser R."""


def loss_of(variable: Any) -> int:
    """Returns the loss that trains `variable`: R for backward kernels, J for all others."""
    return R if is_backward_kernel(variable) else J


@keras.saving.register_keras_serializable(package="optimizers")
class GlobalClock(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is evaluated at the global step, not at the number of updates of its optimizer.

    An optimizer that is skipped in some steps counts only its own updates, because Adam's bias correction depends on
    this number. Its learning rate nevertheless follows the global step.

    Args:
        schedule: the schedule.
        iterations: the variable that counts global steps.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, iterations: Any):
        self.schedule = schedule
        self.iterations = iterations

    def __call__(self, step: Any) -> Any:
        """Returns the rate at the global step. `step`, the number of updates, is ignored."""
        del step
        return self.schedule(self.iterations.value)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the schedule. The optimizer adds the clock again when it is loaded."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.optimizers.schedules.LearningRateSchedule:
        """Returns the schedule without the clock."""
        return keras.saving.deserialize_keras_object(config["schedule"])


@keras.saving.register_keras_serializable(package="optimizers")
class MultiOptimizer(Wrapper):
    """Trains the variables of each loss with a separate optimizer (Kunin et al. 2020, Appendix A.3).

    The first optimizer trains all variables except the backward kernels by the gradient of J. The second trains the
    backward kernels by the gradient of R. A variable whose attribute `trained_by_both` is true (W of a rule with
    `update_forward`) is updated twice: by J's optimizer with J's gradient, then by R's optimizer with R's gradient. A
    single optimizer trains all variables by J + R, as Kolen-Pollack requires.

    `iterations` counts global steps: the steps of J, of R, and of both. The rate scheduler and all learning-rate
    schedules follow it, also schedules that are assigned to an inner optimizer later. Each inner optimizer counts its
    own updates, except RAdam and SWATS, which count global steps.

    Arguments of the inner optimizers (`weight_decay`, clipping, `use_ema`, `gradient_accumulation_steps`) apply to the
    variables of their loss. `learning_rate` is that of J's optimizer, so Keras' `LearningRateScheduler` and
    `ReduceLROnPlateau` change only the learning rate of J; `learning_rates` are those of both losses. Loss scaling must
    be outermost, as in `LossScaleOptimizer(MultiOptimizer([...]))`; with the mixed_float16 policy Keras does this
    automatically.

    Args:
        optimizers: one optimizer for J and one for R, or one for both.
        rate_scheduler: a function of the global step that returns the rates of J and R, such as `RateScheduler`.
            Default: both rates are 1 at every step.
        skip_idle: whether to skip the optimizer of a loss whose rate is 0. If False, the optimizer runs with a zero
            gradient, as in the published code, so its momentum continues to change the variables.
        name: name of the optimizer.

    Raises:
        ValueError: if `optimizers` is not a list of one or two different Keras optimizers, one of them scales the loss
            or serves several losses, or `rate_scheduler` does not return two scalars at step 0.
    """

    def __init__(
        self,
        optimizers: Sequence[keras.optimizers.Optimizer],
        rate_scheduler: Callable[[Any], tuple[Any, Any]] | None = None,
        skip_idle: bool = True,
        name: str | None = None,
    ):
        inner = list(optimizers) if isinstance(optimizers, (list, tuple)) else []
        kinds = all(isinstance(o, keras.optimizers.Optimizer) for o in inner)
        if len(inner) not in (1, 2) or not kinds or len({id(_innermost(o)) for o in inner}) != len(inner):
            raise ValueError(
                "`optimizers` must be a list of one or two different Keras optimizers, [J's, R's]. "
                f"Received {optimizers!r}. Example: MultiOptimizer([Momentum(0.1), keras.optimizers.Adam(1e-3)])."
            )
        # A class is callable too, but with its constructor's arguments.
        if rate_scheduler is not None and (isinstance(rate_scheduler, type) or not callable(rate_scheduler)):
            raise ValueError(
                f"`rate_scheduler` must be callable with a step, or None. Received {rate_scheduler!r}. {_RATES_EXAMPLE}"
            )
        skip_idle = flag("skip_idle", skip_idle)
        super().__init__(inner, name=name)
        self.rate_scheduler = rate_scheduler
        self.skip_idle = skip_idle
        self._turn = threading.local()  # Each replica is a thread.
        if not self.constant:
            _check_rates(rate_scheduler)
        self._follow_global_step()
        for optimizer in inner:
            # `apply` sums the gradients of all replicas before clipping; Keras would sum them after clipping.
            leave_sum_to_caller(_innermost(optimizer))

    serves_several_losses = True

    def build(self, variables: list[Any]) -> None:
        """Builds each optimizer on the variables of its loss.

        Raises:
            ValueError: if a rule ties B's update to W's (Kolen-Pollack) but W and B are not updated by one optimizer
                at every step, or by one that `check_equal_steps` refuses, if R's optimizer has `use_ema` and updates a
                variable that J's optimizer updates too, or if one optimizer accumulates gradients and updates W and B
                in different steps.
        """
        if self.built:
            return
        self._follow_global_step()
        variables = _unique(variables)
        self._check_tied(variables)
        self._check_accumulation(variables)
        self._check_trained_by_both(variables)
        for optimizer, own in zip(self.inner_optimizers, self.shares(variables), strict=True):
            if own:
                optimizer.build(own)
        super().build(variables)

    def _check_tied(self, variables: Sequence[Any]) -> None:
        """Raises if a rule requires equal updates of W and B, but they differ. Layers mark such a B with `tied_by`."""
        rules = [rule for rule in (getattr(variable, "tied_by", None) for variable in variables) if rule]
        together = self.constant or getattr(self.rate_scheduler, "together", False)
        if rules and not (together and len(self.inner_optimizers) == 1):
            raise ValueError(
                f"{rules[0]!r} needs one optimizer that updates W and B at every step, and equal loss rates. Received "
                f"{len(self.inner_optimizers)} optimizers, rate scheduler {self.rate_scheduler!r}. "
                "Example: MultiOptimizer([Momentum(0.1)])."
            )
        if rules:
            check_equal_steps(self.inner_optimizers[J], rules[0])

    def _check_accumulation(self, variables: Sequence[Any]) -> None:
        """Raises if an optimizer that accumulates gradients would update W and B in different steps.

        With each update, Keras also discards the accumulated gradients of the variables that this step does not update.
        """
        steps, *_ = accumulations(self)
        differs = self.skip_idle and len({mode for mode in self.modes if any(mode)}) > 1
        if len(self.inner_optimizers) == 1 and steps and differs and len({*map(loss_of, variables)}) == 2:
            raise ValueError(
                "`gradient_accumulation_steps` must be None if one optimizer updates W and B in different steps. "
                f"Received {steps} with {self.rate_scheduler!r}. Example: one optimizer for each loss."
            )

    def _check_trained_by_both(self, variables: Sequence[Any]) -> None:
        """Raises if R's optimizer updates W and has `use_ema`. W would then have two moving averages."""
        if (
            len(self.inner_optimizers) == 2
            and averages(self.inner_optimizers[R])
            and any(map(_is_trained_by_both, variables))
        ):
            raise ValueError(
                "`use_ema` of R's optimizer must be False if R trains W too (`update_forward`): W would have two "
                "averages. Received use_ema=True. Example: MultiOptimizer([SGD(0.1, use_ema=True), Adam(1e-3)])."
            )

    def shares(self, variables: Sequence[Any]) -> list[list[Any]]:
        """Returns, for each inner optimizer, the variables that it updates."""
        if len(self.inner_optimizers) == 1:
            return [list(variables)]
        of_r = [variable for variable in variables if loss_of(variable) == R or _is_trained_by_both(variable)]
        return [[variable for variable in variables if loss_of(variable) == J], of_r]

    @property
    def constant(self) -> bool:
        """Whether both rates are 1 at every step."""
        return self.rate_scheduler is None or getattr(self.rate_scheduler, "constant", False)

    @property
    def modes(self) -> list[tuple[bool, bool]]:
        """The possible modes: pairs (J is trained, R is trained). All four if the rate scheduler has no `modes`."""
        if self.constant:
            return [(True, True)]
        return list(getattr(self.rate_scheduler, "modes", [(True, True), (True, False), (False, True), (False, False)]))

    def rates(self, step: Any = None) -> tuple[Any, Any]:
        """Returns the factors on J and R at a global step, two float32 scalars. Default: the current step."""
        if self.constant:
            return tf.ones([]), tf.ones([])
        j_rate, r_rate = self.rate_scheduler(call_count(self).value if step is None else step)
        return tf.convert_to_tensor(j_rate, tf.float32), tf.convert_to_tensor(r_rate, tf.float32)

    @property
    def learning_rate(self) -> Any:
        """The current learning rate of J's optimizer; `learning_rates` has those of both losses."""
        return self.inner_optimizers[J].learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizers[J].learning_rate = value
        self._follow_global_step()

    @property
    def learning_rates(self) -> tuple[Any, Any]:
        """The current learning rates of J and R.

        They are set by a sequence with one learning rate or schedule per optimizer. As in Keras, a number cannot
        replace a schedule, and a step that was already traced keeps the schedule with which it was traced.
        """
        self._follow_global_step()
        return self.inner_optimizers[0].learning_rate, self.inner_optimizers[-1].learning_rate

    @learning_rates.setter
    def learning_rates(self, values: Sequence[Any]) -> None:
        count = len(self.inner_optimizers)
        if not isinstance(values, (list, tuple)) or len(values) != count or not all(map(_is_rate, values)):
            raise ValueError(
                f"`learning_rates` must be finite numbers or learning-rate schedules, one for each optimizer. "
                f"Received {values!r}. Example: optimizer.learning_rates = {[0.1, 1e-3][:count]}."
            )
        for value, optimizer in zip(values, self.inner_optimizers, strict=True):
            if not callable(value) and schedule_of(_innermost(optimizer)) is not None:
                raise ValueError(
                    "`learning_rates` must not replace a schedule by a number. "
                    f"Received {value!r} for {type(_innermost(optimizer)).__name__} with a schedule. "
                    "Example: a keras.optimizers.schedules.LearningRateSchedule."
                )
        # All are read before one is set, because they may be the variables of these optimizers.
        read = [value if callable(value) or is_number(value) else tf.convert_to_tensor(value) for value in values]
        for value, optimizer in zip(read, self.inner_optimizers, strict=True):
            optimizer.learning_rate = value
        self._follow_global_step()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute. Keras would add variables in `learning_rates` to those of this optimizer."""
        if name == "learning_rates":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _follow_global_step(self) -> None:
        """Makes all inner optimizers follow the global step, also those that were given a schedule since the last call.

        This changes only attributes of Python objects, so it may be called while a graph is traced.
        """
        for optimizer in self.inner_optimizers:
            _follow_global_step(optimizer, call_count(self))

    @contextlib.contextmanager
    def mode(self, j_runs: bool, r_runs: bool) -> Iterator[None]:
        """A context in which calls of `apply` train only the given losses: one of `modes`.

        Without this context `apply` chooses the mode by the rates, and a graph contains all modes. On several replicas
        the context is required, because the choice must be made outside of the replicas.

        Args:
            j_runs: whether J is trained.
            r_runs: whether R is trained.
        """
        self._turn.mode = (j_runs, r_runs)
        try:
            yield
        finally:
            self._turn.mode = None

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Updates the variables by their gradients, each multiplied by the rate of its loss.

        On several replicas the gradients are first summed over the replicas, so that clipping applies to the sums.

        Args:
            grads: one gradient of J + R per variable, or None for a variable without a gradient.
            trainable_variables: the variables. Default: those with which the optimizer was built. A variable that both
                losses update is listed twice, first with J's gradient and then with R's. With one optimizer and no
                rate scheduler it may be listed once, with the gradient of J + R.

        Raises:
            ValueError: if the optimizer is not built and no variables are given; if a variable that both losses update
                is listed once but two gradients are needed; on several replicas, if there is a rate scheduler but no
                `mode` context, or if an optimizer accumulates gradients or overwrites variables with averages.
        """
        if trainable_variables is None and not self.built:
            raise ValueError(
                "`trainable_variables` must be given if the optimizer is not built. Received None. "
                "Example: optimizer.build(variables)."
            )
        variables = list(built_on(self) if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        self._follow_global_step()
        self._check_replicas()
        updates = _summed_over_replicas([each for each in self._updates(grads, variables) if each.gradient is not None])
        if self.constant:
            self._apply_all(updates)
        elif getattr(self._turn, "mode", None) is not None:
            self._apply_mode(updates, *self._turn.mode)
        else:
            self._apply_scheduled(updates)
        call_count(self).assign_add(1)

    def _updates(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[_Update]:
        """Returns each gradient with its variable and loss. The second gradient of a variable is that of R."""
        updates, seen = [], set()
        for gradient, variable in zip(grads, variables, strict=True):
            updates.append(_Update(gradient, variable, R if id(variable) in seen else loss_of(variable)))
            seen.add(id(variable))
        if len(self.inner_optimizers) == 2 or not self.constant:
            twice = {id(each.variable) for each in updates if each.loss == R}
            once = [v for v in variables if _is_trained_by_both(v) and id(v) not in twice]
            if once:
                raise ValueError(
                    "A variable that both losses update (`update_forward`) must be given twice, with J's and with R's "
                    f"gradient. Received {once[0].path!r} once. Example: train with `AlignedModel`, which does this, "
                    "or use MultiOptimizer([Momentum(0.1)])."
                )
        return updates

    def _check_replicas(self) -> None:
        """Raises if an option makes an inner optimizer branch in a step: replicas cannot synchronise in a branch."""
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return
        for optimizer in map(_innermost, self.inner_optimizers):
            for option in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
                if getattr(optimizer, option):
                    raise ValueError(
                        f"`{option}` must be None on several replicas. Received {getattr(optimizer, option)} of "
                        f"{type(optimizer).__name__}. Example: AlignedModel.compile(minibatches=4) to accumulate."
                    )

    def _apply_scheduled(self, updates: list[_Update]) -> None:
        """Chooses the mode by the rates of the current step and applies the updates."""
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            raise ValueError(
                "With a rate scheduler on several replicas `apply` must be called inside a `mode` context. Received a "
                "call outside of `mode`. Example: train with `AlignedModel`, which does this."
            )
        branches = [lambda j=j, r=r: self._apply_mode(updates, j, r) for j, r in self.modes]
        tf.switch_case(self.present_mode(), branches)

    def present_mode(self, step: Any = None) -> Any:
        """Returns the index in `modes` of the mode at a global step, an int32 scalar. Default: the current step."""
        runs = [tf.not_equal(rate, 0.0) for rate in self.rates(step)]
        matches = [tf.logical_and(tf.equal(runs[J], j), tf.equal(runs[R], r)) for j, r in self.modes]
        return tf.argmax(tf.cast(tf.stack(matches), tf.int32), output_type=tf.int32)

    def _apply_all(self, updates: list[_Update]) -> None:
        """Runs every optimizer on the gradients of its loss."""
        if len(self.inner_optimizers) == 1:
            _run(self.inner_optimizers[0], updates)
            return
        for loss, optimizer in enumerate(self.inner_optimizers):
            _run(optimizer, [each for each in updates if each.loss == loss])

    def _apply_mode(self, updates: list[_Update], j_runs: bool, r_runs: bool) -> tf.Operation:
        """Runs the optimizers of the losses that are trained. Each counts and clips only the variables it updates."""
        rates, runs = self.rates(), (j_runs, r_runs)
        if self.skip_idle:
            updates = [each for each in updates if runs[each.loss]]
        self._apply_all([each.scaled(rates[each.loss]) for each in updates])
        return tf.no_op()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "optimizers": [keras.saving.serialize_keras_object(optimizer) for optimizer in self.inner_optimizers],
            "rate_scheduler": self.rate_scheduler and keras.saving.serialize_keras_object(self.rate_scheduler),
            "skip_idle": self.skip_idle,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> MultiOptimizer:
        """Builds the optimizer from its configuration."""

        def load(value):
            return value and keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        optimizers = [load(optimizer) for optimizer in config["optimizers"]]
        return cls(**{**config, "optimizers": optimizers, "rate_scheduler": load(config["rate_scheduler"])})


_RATES_EXAMPLE = "Example: RateScheduler(steps_per_epoch=100, alternation=1)."


def _check_rates(rate_scheduler: Callable[[Any], Any]) -> None:
    """Raises if a rate scheduler does not return the rates of J and R, two scalars, at step 0."""
    requirement = "`rate_scheduler` must return the rates of J and R, two scalars, when it is called with a step."
    try:
        rates = rate_scheduler(tf.zeros([], tf.int64))  # The type that `apply` passes.
    except Exception as error:
        raise ValueError(
            f"{requirement} Received {rate_scheduler!r}, which fails at step 0 with {error!r}. {_RATES_EXAMPLE}"
        ) from error
    try:
        shapes = [tf.convert_to_tensor(rate, tf.float32).shape for rate in rates]
    except (TypeError, ValueError):  # Not a sequence, or not numbers.
        shapes = []
    if shapes != [(), ()]:
        raise ValueError(
            f"{requirement} Received {rate_scheduler!r}, which returns {rates!r} at step 0. {_RATES_EXAMPLE}"
        )


def _is_rate(value: Any) -> bool:
    """Returns whether a value may be set as a learning rate: a number, a scalar tensor or variable, or a schedule."""
    if isinstance(value, type):
        return False
    return callable(value) or is_number(value) or (hasattr(value, "dtype") and tuple(value.shape) == ())


class _Update(NamedTuple):
    """The gradient of one loss (J or R) to one variable."""

    gradient: Any
    variable: Any
    loss: int

    def scaled(self, rate: Any) -> _Update:
        """Returns a copy with the gradient multiplied by `rate`."""
        return self._replace(gradient=tf.cast(rate, self.gradient.dtype) * self.gradient)


def _is_trained_by_both(variable: Any) -> bool:
    """Returns whether both losses train the variable. Layers mark W in this way if the rule has `update_forward`."""
    return getattr(variable, "trained_by_both", False)


def _run(optimizer: keras.optimizers.Optimizer, updates: list[_Update]) -> None:
    """Applies the gradients to their variables, if there are any."""
    if updates:
        optimizer.apply(*summed([each.gradient for each in updates], [each.variable for each in updates]))


def summed(gradients: Sequence[Any], variables: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Sums the gradients of J and R per variable, for an optimizer that needs each variable once per step.

    Args:
        gradients: one per variable, or None for a variable without a gradient.
        variables: the variables; each may occur more than once.

    Returns:
        The gradients and the variables, in which each variable occurs once.
    """
    sums: dict[int, Any] = {}
    for gradient, variable in zip(gradients, variables, strict=True):
        known = sums.get(id(variable))
        sums[id(variable)] = gradient if known is None else known if gradient is None else known + gradient
    unique = _unique(variables)
    return [sums[id(variable)] for variable in unique], unique


def _unique(variables: Sequence[Any]) -> list[Any]:
    """Returns each variable once, in order."""
    return list({id(variable): variable for variable in variables}.values())


def _summed_over_replicas(updates: list[_Update]) -> list[_Update]:
    """Sums the gradients of all replicas."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1 or not updates:
        return updates
    added = replica.all_reduce(tf.distribute.ReduceOp.SUM, [each.gradient for each in updates])
    return [each._replace(gradient=gradient) for each, gradient in zip(updates, added, strict=True)]


def accumulations(optimizer: keras.optimizers.Optimizer) -> list[int | None]:
    """Returns `gradient_accumulation_steps` of the optimizer of each loss, or of an optimizer of both."""
    return [
        _innermost(each).gradient_accumulation_steps for each in getattr(optimizer, "inner_optimizers", [optimizer])
    ]


def _innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer inside wrappers such as `Noisy`; it holds the learning rate."""
    return _innermost(optimizer.inner_optimizers[0]) if isinstance(optimizer, Wrapper) else optimizer


def _follow_global_step(optimizer: keras.optimizers.Optimizer, iterations: Any) -> None:
    """Makes the optimizer's learning-rate schedule, if it has one, follow the global step.

    Optimizers with the global step in their formula, such as RAdam, get its counter through their method `follow`.
    """
    optimizer = _innermost(optimizer)
    if hasattr(optimizer, "follow"):
        optimizer.follow(iterations)
    schedule = schedule_of(optimizer)
    if isinstance(schedule, GlobalClock):
        if schedule.iterations is iterations:
            return
        schedule = schedule.schedule
    if schedule is not None:
        optimizer.learning_rate = GlobalClock(schedule, iterations)
