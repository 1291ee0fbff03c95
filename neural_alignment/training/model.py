"""A Keras model whose training step moves W by the gradient of J and B by that of R."""

from __future__ import annotations

import contextlib
import functools
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from neural_alignment import keras_internals
from neural_alignment.alignments import ForwardPass, current_pass, first_example, forward_pass
from neural_alignment.alignments.forward_pass import DeferredTerm
from neural_alignment.alignments.networkwise import BoundRule, TrainingBatch, batch_size, flat_network, network_rule
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import InterceptedModel, all_layers, compute_loss, loss_tracker, loss_weight
from neural_alignment.layers import AlignedLayer, Connection, TimeDistributed
from neural_alignment.losses import HalfSquaredError
from neural_alignment.serialization import serializable
from neural_alignment.training.finite_watch import FiniteWatch
from neural_alignment.training.gradients import Gradients, dense, filled
from neural_alignment.training.minibatches import accumulated, cut, replicas
from neural_alignment.training.step_loop import StepLoop
from neural_alignment.training.step_modes import RegulariserMean, StepMode, StepModes
from optimizers import MultiOptimizer
from optimizers.keras_internals import call_count
from optimizers.optimizers import summed
from optimizers.wrapping import check_equal_steps, copy_weights_again, without_loss_scaling

Tensor = tf.Tensor


def aligned_layers(model: keras.Model) -> list[Any]:
    """Returns the layers of `model` that have backward kernels, in the order of the forward pass."""
    return [layer for layer in all_layers(model) if isinstance(layer, AlignedLayer) and layer.keeps_backward_kernel]


def connections(model: keras.Model) -> list[Connection]:
    """Returns the connections of the aligned layers, each with one W and one B, in the order of the forward pass."""
    return [connection for layer in aligned_layers(model) for connection in layer.connections]


def _check_wrappers(model: keras.Model) -> None:
    """Checks that no wrapper of Keras contains a layer whose rule is not defined in it.

    Raises:
        ValueError: if `TimeDistributed` contains one whose R would be a sum over time steps, or `SpectralNormalization`
            one whose B gets the updates of W.
    """
    for wrapper in all_layers(model):
        if isinstance(wrapper, keras.layers.TimeDistributed) and not isinstance(wrapper, TimeDistributed):
            attribute, reason = "reads_signals", "would add R of each time step to that of the others"
            example = "neural_alignment.layers.TimeDistributed(layer)"
        elif isinstance(wrapper, keras.layers.SpectralNormalization):
            attribute, reason = "tie_gradient", "would change W in each call, but not B, which gets the updates of W"
            example = "the layer without the wrapper"
        else:
            continue
        for layer in (wrapper.layer, *all_layers(wrapper.layer)):
            if isinstance(layer, AlignedLayer) and getattr(layer.alignment, attribute, False):
                requirement = f"must not contain a layer with the rule {layer.alignment.rule!r}: it {reason}"
                found = Words(f"{layer.name!r} in {wrapper.name!r}")
                raise ArgumentError(f"keras.layers.{type(wrapper).__name__}", requirement, found, example)


@contextlib.contextmanager
def measuring_pass(model: keras.Model, **options: Any) -> Iterator[ForwardPass]:
    """Activates a `ForwardPass` at the present global step of a model that does not compute R.

    Args:
        model: a model; if it is not compiled, its step is 0.
        **options: other attributes of the `ForwardPass`.
    """
    optimizer = getattr(model, "optimizer", None)
    step = 0 if optimizer is None else tf.convert_to_tensor(call_count(without_loss_scaling(optimizer)).value)
    with forward_pass(step=step, regularise=False, **options) as state:
        yield state


