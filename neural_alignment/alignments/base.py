"""The base classes of all learning rules, and the values that a rule can read: `LayerView` and `Signals`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import keras
import numpy as np
import pydantic
import tensorflow as tf

from neural_alignment.alignments import primitives, schedules
from neural_alignment.alignments.examples import PartOfBatch, divisor, examples_used
from neural_alignment.alignments.pathways import (
    BackwardOutput,
    ForwardOutput,
    InputPath,
    batch_center,
    batch_mean,
    draw_noise,
    feature_center,
    inverse_norm,
    noise_key,
    standardise,
)
from neural_alignment.errors import ArgumentError, Words, WrongValue
from neural_alignment.operations import LinearMap
from neural_alignment.options import Options

Tensor = tf.Tensor

ActivationName = Literal[
    tuple(
        name
        for name in sorted(dir(keras.activations))
        if not name.startswith("_") and name not in ("deserialize", "get", "serialize", "glu", "threshold")
    )
]
"""The name of a nonlinearity in Keras that does not change the shape and requires no arguments."""


class _computed_once:  # noqa: N801 (a decorator)
    """A property that is computed when it is first read.

    Before Python 3.12 `functools.cached_property` holds a lock during the computation. Replicas are threads that wait
    for each other at every mean over the batch, so the lock would cause a deadlock.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._function(instance)
        return value


@dataclass
class LayerView:
    """The kernels, inputs and other values of a layer in one forward pass, as they are passed to its rule.

    `inputs`, `bias` and `projection` are behind `tf.stop_gradient`, so that the gradient of R reaches only B. With
    `update_forward` it reaches W too; otherwise `forward_kernel` is behind `tf.stop_gradient` as well.

    Attributes:
        linear_map: the linear map of the layer, including its strides and padding.
        inputs: x, `(batch, ..., inputs)`. None creates a view without this attribute, for a rule without
            `reads_signals`.
        forward_kernel: W: `(inputs, outputs)`, or `(rows, columns, inputs, outputs)` in a convolution.
        backward_kernel: B as the layer stores it: `(outputs, inputs)`, or the shape of W in a convolution. Formulas
            with signals (B^T x, B z) write B in the shape of W.
        bias: `(outputs,)`, or None.
        activation: the nonlinearity that follows the layer, or None.
        projection: W^T x without the bias, `(batch, ..., outputs)`, if the layer has already computed it; otherwise
            None.
        name: the layer's name. The noise of layers with different names is independent.
        step: the global step.
        first_example: index of the first example within the batch of the step. It is not 0 on the second and later
            replicas, and for later parts of a batch whose gradients are accumulated.
        update_forward: whether R trains W too.
    """

    linear_map: LinearMap
    inputs: Tensor | None
    forward_kernel: Tensor
    backward_kernel: Tensor
    bias: Tensor | None = None
    activation: Callable[[Tensor], Tensor] | None = None
    projection: Tensor | None = None
    name: str = "layer"
    step: Tensor | int = 0
    first_example: Tensor | int = 0
    update_forward: bool = False

    def __post_init__(self):
        fixed = (
            ("inputs", "bias", "projection")
            if self.update_forward
            else ("inputs", "forward_kernel", "bias", "projection")
        )
        for name in fixed:
            if (value := getattr(self, name)) is not None:
                setattr(self, name, tf.stop_gradient(value))
        if self.inputs is None:
            del self.inputs

    def __getattr__(self, name: str) -> Any:
        """Raises the error of an attribute that the view does not have."""
        if name != "inputs":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        requirement = "can be read only by a rule with `reads_signals = True`"
        found = Words(f"layer {self.name!r} with another rule, whose R is added once for all uses of the layer")
        raise AttributeError(WrongValue(name, requirement, found, "class MyRule(SignalAlignment)").sentences)

    @property
    def trained_forward_kernel(self) -> Tensor | None:
        """W if R trains it, otherwise None: the optional argument of the primitives `decay` and `sparse`."""
        return self.forward_kernel if self.update_forward else None

    def known_projection(self) -> Tensor | None:
        """Returns `projection`, with a gradient to W if R trains W; None if it has not been computed."""
        if self.projection is None or not self.update_forward:
            return self.projection

        @tf.custom_gradient
        def projection(kernel):
            def gradient(upstream):
                return self.linear_map.correlate(self.inputs, upstream, like=kernel)

            return tf.identity(self.projection), gradient

        return projection(self.forward_kernel)

    @property
    def transposed_forward_kernel(self) -> Tensor:
        """W in the layout of B."""
        return self.linear_map.transpose(self.forward_kernel)

    @property
    def transposed_backward_kernel(self) -> Tensor:
        """B in the layout of W. In a matrix product TensorFlow does not write the transpose to memory."""
        return self.linear_map.transpose(self.backward_kernel)


