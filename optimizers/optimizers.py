"""A list of optimizers for a list of losses."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from optimizers.keras_internals import call_count, leave_sum_to_caller, schedule_of
from optimizers.keras_internals import trainable_variables as built_on
from optimizers.wrapping import Wrapper, averages

J, R = 0, 1
"""Positions of the two losses: the task loss and the regulariser."""


def loss_of(variable: Any) -> int:
    """Returns which loss moves `variable`: R the backward kernels, J all others."""
    return R if variable.path.split("/")[-1] == "backward_kernel" else J


@keras.saving.register_keras_serializable(package="optimizers")
class GlobalClock(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that reads the global step, whatever the number of updates of the optimizer that asks.

    An optimizer that rests while the other loss is at work counts its own updates, as Adam's bias correction needs;
    the learning rate goes by the global step all the same.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, iterations: Any):
        self.schedule = schedule
        self.iterations = iterations

    def __call__(self, step: Any) -> Any:
        """Returns the rate at the global step."""
        del step
        return self.schedule(self.iterations.value)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the schedule: the clock belongs to the optimizer that set it."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.optimizers.schedules.LearningRateSchedule:
        """Returns the schedule without the clock."""
        return keras.saving.deserialize_keras_object(config["schedule"])


@keras.saving.register_keras_serializable(package="optimizers")
class MultiOptimizer(Wrapper):
    """One optimizer per loss, [J, R]; each moves the variables of its own loss (Kunin et al. 2020, Appendix A.3).

    J moves all variables except the backward kernels, which R moves. A variable with a true attribute `moved_by_both`
    (W of a rule with `update_forward`) is moved by both: J's optimizer applies J's gradient and then R's optimizer
    applies R's gradient, each with separate slots. With one optimizer it takes J + R on all of them, as Kolen-Pollack
    needs. `iterations` counts every global step, of J or of R; learning-rate schedules and the rate
    scheduler go by it. Each inner optimizer counts its own updates; only RAdam and SWATS go by the global step.

    Arguments of the optimizers inside (`weight_decay`, clipping, `use_ema`, `gradient_accumulation_steps`) apply to the
    variables of their loss. `learning_rate` is that of J: Keras' `LearningRateScheduler` and `ReduceLROnPlateau` change
    J's rate only. Loss scaling goes around: `LossScaleOptimizer(MultiOptimizer([...]))`, which the mixed_float16 policy
    does by itself.

    Args:
        optimizers: [J's, R's], or one for both.
        rate_scheduler: global step -> (J rate, R rate), such as `RateScheduler`; 1 and 1 at every step where none.
        skip_idle: a loss at rate 0 is skipped: its optimizer does not run. With False it gets the zero gradient, as in
            the published code, so that momentum drifts on.

    Raises:
        ValueError: if `optimizers` is not a list of one or two different Keras optimizers, or one of them scales the
            loss or serves several losses.
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
        if rate_scheduler is not None and not callable(rate_scheduler):
            raise ValueError(
                "`rate_scheduler` must be callable with a step, or None. "
                f"Received {rate_scheduler!r}. Example: RateScheduler(steps_per_epoch=100, alternation=1)."
            )
        super().__init__(inner, name=name)
        self.rate_scheduler = rate_scheduler
        self.skip_idle = skip_idle
        self._turn = threading.local()  # Replicas are threads.
        for optimizer in inner:
            _follow(optimizer, call_count(self))
            # Gradients are added up here, before clipping; Keras would do so after it.
            leave_sum_to_caller(_innermost(optimizer))

    serves_several_losses = True

    def build(self, variables: list[Any]) -> None:
        """Builds each optimizer on the variables of its loss.

        Raises:
            ValueError: if a rule ties B's update to W's (Kolen-Pollack) and not one optimizer moves both at every step,
                or if R's optimizer would average a variable that J moves too.
        """
        if self.built:
            return
        variables = _unique(variables)
        self._check_tied(variables)
        self._check_moved_by_both(variables)
        for optimizer, own in zip(self.inner_optimizers, self.shares(variables), strict=True):
            if own:
                optimizer.build(own)
        super().build(variables)

    def _check_tied(self, variables: Sequence[Any]) -> None:
        """Refuses to move W and B apart where a rule ties them; aligned layers mark the B of such a rule."""
        rules = [rule for variable in variables if (rule := getattr(variable, "tied_by", None))]
        together = self.constant or getattr(self.rate_scheduler, "together", False)
        if rules and not (together and len(self.inner_optimizers) == 1):
            raise ValueError(
                f"{rules[0]!r} needs one optimizer that moves W and B at every step, and equal loss rates. Received "
                f"{len(self.inner_optimizers)} optimizers, rate scheduler {self.rate_scheduler!r}. "
                "Example: MultiOptimizer([Momentum(0.1)])."
            )

    def _check_moved_by_both(self, variables: Sequence[Any]) -> None:
        """Refuses `use_ema` of R's optimizer where it moves W: only J's optimizer sees W after both updates."""
        if (
            len(self.inner_optimizers) == 2
            and averages(self.inner_optimizers[R])
            and any(map(_is_moved_by_both, variables))
        ):
            raise ValueError(
                "`use_ema` of R's optimizer must be False where R moves W too (`update_forward`): W would have two "
                "averages. Received use_ema=True. Example: MultiOptimizer([SGD(0.1, use_ema=True), Adam(1e-3)])."
            )

    def shares(self, variables: Sequence[Any]) -> list[list[Any]]:
        """Returns, for each inner optimizer, those of the variables that it moves."""
        if len(self.inner_optimizers) == 1:
            return [list(variables)]
        moved_by_r = [variable for variable in variables if loss_of(variable) == R or _is_moved_by_both(variable)]
        return [[variable for variable in variables if loss_of(variable) == J], moved_by_r]

    @property
    def constant(self) -> bool:
        """Whether both losses run at rate 1 at every step."""
        return self.rate_scheduler is None or getattr(self.rate_scheduler, "constant", False)

    @property
    def modes(self) -> list[tuple[bool, bool]]:
        """The pairs (J runs, R runs) that occur; all where the rate scheduler does not say."""
        if self.constant:
            return [(True, True)]
        return list(getattr(self.rate_scheduler, "modes", [(True, True), (True, False), (False, True), (False, False)]))

    def rates(self, step: Any = None) -> tuple[Any, Any]:
        """Returns the rates of J and R at a global step, at the present one where none is given."""
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
        _follow(self.inner_optimizers[J], call_count(self))

    @property
    def learning_rates(self) -> tuple[Any, Any]:
        """The current learning rates of J and R."""
        return self.inner_optimizers[0].learning_rate, self.inner_optimizers[-1].learning_rate

    @contextlib.contextmanager
    def mode(self, j_runs: bool, r_runs: bool) -> Iterator[None]:
        """Says which losses run in the calls of `apply` that are traced meanwhile, one of `modes`.

        Without it `apply` looks at the rates, and a graph holds all modes. On several replicas it must be said: there
        the choice is to be made outside of the replicas.
        """
        self._turn.mode = (j_runs, r_runs)
        try:
            yield
        finally:
            self._turn.mode = None

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Applies the gradients of J + R to their variables, each at the rate of its loss.

        On several replicas the gradients are added up first, so that clipping sees the whole gradient.

        Args:
            grads: one gradient per variable; none where a variable has no gradient.
            trainable_variables: the variables; those that the optimizer was built with where none. One that both losses
                move is given twice, first with J's gradient and then with R's; once is enough, with the gradient of
                J + R, if there is one optimizer and no rate scheduler.

        Raises:
            ValueError: if the optimizer is not built and no variables are given; if a variable that both losses move
                is given once and the two gradients are needed; on several replicas, if the losses take turns and
                `mode` does not say whose turn it is, or if an optimizer accumulates gradients or overwrites variables
                with averages.
        """
        if trainable_variables is None and not self.built:
            raise ValueError("The optimizer is not built. Call `build(variables)` first, or give the variables.")
        variables = list(built_on(self) if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        self._check_replicas()
        updates = _added_up([each for each in self._updates(grads, variables) if each.gradient is not None])
        if self.constant:
            self._apply_all(updates)
        elif getattr(self._turn, "mode", None) is not None:
            self._apply_mode(updates, *self._turn.mode)
        else:
            self._apply_scheduled(updates)
        call_count(self).assign_add(1)

    def _updates(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[_Update]:
        """Returns the gradients with their variables and losses."""
        updates, seen = [], set()
        for gradient, variable in zip(grads, variables, strict=True):
            updates.append(_Update(gradient, variable, R if id(variable) in seen else loss_of(variable)))
            seen.add(id(variable))
        if len(self.inner_optimizers) == 2 or not self.constant:
            twice = {id(each.variable) for each in updates if each.loss == R}
            once = [v for v in variables if _is_moved_by_both(v) and id(v) not in twice]
            if once:
                raise ValueError(
                    "A variable that both losses move (`update_forward`) must be given twice, with J's and with R's "
                    f"gradient. Received {once[0].path!r} once. Example: train with `AlignedModel`, which does, or use "
                    "MultiOptimizer([Momentum(0.1)])."
                )
        return updates

    def _check_replicas(self) -> None:
        """Refuses options by which an optimizer branches within a step: there replicas cannot wait for each other."""
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
        """Applies by the mode that the rates of this step tell."""
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            raise ValueError(
                "With a rate scheduler on several replicas `apply` must be told whose turn it is. Received a call "
                "outside of `mode`. Example: train with `AlignedModel`, which does."
            )
        branches = [lambda j=j, r=r: self._apply_mode(updates, j, r) for j, r in self.modes]
        tf.switch_case(self.present_mode(), branches)

    def present_mode(self) -> Any:
        """Returns the place in `modes` of what runs at the present global step, an int32 scalar."""
        runs = [tf.not_equal(rate, 0.0) for rate in self.rates()]
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
        """Runs the optimizers of the losses whose turn it is; an optimizer counts and clips by what it moves."""
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
        """Builds the optimizer from what `get_config` returned."""

        def load(value):
            return value and keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        optimizers = [load(optimizer) for optimizer in config["optimizers"]]
        return cls(**{**config, "optimizers": optimizers, "rate_scheduler": load(config["rate_scheduler"])})


class _Update(NamedTuple):
    """The gradient of one loss to one variable."""

    gradient: Any
    variable: Any
    loss: int

    def scaled(self, rate: Any) -> _Update:
        """Returns the same with the gradient times the rate of its loss."""
        return self._replace(gradient=tf.cast(rate, self.gradient.dtype) * self.gradient)


def _is_moved_by_both(variable: Any) -> bool:
    """Whether both losses move the variable; layers mark W of a rule with `update_forward`."""
    return getattr(variable, "moved_by_both", False)


def _run(optimizer: keras.optimizers.Optimizer, updates: list[_Update]) -> None:
    """Applies gradients to variables, where there are any."""
    if updates:
        optimizer.apply(*summed([each.gradient for each in updates], [each.variable for each in updates]))


def summed(gradients: Sequence[Any], variables: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Adds the gradients of J and R to one variable, for an optimizer that must see each variable once in a step.

    Args:
        gradients: one per variable; none where a variable has no gradient.
        variables: may have a variable twice.

    Returns:
        The gradients and the variables, each variable once.
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


def _added_up(updates: list[_Update]) -> list[_Update]:
    """Adds the gradients of all replicas."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1 or not updates:
        return updates
    added = replica.all_reduce(tf.distribute.ReduceOp.SUM, [each.gradient for each in updates])
    return [each._replace(gradient=gradient) for each, gradient in zip(updates, added, strict=True)]


def _innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer that holds the learning rate: inside wrappers such as `Noisy`."""
    return _innermost(optimizer.inner_optimizers[0]) if isinstance(optimizer, Wrapper) else optimizer


def _follow(optimizer: keras.optimizers.Optimizer, iterations: Any) -> None:
    """Makes the optimizer's learning-rate schedule, where it has one, go by the global step.

    An optimizer whose formula has the global step, such as RAdam, has a method `follow` that takes its counter.
    """
    optimizer = _innermost(optimizer)
    if hasattr(optimizer, "follow"):
        optimizer.follow(iterations)
    schedule = schedule_of(optimizer)
    if schedule is not None:
        schedule = schedule.schedule if isinstance(schedule, GlobalClock) else schedule
        optimizer.learning_rate = GlobalClock(schedule, iterations)