@serializable
class AlignedModel(InterceptedModel):
    """A functional Keras model that is trained by the task loss J and the regulariser R of its aligned layers.

    J is the compiled loss and the weight regularisers; R is the sum of the layers' R_l. One backward pass of J + R
    gives the gradients of both, because R reaches only the backward kernels or, with `update_forward`, a copy of W
    whose gradient is separate from that of J. If the scheduler of a `MultiOptimizer` skips a loss at some steps, those
    steps do not compute the quantities that only this loss needs. If the layers have a rule for a whole network
    (`neural_alignment.alignments.networkwise`), this rule propagates the error of J, and there is no R. The model then
    has the layers of nested functional and Sequential models in place of these models.

    A rule with `every` computes its R_l only at some of the steps that train J. In the other steps R does not move its
    kernels. R's optimizer is skipped if no layer computes R_l. It counts the steps in which it updates any kernel: with
    different values of `every` in one model, Adam's bias correction is the same for all kernels.

    `fit` reports J as `loss` and R as `regulariser`, each a mean over the steps at which it was computed. If layers
    have different values of `every`, R is the sum of such means.

    Rules that need the initial network (Align-zero, Align-ada, Align-prop) copy W(0) just before the first training
    step, so weights may be assigned or loaded up to then. W(0) is saved with the model: a loaded model or a resumed run
    keeps it. An optimizer that copies the weights when it is built, such as `ScheduleFreeAdamW`, copies them again at
    this time. A custom optimizer of this kind needs the class attribute `copies_weights = True`.

    A subclass may have a custom `train_step`, `test_step`, `compute_loss` or `compute_metrics`, as in Keras: `fit` and
    `evaluate` call it. Under a distribution strategy this is an error, except for `compute_loss`. A `train_step` that
    calls `super().train_step(data)` trains as described here. One that does not trains J + R, as in other Keras models:
    its `compute_loss` includes R, which is not reported separately, and rules for a whole network and rules with
    `every` are refused. The metric of R is not in `metrics`, whose `update_state` such a step may call with targets and
    outputs.

    Args:
        *args: as in `keras.Model`: `inputs` and `outputs`.
        **kwargs: as in `keras.Model`.

    Attributes:
        graphs: the `RunGraphs` to which the graphs of steps belong if another run may use them; otherwise None.

    Raises:
        ValueError: if `inputs` or `outputs` is missing, if one layer has a rule for the whole network and another
            layer does not have it, or if a wrapper of Keras contains a layer whose rule is not defined in it.
    """

    graphs: Any = None

    _regulariser_tracker: RegulariserMean | None = None

    _further_replicas = 1
    """Number of devices that share a batch in a program of one of them, which has no strategy: see `hlo`."""

    _step_modes: StepModes | None = None

    _watch: FiniteWatch | None = None

    _calls_train_step = False
    """Whether `train_step` of this class is called, so that a step has a metric of R."""

    # With these names of the arguments Keras saves a subclass as a functional model.
    def __init__(self, *args: Any, **kwargs: Any):
        if missing := [name for name in ("inputs", "outputs")[len(args) :] if kwargs.get(name) is None]:
            requirement = "must be functional, because a rule may need the graph of its layers"
            found = Words(f"{type(self).__name__} without {' and '.join(missing)}")
            raise ArgumentError("AlignedModel", requirement, found, "AlignedModel(inputs, outputs)")
        # The inputs of a model with one input are a list of one tensor. Keras would warn if it is then called with it.
        inputs, *rest = args or (kwargs.pop("inputs"),)
        outputs, *rest = rest or (kwargs.pop("outputs"),)
        super().__init__(*flat_network(_single(inputs), outputs), *rest, **kwargs)
        _check_wrappers(self)
        rule = network_rule(self)
        self._prepared = False
        self._bound_rule = None if rule is None else BoundRule(self, rule)
        self.feedback_weights = None if self._bound_rule is None else self._bound_rule.weights

    @property
    def bound_rule(self) -> BoundRule | None:
        """The rule for the whole network of the model, or None."""
        return self._bound_rule

    @property
    def weights(self) -> list[Any]:
        """All weights, including those of a rule for the whole network, which Keras before version 3.13 leaves out."""
        weights, kept = super().weights, getattr(self, "feedback_weights", None)
        known = {id(weight) for weight in weights}
        return [*weights, *(weight for weight in (kept.weights if kept else []) if id(weight) not in known)]

    @property
    def minibatches(self) -> int:
        """The number of equal parts of a batch; see `compile`."""
        return getattr(self, "_minibatches", 1)

    def intercept(self, operation: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `call`, wrapped by the hook `around` of the current `ForwardPass` if there is one."""
        state = current_pass()
        return call if state is None or state.around is None else state.around(operation, call)

    def compile(self, *args: Any, minibatches: int = 1, **kwargs: Any) -> None:
        """Configures the model, as `keras.Model.compile` does, and creates the optimizer's variables.

        Args:
            *args: as in `keras.Model.compile`.
            minibatches: number of equal parts of a batch, whose gradients are accumulated before one update. The update
                is that of the whole batch, but a loss that is a mean over weighted or masked examples is the mean over
                the parts of their means, as it is on replicas.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: if `minibatches` is not a positive integer, or is not 1 although the loss of one output is a sum
                over examples and that of another output a mean, if a layer with a `whole_batch_reason` would get a
                part of a batch (because of `minibatches` or several replicas), if two aligned layers have the same
                name, if a rule that ties the updates of B and W is used without one optimizer that updates both at
                every step, with one that scales steps by the norm of a variable, or in a layer in which only one of
                them is frozen, if loss scaling is combined with a
                rate scheduler on several replicas, if a rule has `every` and no step trains both J and R, or if an
                optimizer would lose gradients that it accumulates.
        """
        if isinstance(minibatches, bool) or not isinstance(minibatches, numbers.Integral) or minibatches < 1:
            raise ArgumentError("minibatches", "must be a positive integer", minibatches, "minibatches=4")
        minibatches = int(minibatches)
        self._check_whole_batches(minibatches)
        super().compile(*args, **kwargs)
        self._check_reductions(minibatches)
        self._minibatches = minibatches
        trained = [each for each in connections(self) if each.is_trained]
        intervals = [each.alignment.interval for each in trained]
        if self._regulariser_tracker is not None:  # Keras would track that of an earlier `compile` as well.
            keras_internals.untrack(self, self._regulariser_tracker)
        self._regulariser_tracker = RegulariserMean(intervals)
        self._step_modes = self._watch = None
        if self.optimizer is None:  # Only `evaluate` and `predict`, as in Keras.
            return
        self._step_modes = StepModes(without_loss_scaling(self.optimizer), {*intervals})
        self._check_layers()
        if not self.optimizer.built:  # If a step built it while being traced, the step would be traced twice.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        self._draws_noise = any(layer.alignment.uses_step for layer in aligned_layers(self))
        self._calls_train_step = False
        self._watch = FiniteWatch([each.name for each in trained])

    @property
    def metrics(self) -> list[Any]:
        """The metrics of J, as in `keras.Model`; that of R takes other arguments."""
        return [metric for metric in super().metrics if metric is not self._regulariser_tracker]

    @property
    def metrics_variables(self) -> list[Any]:
        """The variables of the metrics of J and R."""
        ours = self._regulariser_tracker
        return [*super().metrics_variables, *([] if ours is None else ours.variables)]

    def get_metrics_result(self) -> dict[str, Tensor]:
        """Returns the values of the metrics of J and R, by name."""
        ours = self._regulariser_tracker
        if self._is_replaced("train_step") and not self._calls_train_step:
            ours = None
        return {**super().get_metrics_result(), **({} if ours is None else {ours.name: ours.result()})}

    def reset_metrics(self) -> None:
        """Resets the metrics of J and R."""
        super().reset_metrics()
        if self._regulariser_tracker is not None:
            self._regulariser_tracker.reset_state()

    @property
    def regulariser_is_defined(self) -> bool:
        """Whether R was computed for every layer since the metrics were reset."""
        self._check_trainable("regulariser_is_defined")
        return self._regulariser_tracker.is_defined

    def _check_trainable(self, method: str) -> None:
        """Checks that the model is compiled with an optimizer, which a method or property needs."""
        if self._step_modes is None:
            found = Words("a model that is not compiled" if not self.compiled else "optimizer=None")
            example = "model.compile(MultiOptimizer([Momentum(0.1), Adam(0.001)]), loss)"
            raise ArgumentError(method, "needs a model that is compiled with an optimizer", found, example)

    def _check_whole_batches(self, minibatches: int) -> None:
        """Checks that no layer that needs the whole batch gets a part of it."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        for layer in all_layers(self) if minibatches * replicas > 1 else ():
            if reason := getattr(layer, "whole_batch_reason", None):
                if minibatches > 1:
                    requirement = f"must be 1: the layer {layer.name!r} {reason}"
                    raise ArgumentError("minibatches", requirement, minibatches, "minibatches=1")
                requirement = f"whose layer {layer.name!r} {reason} must be on one replica"
                found = Words(f"{replicas} replicas")
                raise ArgumentError("model", requirement, found, "a model made without a strategy")

    def _check_reductions(self, minibatches: int) -> None:
        """Checks that the losses of all outputs can be accumulated over minibatches in the same way."""
        if minibatches > 1 and len({reduction in _SUMS for reduction in self._reductions}) > 1:
            requirement = "must be 1 if the loss of one output is a sum over examples and that of another output a mean"
            raise ArgumentError("minibatches", requirement, minibatches, "losses with the same reduction")

    def _check_layers(self) -> None:
        """Checks that the names of aligned layers differ, and that the optimizer fits their rules."""
        layers = aligned_layers(self)
        names = [connection.name for connection in connections(self)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            requirement = "of aligned layers must be different, because it identifies their noise and their measures"
            found = Words(f"two layers named {repeated[0]!r}")
            raise ArgumentError("name", requirement, found, f"name={repeated[0] + '_2'!r}")
        tied = [layer for layer in layers if layer.alignment.tie_gradient]
        multi, replicas = without_loss_scaling(self.optimizer), self.distribute_strategy.num_replicas_in_sync
        if multi is not self.optimizer and replicas > 1 and not getattr(multi, "constant", True):
            requirement = "must not scale the loss (mixed_float16) with a rate scheduler on several replicas"
            found = Words(f"{type(multi.rate_scheduler).__name__} with {replicas} replicas")
            raise ArgumentError("optimizer", requirement, found, "the mixed_bfloat16 policy")
        # For a MultiOptimizer of Keras. That of `optimizers` checks the variables when it is built.
        several = getattr(without_loss_scaling(self.optimizer), "optimizers", [])
        if tied and len(several) > 1:
            requirement = f"{tied[0].alignment.rule!r} needs one optimizer that moves W and B at every step"
            found = Words(f"{len(several)} optimizers")
            raise ArgumentError("alignment", requirement, found, "MultiOptimizer([Momentum(0.1)])")
        for connection in connections(self):
            connection.check_frozen()
        if tied:
            check_equal_steps(self.optimizer, tied[0].alignment.rule)

    def build_metrics(self, batch: Any) -> None:
        """Creates the compiled metrics, which need the shapes of a batch, given as `tf.TensorSpec`s.

        If a step created them while being traced, the step would be traced twice.
        """
        _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if all(isinstance(spec, tf.TensorSpec) and spec.shape.rank for spec in tf.nest.flatten(y)):
            labels = tf.nest.map_structure(lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name), y)
            keras_internals.build_metrics(self, labels, self.output)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`."""
        config = super().get_compile_config()
        return {**config, "minibatches": self._minibatches} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model with the result of `get_compile_config`."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def global_step(self) -> int:
        """The number of training steps made so far, whether they train J, R or both."""
        self._check_trainable("global_step")
        return int(call_count(without_loss_scaling(self.optimizer)).numpy())

    @property
    def watched(self) -> list[tf.Variable]:
        """The variables of the steps at which J or an R_l was not finite, which are not weights."""
        self._check_trainable("watched")
        return [self._watch.steps]

    def first_non_finite(self) -> tuple[int, list[str]] | None:
        """Returns the first step at which J or an R_l was not finite, and which of them, or None.

        J is named `"J"`, and an R_l by the name of its layer.
        """
        self._check_trainable("first_non_finite")
        return self._watch.first()

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model for inference, as `keras.Model.export` does.

        Args:
            *args: as in `keras.Model.export`.
            **kwargs: as in `keras.Model.export`.
        """
        with forward_pass(regularise=False):  # The format traces gradients, which a layer alone refuses or warns of.
            super().export(*args, **kwargs)

    def take_initial_weights(self) -> None:
        """Copies W(0) for the rules that need it, before the first training step. Later calls do nothing.

        `fit`, `train_on_batch` and `train_step` call this method.
        """
        for layer in aligned_layers(self):
            layer.take_initial_kernel()
        if self._bound_rule is not None:
            self._bound_rule.start()

    def _prepare(self) -> None:
        """Copies W(0) just before the first execution of a training function, because callbacks may assign W."""
        if not self._prepared:
            self.take_initial_weights()
            if not self.global_step:
                with self.distribute_strategy.scope():
                    copy_weights_again(self.optimizer)
            self._prepared = True

    def make_train_function(self, force: bool = False) -> None:
        """Builds the function that `fit` calls for every `steps_per_execution` steps.

        The losses of a step are chosen outside of the replicas, because replicas cannot synchronize inside a branch.

        Raises:
            ValueError: if the model has no optimizer, or if a subclass overrides `train_step` or `compute_metrics` and
                there is a distribution strategy.
        """
        self._check_trainable("fit")
        self._prepared = False  # Weights may have been loaded since the last call.
        if self.train_function is not None and not force:
            return
        if not self._is_overridden("train_step"):

            def step(data: Any) -> None:
                self._step(data)

            self.train_function = StepLoop(self, "train", step, self.get_metrics_result, self._prepare)
            return
        super().make_train_function(force=True)
        train = self.train_function

        def prepared(iterator: Any) -> Any:
            self._prepare()
            return train(iterator)

        self.train_function = prepared

    def _is_overridden(self, step: str) -> bool:
        """Whether a subclass, or the model itself, has a custom version of a step, or of the metrics that it returns.

        Raises:
            ValueError: if it has and there is a distribution strategy. Keras calls such a step on each replica, where
                an `AlignedModel` cannot choose the losses of the step.
        """
        custom = [method for method in (step, "compute_metrics") if self._is_replaced(method)]
        if custom and self._distributed:
            requirement = "of an AlignedModel must not be overridden under a distribution strategy"
            found = Words(f"{type(self).__name__}.{custom[0]} with {type(self.distribute_strategy).__name__}")
            raise ArgumentError(custom[0], requirement, found, "`compute_loss` overridden instead, or no strategy")
        return bool(custom)

    def _is_replaced(self, method: str) -> bool:
        """Whether a subclass, or the model itself, has a custom version of a method."""
        return getattr(getattr(self, method), "__func__", None) is not getattr(AlignedModel, method)

    @property
    def _distributed(self) -> bool:
        """Whether the model was created under a distribution strategy."""
        with self.distribute_strategy.scope():
            return tf.distribute.has_strategy()

    def train_step(self, data: Any) -> dict[str, Tensor]:
        """Makes one training step, for custom training loops: J updates W, and R updates B.

        Args:
            data: one batch: inputs, targets, and optionally sample weights.

        Returns:
            The metrics so far, as `compute_metrics` returns them.

        Raises:
            ValueError: if the model is not compiled with an optimizer, or the method is called on each replica.
        """
        self._check_trainable("train_step")
        if tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context():
            requirement = "must be called with the batch of all replicas, which it divides among them"
            raise ArgumentError("train_step", requirement, Words("a call in `strategy.run`"), "model.train_step(batch)")
        self.take_initial_weights()
        self._calls_train_step = True
        results = self._step(data)
        return self.get_metrics_result() if self._distributed else results

    def _step(self, data: Any) -> dict[str, Tensor]:
        """Makes one step on all replicas, with the losses that are scheduled for it.

        Returns:
            The result of `compute_metrics`; empty under a distribution strategy.
        """
        strategy, modes = self.distribute_strategy, self._step_modes.modes
        step = tf.identity(call_count(without_loss_scaling(self.optimizer)))  # Before the update increments it.

        def run(mode: StepMode) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            if not self._distributed:  # Also if Keras calls the custom step of a subclass, which calls this one.
                return self._replica_step(data, step, mode)
            # Not as an argument: a TPU makes tensors of all arguments.
            watched = strategy.run(lambda *values: self._replica_step(*values, mode)[:2], args=(data, step))
            return *(strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for value in watched), {}

        if len(modes) == 1:
            *watched, results = run(modes[0])
        else:
            *watched, results = tf.switch_case(
                self._step_modes.present(step), [functools.partial(run, mode) for mode in modes]
            )
        self._watch.update(step, *watched)
        return results

    @property
    def _targets(self) -> list[Any]:
        """The variables to which the gradients of a step belong. A W that both losses train occurs for J and for R."""
        trainable = self.trainable_variables
        return [*trainable, *(variable for variable in trainable if getattr(variable, "trained_by_both", False))]

    def _replica_step(self, data: Any, step: Tensor, mode: StepMode) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Makes one step on the examples of one replica.

        Returns:
            J and the R_l of these examples, `(layers,)`, and the result of `compute_metrics`.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        optimizer = without_loss_scaling(self.optimizer)
        gradients, loss, regularisers, outputs = self._batch_gradients(x, y, sample_weight, step, mode)
        scheduled = isinstance(optimizer, MultiOptimizer)
        targets = self._targets
        if scheduled and not optimizer.skip_idle:
            gradients = filled(gradients, targets)
        gradients = self._without_fixed(self._without_resting(gradients, targets, mode), targets)
        if not scheduled:
            gradients, targets = summed(gradients, targets)
        if mode.intervals is not None or self._bound_rule:  # Keras would warn about the missing gradients.
            pairs = [pair for pair in zip(gradients, targets, strict=True) if scheduled or pair[0] is not None]
            gradients, targets = [gradient for gradient, _ in pairs], [target for _, target in pairs]
        with optimizer.mode(mode.j_runs, mode.r_runs) if scheduled else contextlib.nullcontext():
            self.optimizer.apply(gradients, targets)
        loss_tracker(self).update_state(loss, sample_weight=batch_size(x))
        if mode.r_runs:
            # Each step counts once, so that an epoch can continue on another number of replicas.
            self._regulariser_tracker.update_state(regularisers, mode, sample_weight=1 / replicas())
        results = self.compute_metrics(x, y, outputs, sample_weight=sample_weight)
        return tf.cast(loss, tf.float32), regularisers, results

    @property
    def step_modes(self) -> StepModes:
        """The losses that the steps of a compiled model train."""
        self._check_trainable("step_modes")
        return self._step_modes

    def hlo(self, batch: tuple[tf.TensorSpec, ...], mode: StepMode, replicas: int = 1) -> bytes:
        """Returns the XLA program of one step on one device, a serialized `HloModuleProto`. No step is made.

        Args:
            batch: shapes and dtypes of the inputs and targets on this device.
            mode: the losses that the step trains, one of the modes in `step_modes`.
            replicas: number of devices that share the batch of the step.
        """
        self.take_initial_weights()
        self.build_metrics(batch)

        def step(*data: Tensor) -> None:
            number = tf.identity(call_count(without_loss_scaling(self.optimizer)))
            self._watch.update(number, *self._replica_step(data, number, mode)[:2])

        function = tf.function(step, jit_compile=True, autograph=False)
        self._further_replicas = replicas
        try:
            return function.experimental_get_compiler_ir(*batch)(stage="hlo_serialized")
        finally:
            self._further_replicas = 1

    def _without_resting(self, gradients: Sequence[Any], targets: Sequence[Any], mode: StepMode) -> list[Any]:
        """Returns the gradients, with None for the kernels whose R_l is not computed in this step.

        A gradient of zero would let the momentum of R's optimizer continue.
        """
        if mode.intervals is None:
            return list(gradients)
        trained = [each for each in connections(self) if each.is_trained]
        resting = [each for each in trained if each.alignment.interval not in mode.intervals]
        backward = {id(each.stored_backward_kernel) for each in resting}
        forward = {id(each.kernel) for each in resting if each.alignment.trains_forward}
        of_j = len(self.trainable_variables)  # The targets after these are those W that R trains too.
        return [
            None if id(target) in backward or (index >= of_j and id(target) in forward) else gradient
            for index, (gradient, target) in enumerate(zip(gradients, targets, strict=True))
        ]

    def _without_fixed(self, gradients: Sequence[Any], targets: Sequence[Any]) -> list[Any]:
        """Returns the gradients, with None for the variables that a rule for the whole network does not train.

        With a gradient of zero an optimizer would move them by weight decay or noise.
        """
        if self._bound_rule is None:
            return list(gradients)
        pairs = zip(gradients, targets, strict=True)
        return [gradient if self._bound_rule.trains(target) else None for gradient, target in pairs]

    def make_test_function(self, force: bool = False) -> None:
        """Builds the function that `evaluate` calls. It returns J and the metrics over all replicas, but not R."""
        if self.test_function is not None and not force:
            return
        if self._is_overridden("test_step"):
            super().make_test_function(force)
            return

        def step(data: Any) -> None:
            self.distribute_strategy.run(self.test_step, args=(data,))

        self.test_function = StepLoop(self, "test", step, lambda: self._without_r(self.get_metrics_result()))

    def _without_r(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the values of metrics except that of R."""
        return {name: value for name, value in results.items() if name != self._regulariser_tracker.name}

    def test_step(self, data: Any) -> dict[str, Tensor]:
        """Evaluates one batch. Returns J and the metrics so far, but not R.

        If the loss is a mean with sample weights, its mean over batches uses the same weights. Examples of weight 0
        therefore have no effect.

        Args:
            data: one batch: inputs, targets, and optionally sample weights.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self(x, training=False)
        loss = compute_loss(self, x, y, outputs, sample_weight, training=False)
        count = batch_size(x)
        weights = [each for each in tf.nest.flatten(sample_weight) if each is not None]
        if len(weights) == len(self.outputs) == 1 and self._reductions == ["mean_with_sample_weight"]:
            count = tf.reduce_sum(weights[0])
        loss_tracker(self).update_state(loss * replicas(), sample_weight=count)
        return self._without_r(self.compute_metrics(x, y, outputs, sample_weight=sample_weight))

    def _batch_gradients(self, x, y, sample_weight, step, mode):
        """Returns the gradients over the examples of one replica, J, the R_l `(layers,)`, and the outputs.

        The sum of the gradients over all replicas is the gradient of the mean of J and R over replicas. If all replicas
        have the same number of examples, this is the mean over all examples.

        Args:
            x: inputs of the part of the batch on this replica.
            y: targets.
            sample_weight: weights of the examples, or none.
            step: the global step.
            mode: the losses that are optimized at this step.
        """
        parts, examples = self._minibatches, batch_size(x)
        first = first_example(examples) if self._draws_noise else 0
        if parts == 1:
            return self._gradients(x, y, sample_weight, step, first, mode)

        batch = tf.nest.map_structure(lambda t: None if t is None else cut(t, parts), (x, y, sample_weight))

        def part(index):
            chosen = tf.nest.map_structure(lambda t: None if t is None else t[index], batch)
            begin = first + index * (examples // parts)
            gradients, *rest = self._gradients(*chosen, step, begin, mode)
            return [*map(dense, gradients, self._targets)], *rest

        return accumulated(part, parts)

    def _gradients(self, x, y, sample_weight, step, first_example, mode):
        """Runs the model forward and backward once. Arguments and result are those of `_batch_gradients`."""
        options = {"step": step, "first_example": first_example, "deferred": []}
        options |= {"parts": self._minibatches * self._further_replicas}
        options |= {"regularise": mode.r_runs, "intervals": mode.intervals}
        copies: list[tuple[Connection, Tensor]] = []
        sum_factor = self._minibatches if self._reductions[:1] and self._reductions[0] in _SUMS else 1
        if sum_factor > 1:  # The mean over the parts of such sums is the sum over the batch.
            sample_weight = _times(sum_factor, sample_weight, batch_size(x))
        with forward_pass(**options, has_initial_weights=True) as state:
            forward = functools.partial(self, x, training=True)
            if self._bound_rule:
                batch = TrainingBatch(x, y, sample_weight, self._reduction, self._loss_scale, self._codes)
                forward = self._bound_rule.forward(batch)
            with tf.GradientTape() as tape:
                state.separate = functools.partial(_copy_kernel, tape, copies)
                outputs = forward()
                # Keras has divided the loss by the number of replicas.
                loss = self._task_loss(x, y, outputs, sample_weight)
                # With the reduction None, Keras differentiates the sum over the examples and reports their mean.
                task, *terms = _widened([_summed(loss), *state.losses.values()])
                total = sum(terms) / replicas() if terms else 0.0
                total = self.optimizer.scale_loss(total + task if mode.j_runs else total)
        gradients, trainable = Gradients(self._targets), self.trainable_variables
        if mode.j_runs or state.losses:
            found = tape.gradient(total, [*trainable, *(copy for _, copy in copies)])
            gradients.values[: len(trainable)] = found[: len(trainable)]
            for (connection, _), gradient in zip(copies, found[len(trainable) :], strict=True):
                gradients.add_of_r(connection.kernel, gradient)
            known = {id(variable) for variable in trainable}  # Empty if the model itself is frozen.
            for each in connections(self):
                if each.name in state.losses and id(each.stored_backward_kernel) in known:
                    each.check_gradient(gradients.of(each.stored_backward_kernel))
        of_j = last = gradients.present()
        for term in state.deferred:
            connection = term.connection
            if connection.alignment.reads_signals:
                # Its noise takes the place of the activations of J, which are freed from the last layer to the first.
                own = gradients.of(connection.kernel)
                value, _ = self._add_deferred(gradients, term, of_j if own is None else [own])
            else:
                value, last = self._add_deferred(gradients, term, last)
            state.add(connection.name, value)
        regularisers = [tf.cast(state.losses.get(name, 0.0), tf.float32) for name in self._watch.layers]
        if loss.shape.rank:
            loss = tf.reduce_mean(loss) / sum_factor
        loss *= replicas()
        return gradients.values, loss, tf.stack(regularisers) if regularisers else tf.zeros([0]), outputs

    def _task_loss(self, x: Any, y: Any, outputs: Any, sample_weight: Any) -> Tensor:
        """Returns J of a training step. It is 0 in a model that trains only R, to align B to a given W."""
        only_r = self.loss is None and not self.losses and not self._is_replaced("compute_loss")
        if only_r and any(each.is_trained for each in connections(self)):
            return tf.zeros([], keras.config.floatx())
        return compute_loss(self, x, y, outputs, sample_weight, training=True)

    @property
    def _reductions(self) -> list[str | None]:
        """How J is made from the losses of the examples, for each output with a loss, as in `keras.losses.Loss`."""
        losses = [keras.losses.get(each) for each in keras.tree.flatten(self.loss) if each is not None]
        return [getattr(each, "reduction", "sum_over_batch_size") for each in losses]  # Keras wraps a plain function.

    @property
    def _reduction(self) -> str | None:
        """The reduction of the loss of the first output."""
        return next(iter(self._reductions), "sum_over_batch_size")

    @property
    def _loss_scale(self) -> Any:
        """The factor between the differentiated J and the reduced errors of the examples."""
        factor = self._loss.examples if isinstance(self._loss, HalfSquaredError) else 1
        return self.optimizer.scale_loss(loss_weight(self) * factor)

    @property
    def _codes(self) -> Any:
        """The targets of the outputs for each class, `(classes, outputs)`, or None if they are one-hot codes."""
        return self._loss.targets if isinstance(self._loss, HalfSquaredError) else None

    @property
    def _loss(self) -> Any:
        """J as a Keras loss, or as a function."""
        return keras.losses.get(keras.tree.flatten(self.loss)[0])

    def _add_deferred(
        self, gradients: Gradients, term: DeferredTerm, before: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Computes R_l of a rule that does not read the batch, and adds its gradients.

        Args:
            gradients: the gradients to add to.
            term: R_l.
            before: tensors that are computed before R_l. This saves memory, because they free others.

        Returns:
            R_l, and the tensors that the next R_l may have to wait for.
        """
        with tf.control_dependencies(before), tf.GradientTape() as tape:
            tape.watch(term.kernels)
            value = term.regulariser()
            total = self.optimizer.scale_loss(value / replicas())
        with tf.control_dependencies(before):
            found = tape.gradient(total, term.kernels)
        term.connection.check_gradient(found["backward"])
        variables = {"backward": term.connection.stored_backward_kernel, "forward": term.connection.kernel}
        for name, gradient in found.items():
            gradients.add_of_r(variables[name], gradient)
        return value, [gradient for gradient in found.values() if gradient is not None] or [value]


def _single(structure: Any) -> Any:
    """Returns the tensor of a list of one tensor; any other structure of tensors is returned unchanged."""
    return structure[0] if isinstance(structure, list | tuple) and len(structure) == 1 else structure


_SUMS = ("sum", "none", None)
"""Reductions by which J is a sum over the examples. With the last two Keras differentiates the sum of the losses."""


def _times(factor: int, sample_weight: Any, examples: Tensor) -> Any:
    """Returns the sample weights times a factor. Weights that are missing are 1."""

    def scaled(weights: Any) -> Tensor:
        return tf.fill([examples], tf.cast(factor, keras.config.floatx())) if weights is None else factor * weights

    return tf.nest.map_structure(scaled, sample_weight)


def _widened(terms: Sequence[Tensor]) -> list[Tensor]:
    """Returns J and the R_l in the widest of their dtypes. Layers may have another dtype than the loss."""
    widest = max((term.dtype for term in terms), key=lambda dtype: dtype.size)
    return [tf.cast(term, widest) for term in terms]


def _summed(loss: Tensor) -> Tensor:
    """Returns J, which is summed over the examples here if the compiled loss does not reduce it."""
    return tf.reduce_sum(loss) if loss.shape.rank else loss


def _copy_kernel(
    tape: tf.GradientTape, copies: list[tuple[Connection, Tensor]], connection: Connection, kernel: Tensor
) -> Tensor:
    """Returns a copy of W that `tape` watches and that the gradient of J does not pass; appends it to `copies`."""
    copy = tf.stop_gradient(kernel)
    tape.watch(copy)
    copies.append((connection, copy))
    return copy