@dataclass(frozen=True)
class KernelView:
    """The kernels of a connection at one step, from which a rule computes the kernel through which the error travels.

    Attributes:
        linear_map: the linear map of the connection.
        forward_kernel: W, behind `tf.stop_gradient`.
        backward_kernel: the stored backward weight, in the layout of W: B, or the weight from which `carried_kernel`
            computes B, such as L of `ProductFeedback`.
        fixed_kernel: the second backward weight, or None. See `Alignment.fixed_shape`.
        name: name of the connection. The random numbers of connections with different names are independent.
        step: the global step.
    """

    linear_map: LinearMap
    forward_kernel: Tensor
    backward_kernel: Tensor
    fixed_kernel: Tensor | None = None
    name: str = "layer"
    step: Tensor | int = 0


class Signals:
    """The signals of a layer after the operations of Table 5 of Kunin et al. 2020, each computed when it is first read.

    The order of the operations is that of the published code: noise; centring and normalisation of the input;
    projections with bias; nonlinearity; reconstructions from these; standardisation, which is centring and
    normalisation, of projections and reconstructions.

    Args:
        view: the layer.
        input_path: operations on the input.
        forward_output: operations on the forward projection.
        backward_output: operations on the backward projection.
        seed: seed of the noise.
        activation: the nonlinearity that `relu: true` applies. Default: that of `view`.
    """

    def __init__(
        self,
        view: LayerView,
        input_path: InputPath,
        forward_output: ForwardOutput,
        backward_output: BackwardOutput,
        seed: int,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        self.view = view
        self.input_path = input_path
        self.forward_output = forward_output
        self.backward_output = backward_output
        self.seed = seed
        self.activation = view.activation if activation is None else activation

    @_computed_once
    def inputs(self) -> Tensor:
        """The input of the forward path: the layer's input or noise, after feature-wise operations."""
        inputs = self.view.inputs
        if self.input_path.noise is not None:
            key = noise_key(self.seed, self.view.name, self.view.step)
            inputs = draw_noise(self.input_path, inputs, key, self.view.first_example)
        return standardise(inputs, self.input_path, batch=False)

    @_computed_once
    def backward_inputs(self) -> Tensor:
        """The input of the backward path: that of the forward path, centred over the batch with `batch_center`."""
        return standardise(self.inputs, InputPath(batch_center=self.input_path.batch_center), batch=True)

    @_computed_once
    def forward_activity(self) -> Tensor:
        """W^T x with bias and nonlinearity, not standardised."""
        projection = self.view.known_projection() if self.inputs is self.view.inputs else None
        if projection is None:
            projection = self.view.linear_map.project(self.inputs, self.view.forward_kernel)
        return self._activity(projection, self.forward_output)

    @_computed_once
    def backward_activity(self) -> Tensor:
        """B^T x with bias and nonlinearity, not standardised."""
        projection = self.view.linear_map.project(self.backward_inputs, self.view.transposed_backward_kernel)
        return self._activity(projection, self.backward_output)

    @_computed_once
    def forward_projection(self) -> Tensor:
        """W^T x after all operations of the forward path: x_out in Table 1 of Kunin et al. 2020."""
        return standardise(self.forward_activity, self.forward_output, batch=True)

    @property
    def trained_forward_projection(self) -> Tensor | None:
        """The forward projection if R trains W, otherwise None; see `LayerView.trained_forward_kernel`."""
        return self.forward_projection if self.view.update_forward else None

    @_computed_once
    def backward_projection(self) -> Tensor:
        """B^T x after all operations of the backward path."""
        return standardise(self.backward_activity, self.backward_output, batch=False)

    @_computed_once
    def forward_reconstruction(self) -> Tensor:
        """B x_out: the input as reconstructed from the forward activity, standardised like the forward path."""
        return standardise(self._unstandardised_reconstruction, self.forward_output, batch=True)

    @_computed_once
    def _unstandardised_reconstruction(self) -> Tensor:
        return self._reconstruct(self.forward_activity, self.view.transposed_backward_kernel)

    @_computed_once
    def backward_reconstruction(self) -> Tensor:
        """W (B^T x): the input as reconstructed from the backward activity, standardised like the backward path."""
        reconstruction = self._reconstruct(self.backward_activity, self.view.forward_kernel)
        return standardise(reconstruction, self.backward_output, batch=False)

    def overlap(self, shares: Literal["projection", "reconstruction"] | None = None) -> Tensor:
        """Returns the amp primitive of the two projections, computed in the cheapest of three equivalent forms.

        If the backward projection is linear in B, then <B^T x, z> = <B, x (x) z> = <x, B z>, where z is the forward
        projection and (x) denotes the outer product. The second form needs one correlation and no projection by B. The
        third form costs nothing extra if the rule computes the reconstruction B z anyway, for the null primitive. Both
        primitives then share one gradient of the kernel.

        Centring is linear and self-adjoint, so it can move from one side of the product to the other: the second and
        third form hold with every centring, and with normalisation of the forward projection. They do not hold if the
        backward projection passes a nonlinearity or is divided by its norm, which require B^T x itself.

        Args:
            shares: the signal that the rule computes anyway: the projection B^T x, or the reconstruction B z.
        """
        output = self.backward_output
        nonlinear = output.feature_normalize or (output.relu and self.activation is not None)
        if nonlinear or shares == "projection":
            return primitives.amp(self.backward_projection, self.forward_projection)
        if shares == "reconstruction":
            overlap = self._overlap_with_reconstruction()
        else:
            overlap = primitives.self_(self._transposed_hebbian, self.view.backward_kernel)
            # The scalar is divided: dividing the projection would read and write it once more.
            overlap /= divisor(self.view.inputs, overlap.dtype)
        if output.bias and self.view.bias is not None:
            overlap += primitives.amp(tf.zeros_like(self._opposite) + self.view.bias, self._opposite)
        return overlap

    def _overlap_with_reconstruction(self) -> Tensor:
        """Returns the third form of `overlap`, without the bias.

        With the mean m of z over its features, the divisor 1/s of normalisation, and the centred input x, it is
        -mean s (<x, B z> - m <x, B 1>). The last term is the projection of a single input, the mean of s m x.
        """
        inputs, activity, output = self.backward_inputs, self.forward_activity, self.forward_output
        if output.batch_center:
            inputs = batch_center(inputs)
        features, column = range(1, activity.shape.rank), [-1] + [1] * (inputs.shape.rank - 1)
        if output.feature_normalize:
            inputs = inputs * tf.reshape(inverse_norm(activity), column)
        overlap = primitives.amp(inputs, self._unstandardised_reconstruction)
        if output.centers_features or self.backward_output.feature_center:
            means = tf.reshape(tf.reduce_mean(activity, axis=features), column)
            weighted = batch_mean(inputs * means)
            overlap += tf.reduce_sum(self.view.linear_map.project(weighted, self.view.transposed_backward_kernel))
        return overlap

    @_computed_once
    def _opposite(self) -> Tensor:
        """The forward projection, centred over its features if the backward projection is."""
        if self.backward_output.feature_center and not self.forward_output.centers_features:
            return feature_center(self.forward_projection)
        return self.forward_projection

    @_computed_once
    def _transposed_hebbian(self) -> Tensor:
        """The sum over the batch of the outer product of x and x_out, in the layout of B."""
        correlation = self.view.linear_map.correlate(
            self.backward_inputs, self._opposite, like=self.view.forward_kernel
        )
        return self.view.linear_map.transpose(correlation)

    def _activity(self, projection: Tensor, output: ForwardOutput | BackwardOutput) -> Tensor:
        if output.bias and self.view.bias is not None:
            projection = projection + self.view.bias
        if output.relu and self.activation is not None:
            projection = self.activation(projection)
        return projection

    def _reconstruct(self, activity: Tensor, kernel: Tensor) -> Tensor:
        return self.view.linear_map.reconstruct(activity, kernel, like=self.view.inputs)


class Alignment(Options):
    """A learning rule: how the backward kernel B of a layer comes to resemble the forward kernel W.

    A rule is called with the `LayerView` of layer l. It returns R_l, the term of R for this layer, a scalar. The
    gradient of R_l reaches B, and W if `trains_forward` is true. A rule is immutable, so layers can share it. It is a
    pydantic model, whose fields are the options of the rule in a YAML configuration.
    """

    tie_gradient: ClassVar[bool] = False
    """Whether the kernel through which the error travels gets the gradient of J to W, transposed (the angle
    primitive). See `carried_kernel`."""
    reads_signals: ClassVar[bool] = False
    """Whether R_l depends on the layer's inputs, as in `SignalAlignment`. If False, it depends only on the kernels, and
    the `LayerView` has no inputs."""
    learns: ClassVar[bool] = True
    """Whether R trains B. If False, R is not computed, and the optimizer keeps no state for B."""
    keeps_kernel: ClassVar[bool] = True
    """Whether each layer has a backward kernel. A rule for a whole network keeps its weights in the model instead."""
    takes_sequences: ClassVar[bool] = False
    """Whether the rule trains recurrent networks with an output at each step."""
    starts_at_forward: ClassVar[bool] = False
    """Whether B starts as W(0), the value of W at the first training step, instead of an independent draw."""

    rule: str
    """The rule's name in a configuration."""
    layers: str | None = None
    """Shell-style pattern of layer names, such as conv*. A layer gets the first rule whose pattern matches its name.
    Default: all layers."""
    steps_per_epoch: pydantic.PositiveInt = 1
    """Length of an epoch in global steps, for weights that are schedules. Default in a run: that of the data. In
    a Keras model an epoch is one step unless this is set."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _saves_work_of_r(cls, data: Any) -> Any:
        """Refuses the options that save a part of R, with the reason, if the rule has no such part."""
        rule = cls.model_fields["rule"].default
        kernels_only = f"{rule}, whose R depends only on the kernels" if cls.learns else f"{rule}, whose R is 0"
        for name in ("examples", "every"):
            if isinstance(data, dict) and name in data and name not in cls.model_fields:
                raise ArgumentError(name, f"must be left out with {kernels_only}", data[name])
        return data

    def __call__(self, view: LayerView) -> Tensor:
        """Returns R_l, a scalar."""
        requirement, example = "must be defined: it returns R_l", "return tf.reduce_sum(view.backward_kernel**2)"
        wrong = WrongValue("__call__(self, view)", requirement, Words(f"{type(self).__name__} without it"), example)
        raise NotImplementedError(wrong.sentences)

    def carried_kernel(self, kernels: KernelView) -> Tensor:
        """Returns the kernel through which the error travels, in the layout of W. By default it is B itself.

        It is computed once in each forward pass through a connection, for all uses of the connection in that pass. With
        `tie_gradient`, this kernel gets the gradient of J to W, and the stored B gets it through this function.
        """
        return kernels.backward_kernel

    def stored_shape(self, linear_map: LinearMap, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the stored B, in the layout of W, for a W of `shape`. By default it is that of W.

        Args:
            linear_map: the linear map of W.
            shape: the shape of W.
        """
        del linear_map
        return tuple(shape)

    def fixed_shape(self, linear_map: LinearMap, shape: Sequence[int]) -> tuple[int, ...] | None:
        """Returns the shape of a second backward weight, which never changes, for a W of `shape`; None without one.

        Args:
            linear_map: the linear map of W.
            shape: the shape of W.
        """
        del linear_map, shape

    def draw_fixed(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Returns the values of the weight that `fixed_shape` describes.

        Args:
            shape: its shape.
            rng: a generator whose seed depends on the layer and on the seed of W's initializer.
        """
        raise NotImplementedError

    def check_map(self, linear_map: LinearMap, layer: str) -> None:
        """Checks that the rule is defined for a linear map.

        Args:
            linear_map: the map.
            layer: name of the layer, for the message.

        Raises:
            ValueError: if it is not.
        """

    @property
    def reads_batch(self) -> bool:
        """Whether R_l depends on the examples of the batch. Otherwise it may be computed after the gradient of J."""
        return self.reads_signals

    @property
    def trains_forward(self) -> bool:
        """Whether R trains W as well as B."""
        return False

    @property
    def interval(self) -> int:
        """R is computed at the global steps that are divisible by this number."""
        return 1

    @property
    def uses_step(self) -> bool:
        """Whether the rule depends on the step, through a scheduled weight or random numbers."""
        return any(isinstance(value, schedules.Constant) for _, value in self)

    def examples_used(self, batch: int | Tensor, parts: int = 1) -> int | Tensor:
        """Returns the number of examples from which R is computed. By default these are all.

        Args:
            batch: number of examples in one part of the batch.
            parts: number of equal parts of the batch: replicas times minibatches.
        """
        del parts
        return batch

    def bind(self, seed: int | None = None, steps_per_epoch: int | None = None) -> Alignment:
        """Returns a copy with the seed and epoch length of a run, unless the rule already sets them."""
        run = {"seed": seed, "steps_per_epoch": steps_per_epoch}
        known = type(self).model_fields.keys() - self.model_fields_set
        return self.model_copy(update={key: run[key] for key in run.keys() & known if run[key] is not None})

    def check_kernel(self, kernel: Any, layer: str, argument: str) -> None:
        """Checks that the rule can be combined with the regulariser of W.

        Args:
            kernel: W, a variable of Keras.
            layer: name of the layer or connection.
            argument: name of the layer's argument that regularises W.

        Raises:
            ValueError: if it cannot.
        """

    def check_run(self, config: Any) -> None:
        """Checks that the rule can be combined with the other options of a run.

        Args:
            config: the configuration of the run.

        Raises:
            ValueError: if it cannot. The message begins with the key path of the wrong option.
        """

    def weight(self, primitive: str, view: LayerView) -> float | Tensor:
        """Returns the weight of the primitive with the name `primitive` at the step of `view`."""
        dtype = tf.float64 if view.backward_kernel.dtype == tf.float64 else tf.float32
        return schedules.evaluate(getattr(self, primitive), view.step, self.steps_per_epoch, dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the fields that differ from their defaults, for serialisation by Keras."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Alignment:
        """Builds the rule from the result of `get_config`."""
        with contextlib.suppress(ValueError):
            return cls(**config)
        # `get_config` writes tuples, sets and enumerations as JSON does; a constructor takes the objects only.
        known = dict(config)
        for name in config.keys() & cls.model_fields.keys():
            kind = pydantic.TypeAdapter(cls.model_fields[name].rebuild_annotation())
            with contextlib.suppress(pydantic.ValidationError):
                known[name] = kind.validate_json(json.dumps(config[name]))
        return cls(**known)


class TrainedAlignment(Alignment):
    """A rule that trains B by the gradient of R.

    With `update_forward` R trains W too, as with the option of this name in the published code of Kunin et al. 2020.
    The primitives decay and sparse then have a term for each kernel: decay = 1/2 (||B||^2 + ||W||^2) and
    sparse = 1/2 (mean ||B^T x||^2 + mean ||W^T x||^2). The other primitives do not change, but are differentiated with
    respect to W as well. The inputs and the bias stay behind `tf.stop_gradient`. In an `AlignedModel` with two
    optimizers, both update W: J's optimizer by the gradient of J, and R's optimizer by the gradient of R. Each keeps
    its own state for W.
    """

    # Not written at its default, so that the configurations of earlier versions, which lack it, do not change.
    update_forward: Annotated[bool, pydantic.Field(exclude_if=lambda trains: not trains)] = False
    """Whether R trains W too."""
    every: Annotated[pydantic.PositiveInt, pydantic.Field(exclude_if=lambda every: every == 1)] = 1
    """R is computed at the global steps that are divisible by this number, beginning with step 0. In other steps R
    moves no kernel, and the state of its optimizer does not change. R is not multiplied by `every`: for the same
    movement of B per step with plain gradient descent, multiply the learning rate of R's optimizer by it. In steps that
    train only R (`delay_epochs`) `every` has no effect. Requires an `AlignedModel`."""

    @property
    def trains_forward(self) -> bool:
        """Whether R trains W as well as B."""
        return self.update_forward

    @property
    def interval(self) -> int:
        """The value of `every`. See `Alignment.interval`."""
        return self.every

    def check_run(self, config: Any) -> None:
        """Checks that J and R are trained together if R is computed at every few steps. See `Alignment.check_run`."""
        plan = config.optimization
        reason = "optimization.alternation, which sets the steps of R" if plan.alternation else None
        if plan.loss_rates.forward == 0:
            reason = "optimization.loss_rates.forward 0, which leaves no step of J"
        if self.every > 1 and reason is not None:
            raise ArgumentError(f"{config.key_path(self)}.every", f"must be left out with {reason}", self.every)


class SignalAlignment(TrainedAlignment):
    """A rule that reads the signals of a layer as well as its kernels.

    R is a mean over the examples that it uses, so fewer examples give the same expectation of R and of its gradient,
    with more variance. The exception is `batch_center`, which subtracts a mean over the examples used. With independent
    examples, a centred amp, null or sparse then has (1 - 1/n) times the expectation that it has for infinitely many
    examples. To compensate, multiply its weight by (1 - 1/N) / (1 - 1/n), where n of N examples are used. With one
    example it is 0. The factor is not exact if `input.batch_center` is combined with `relu` or `feature_normalize` in
    `backward_output`. Sample weights of J do not affect R.

    Raises:
        ValueError: if `activation` is given and neither output has `relu: true`.
    """

    reads_signals: ClassVar[bool] = True

    input: InputPath = InputPath()
    """Operations on the input."""
    forward_output: ForwardOutput = ForwardOutput()
    """Operations on the forward projection."""
    backward_output: BackwardOutput = BackwardOutput()
    """Operations on the backward projection."""
    activation: ActivationName | None = None
    """Keras name of the nonlinearity that `relu: true` applies to a projection, in every layer. Default: the
    nonlinearity that follows the layer, if there is one."""
    seed: int = 0
    """Seed of the noise. Default in a run: the seed of the run. In a Keras model it is 0 unless this is set."""
    examples: Annotated[PartOfBatch | None, pydantic.Field(exclude_if=lambda examples: examples is None)] = None
    """The part of the batch from which R is computed, or the number of noise images if `input.noise` is set. A float in
    (0, 1] is a fraction f: of n examples, each replica and each minibatch uses the first ceil(f n). An integer is a
    count c for the whole batch: of p replicas or minibatches, each uses the first ceil(c / p). The first examples are a
    random sample if the data are shuffled. Default: all examples."""

    @pydantic.model_validator(mode="after")
    def _activation_is_used(self):
        if self.activation is not None and not (self.forward_output.relu or self.backward_output.relu):
            requirement = "must be left out without `relu: true` in `forward_output` or `backward_output`"
            raise ArgumentError("activation", requirement, self.activation, "forward_output: {relu: true}")
        return self

    @property
    def reads_batch(self) -> bool:
        """Whether R reads the layer's inputs, and not noise in their place. See `Alignment.reads_batch`."""
        return self.input.noise is None

    @property
    def uses_step(self) -> bool:
        """Whether R depends on the step, through a scheduled weight or noise."""
        return self.input.noise is not None or super().uses_step

    def examples_used(self, batch: int | Tensor, parts: int = 1) -> int | Tensor:
        """Returns the number of examples from which R is computed. See `Alignment.examples_used`."""
        return batch if self.examples is None else examples_used(self.examples, batch, parts)

    def signals(self, view: LayerView) -> Signals:
        """Returns the signals of the layer in `view`. Each is computed when it is first read."""
        activation = None if self.activation is None else keras.activations.get(self.activation)
        return Signals(view, self.input, self.forward_output, self.backward_output, self.seed, activation)
