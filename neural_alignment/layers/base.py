"""Base classes of all aligned layers: their connections, and the arguments that native layers lack."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.alignments import Alignment, ForwardPass, current_pass, first_example
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import InterceptedModel, outermost_call, recomputes
from neural_alignment.layers.connection import Connection, scaled, tensor_of
from neural_alignment.operations import LinearMap

Tensor = tf.Tensor

PARAMETERIZATIONS = ("standard", "ntk")
"""A kernel is used unchanged ("standard"), or divided by the square root of its fan-in ("ntk")."""


_CONSTRAINTS = ("kernel_constraint", "recurrent_constraint", "depthwise_constraint", "pointwise_constraint")
"""The arguments of native layers that constrain kernels."""


class LayerWithRule:
    """Mixin for a Keras layer with the argument `alignment`, which its constructor sets."""

    @property
    def alignment(self) -> Alignment | None:
        """The rule of the layer, or None. It cannot be changed, because the weights of the layer depend on it.

        Raises:
            ValueError: if it is set after construction.
        """
        return self._alignment

    @alignment.setter
    def alignment(self, alignment: Alignment | None) -> None:
        if "_alignment" in vars(self):
            requirement = (
                "must not be changed after a layer is constructed, because the layer has no B for another rule"
            )
            found = Words(f"{alignment!r} for layer {self.name!r} with {self.alignment!r}")
            example = "convert(convert(model, None).model, Symmetric(self_=2e-3, decay=2e-3))"
            raise ArgumentError("alignment", requirement, found, example)
        self._alignment = alignment

    def refuse_training(self, reason: str, caller: Any = None) -> None:
        """Raises the error that only a step of an `AlignedModel` can train the layer.

        Args:
            reason: the rest of a sentence that begins with the rule.
            caller: the outermost layer or model that is called. Default: that of the active call.

        Raises:
            ValueError: always.
        """
        example = "AlignedModel(model.inputs, model.outputs)"
        if isinstance(caller or outermost_call(self).layer, InterceptedModel):
            example = "super().train_step(data) in the custom `train_step` of the model"
        found = Words(f"layer {self.name!r} in training outside of a step of an `AlignedModel`")
        raise ArgumentError("alignment", f"{self.alignment.rule!r} {reason}", found, example)


class AlignedLayer(LayerWithRule):
    """Mixin that gives a Keras layer a backward kernel for each of its kernels, and R_l.

    A subclass has the native layer as its second base class and the arguments of that layer, and lists its connections
    in `make_connections`. Without an alignment it behaves exactly like the native layer.

    Args:
        *args: as in the native layer.
        alignment: the rule of the layer. None is plain backpropagation; the layer then has no B.
        **kwargs: as in the native layer, and those of `alignment_arguments`. `alignment_activation` is the nonlinearity
            that follows the layer, if it is not the layer's `activation`; an example is a convolution before batch
            normalisation. `parameterization` is "standard" or "ntk". With "ntk" W is drawn from N(0, 1) unless an
            initializer is given, and W and B are divided by sqrt(fan-in) when they are used.

    Raises:
        ValueError: if an argument has a wrong type or cannot be combined with an alignment.
    """

    alignment_arguments: ClassVar[tuple[str, ...]] = ("alignment", "alignment_activation", "parameterization")
    """The arguments that the native layer does not have."""

    initializer_arguments: ClassVar[tuple[str, ...]] = ("kernel_initializer",)
    """The arguments of the native layer that initialise the kernels of `kernel_names`, in this order."""

    kernel_names: ClassVar[tuple[str, ...]] = ("kernel",)
    """The names of the weights that have a backward kernel."""

    alignment_name: str | None = None
    """Name in measures and noise. Default: the layer's name. Sublayers of different layers may have the same name."""

    _converted_kernels: dict[str, np.ndarray] | None = None

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):  # The constructor of a user's class.
            cls.__signature__ = _ClassSignature(_without_self(inspect.signature(cls.__init__)))
            return
        layers = (base for base in cls.__bases__ if issubclass(base, keras.layers.Layer))
        native = next((base for base in layers if not issubclass(base, AlignedLayer)), None)
        if native is not None:
            signature = _with_arguments(inspect.signature(native), cls.alignment_arguments)
            cls.__signature__ = _ClassSignature(signature)

    def __init__(self, *args: Any, alignment: Alignment | dict | None = None, **kwargs: Any):
        own = {name: kwargs.pop(name) for name in self.alignment_arguments if name in kwargs}
        parameterization = own.get("parameterization", "standard")
        if parameterization not in PARAMETERIZATIONS:
            requirement = f"must be one of {', '.join(PARAMETERIZATIONS)}"
            raise ArgumentError("parameterization", requirement, parameterization, 'parameterization="ntk"')
        if parameterization == "ntk":
            kwargs = self._with_initializers(args, kwargs)
        super().__init__(*args, **kwargs)
        self._initializers: dict[str, Any] = {}
        self.alignment = checked_rule(alignment)
        self.parameterization = parameterization
        follows = own.get("alignment_activation")
        self.alignment_activation = keras.activations.get(follows) if follows else None
        if not self.is_native:
            self.check_arguments()

    def _with_initializers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments with the kernel initializers of the NTK parameterization, unless they are given."""
        given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
        names = [name for name in self.initializer_arguments if name not in {*given, *kwargs}]
        return {**kwargs, **{name: keras.initializers.RandomNormal(stddev=1.0) for name in names}}

    def check_arguments(self) -> None:
        """Checks that the arguments of the native layer can be combined with an alignment.

        Raises:
            ValueError: if they cannot.
        """
        if getattr(self, "lora_rank", None):
            requirement = "must be None with `alignment`: the backward kernel would follow the wrong weights"
            raise ArgumentError("lora_rank", requirement, self.lora_rank, "lora_rank=None")
        check_floats(self)
        check_computed_once(self)
        check_unconstrained(self, {name: getattr(self, name, None) for name in _CONSTRAINTS})
        if getattr(self, "data_format", None) == "channels_first":
            example = 'data_format="channels_last"'
            raise ArgumentError("data_format", 'must be "channels_last" in an aligned layer', self.data_format, example)

    def make_connections(self) -> Sequence[Connection]:
        """Returns the connections of the built native layer."""
        raise NotImplementedError

    def input_shapes(self, inputs: Sequence[int | None] | None = None) -> list[tuple[int | None, ...]]:
        """Returns the shape of the inputs of each connection; None for an unknown size.

        Args:
            inputs: shape of the inputs of the layer. Default: the shape with which it was built.
        """
        return [tuple(inputs or self.get_build_config()["input_shape"])]

    @property
    def connections(self) -> Sequence[Connection]:
        """The connections of the layer, in the order of the forward pass; none if the layer has no backward kernels."""
        return self.make_connections() if self.keeps_backward_kernel else ()

    @property
    def alignment_weights(self) -> list[Any]:
        """The weights that the native layer does not have: backward weights and step counters."""
        return [weight for connection in self.connections for weight in connection.weights]

    def connect(self, linear_map: LinearMap, kernel_name: str = "kernel", **options: Any) -> Connection:
        """Returns a connection of this layer.

        Args:
            linear_map: as in `Connection`.
            kernel_name: the name of W.
            **options: other attributes of `Connection`.
        """
        own = self.alignment_name or self.name
        name = own if len(self.kernel_names) == 1 else f"{own}.{kernel_name}"
        defaults = {"holder": self, "bias": None, "following_activation": None, "name": name}
        return Connection(self, linear_map, kernel_name, **{**defaults, **options})

    @property
    def is_native(self) -> bool:
        """Whether the layer behaves exactly like the native Keras layer."""
        return self.alignment is None and self.parameterization == "standard"

    @property
    def keeps_backward_kernel(self) -> bool:
        """Whether the layer has a backward kernel: it has a rule, which is not a rule for a whole network."""
        return self.alignment is not None and self.alignment.keeps_kernel

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Creates a weight, as the native layer does, and notes the initializer of a kernel."""
        # The native layer may derive the initializer of a kernel from its argument.
        if "_initializers" in self.__dict__ and kwargs.get("name") in self.kernel_names:
            self._initializers[kwargs["name"]] = kwargs.get("initializer")
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the native layer and, if the rule has them, the backward kernels.

        Raises:
            ValueError: if a B needs an independent draw and the initializer gives all entries of W the same value, or
                if the rule cannot be combined with the regulariser of W.
        """
        super().build(input_shape)
        self.add_backward_kernels()

    def add_backward_kernels(self) -> None:
        """Creates the weights of all connections, and forgets the kernels of the native layer that this one is from."""
        for connection in self.connections:
            name = connection.kernel_name
            drawn = (self._converted_kernels or {}).get(name)
            connection.add_weights(self.initializer_of(connection), drawn)
        self._converted_kernels = None

    def initializer_of(self, connection: Connection) -> Any:
        """Returns the initializer of the W of a connection."""
        return keras.initializers.get(self._initializers[connection.kernel_name])

    def regularizer_argument(self, connection: Connection) -> str:
        """Returns the name of the argument that regularises the W of a connection."""
        return f"{connection.kernel_name.removesuffix('_kernel')}_regularizer"

    def take_converted(self, layer: Any) -> None:
        """Notes the kernels of the native layer that this one is converted from.

        They may have been trained since initialisation, so B is drawn independently of them.
        """
        kernels = self._kernels_of(layer)
        self._converted_kernels = {name: keras.ops.convert_to_numpy(kernel) for name, kernel in kernels.items()}

    @classmethod
    def initialized_kernels(cls, layer: Any) -> dict[str, list[Any]]:
        """Returns the kernels of the native layer, by the name of the argument that initialises them."""
        kernels = cls._kernels_of(layer).values()
        return {argument: [kernel] for argument, kernel in zip(cls.initializer_arguments, kernels, strict=False)}

    @classmethod
    def _kernels_of(cls, layer: Any) -> dict[str, Any]:
        """Returns the kernels of the native layer by name."""
        holder = getattr(layer, "cell", layer)
        return {name: getattr(holder, name) for name in cls.kernel_names}

    def take_initial_kernel(self) -> None:
        """Sets B to W(0) if the rule starts at W(0) and no training step has been made; otherwise does nothing.

        `AlignedModel` calls this method before training steps. In other models the layer records W(0) in its first
        backward pass, except that of a call with `training=False`. Custom training loops may omit `training`, unless a
        layer such as `Dropout` comes before: Keras passes its default, False, to the layers after it.
        """
        for connection in self.connections:
            connection.take_initial_kernel()

    def connection(self, kernel_name: str = "kernel") -> Connection:
        """Returns the connection whose W has a name.

        Raises:
            AttributeError: if the layer has no backward kernel, or is not built.
        """
        if getattr(self, f"_backward_{kernel_name}", None) is None:
            raise AttributeError(f"Layer {self.name!r} has no backward kernel: it is not built or has no alignment.")
        return next(each for each in self.connections if each.kernel_name == kernel_name)

    @property
    def following_activation(self) -> Any:
        """The nonlinearity after the layer: `alignment_activation` or `activation`; None if it is linear."""
        activation = self.alignment_activation or self.activation
        return None if activation is keras.activations.linear else activation

    @property
    def ends_nonlinear(self) -> bool:
        """Whether the layer applies a nonlinearity itself. The rules for whole networks read this."""
        return self.activation not in (None, keras.activations.linear)

    def scale_of(self, linear_map: LinearMap, kernel: Any) -> float:
        """Returns the factor of a kernel where it is used: 1, or 1 / sqrt(fan-in) in the NTK parameterization.

        The factor applies to W and to B, also in R, unless the rule ties the updates of B to those of W. The fan-in is
        the number of inputs of one output unit (Boopathy and Fiete 2022, equation 1).
        """
        return 1.0 if self.parameterization == "standard" else 1.0 / math.sqrt(linear_map.fan_in(kernel.shape))

    def forward_pass_of(self, inputs: Tensor, training: bool | None) -> ForwardPass:
        """Returns the active forward pass, or one for this call of the layer outside of an `AlignedModel`.

        Outside of an `AlignedModel` the layer counts its own steps: one for each outermost call of a Keras model or
        layer in training, also if the model uses the layer several times.

        Raises:
            ValueError: in training outside of an `AlignedModel`, if the rule is one for a whole network, or has
                `every`.
        """
        state = current_pass()
        if state is not None:
            return state
        if training and self.alignment is not None:
            self._check_works_alone()
        if self.alignment is None or not self.alignment.uses_step:
            return ForwardPass()
        state = ForwardPass(step=self.connections[0].own_step)
        if training:
            # First: Keras loses the losses that were added before replicas synchronise.
            state.first_example = first_example(tf.shape(inputs)[0])
            if outermost_call(self).is_first(self):
                for connection in self.connections:
                    connection.step.assign_add(1)
            else:
                state.step -= 1  # Counted already.
        return state

    def refuse_gradient(self, outputs: Any, training: bool | None) -> Any:
        """Returns outputs whose gradient is an error if only a rule for a whole network may compute it.

        That is outside of an `AlignedModel`, unless `training` is False. Keras omits `training` if the `call` of a
        model has no such argument.
        """
        if self.alignment is None or training is not None or current_pass() is not None:
            return outputs
        check = functools.partial(self._check_works_alone, outermost_call(self).layer)
        return keras.tree.map_structure(lambda each: before_gradient(each, check), outputs)

    def _check_works_alone(self, caller: Any = None) -> None:
        """Raises a `ValueError` if only an `AlignedModel` can train the layer. See `refuse_training`."""
        interval = self.alignment.interval
        if not self.keeps_backward_kernel:
            self.refuse_training("is a rule for a whole network", caller)
        elif interval > 1:
            reason = f"with every={interval} needs an `AlignedModel`, which skips the optimizer too"
            self.refuse_training(reason, caller)

    def project(
        self,
        linear_map: LinearMap,
        inputs: Tensor,
        state: ForwardPass,
        training: bool | None,
        bias: Tensor | None = None,
        kernel_name: str = "kernel",
    ) -> Tensor:
        """Returns W^T x of one connection, whose error travels back through B; in training, adds R_l if B is learned.

        Args:
            linear_map: the map, for layers without backward kernels.
            inputs: inputs of the connection.
            state: the forward pass.
            training: as of `call`.
            bias: the bias that is added to the projection, which is read by some rules.
            kernel_name: the name of W.
        """
        if not self.keeps_backward_kernel:
            kernel = getattr(self, kernel_name)
            outputs = state.product(linear_map, inputs, scaled(tensor_of(kernel), self.scale_of(linear_map, kernel)))
            return self.refuse_gradient(outputs, training)
        connection = self.connection(kernel_name)
        kernels = connection.kernels(state)
        projection = kernels.carry(inputs, training)
        if training and state.computes(self.alignment):
            kernels.regularise(inputs, projection, bias)
        return projection

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raises an error for an aligned layer; otherwise enables LoRA."""
        self._refuse("enable_lora")
        super().enable_lora(*args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises an error for an aligned layer; otherwise quantises the layer."""
        self._refuse("quantize")
        super().quantize(*args, **kwargs)

    def _refuse(self, method: str) -> None:
        if not self.is_native:
            found = self.alignment.rule if self.alignment is not None else self.parameterization
            requirement = "must not be called on an aligned layer: the backward kernel would follow the wrong weights"
            found = Words(f"a call on layer {self.name!r} with {found!r}")
            raise ArgumentError(method, requirement, found, "alignment=None")

    def save_own_variables(self, store: Any) -> None:
        """Saves all weights. The method of the native layer would omit the weights of the alignment."""
        if self.alignment is None:
            super().save_own_variables(store)
        else:
            keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Loads the weights that `save_own_variables` saved."""
        if self.alignment is None:
            super().load_own_variables(store)
        else:
            keras.layers.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the native layer and the arguments of the alignment."""
        activation = self.alignment_activation
        own = {
            "alignment": self.alignment and keras.saving.serialize_keras_object(self.alignment),
            "alignment_activation": activation and keras.activations.serialize(activation),
            "parameterization": self.parameterization,
        }
        return {**super().get_config(), **{name: own[name] for name in self.alignment_arguments}}


class FeedforwardLayer(AlignedLayer):
    """Mixin for a layer without states: outputs = activation(last projection + bias)."""

    def last_projection(
        self, inputs: Tensor, bias: Tensor | None, state: ForwardPass, training: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the inputs of the last connection and their projection W^T x, without the bias.

        Args:
            inputs: the inputs of the layer.
            bias: the bias of the last connection, which some rules read.
            state: the forward pass.
            training: as of `call`.
        """
        raise NotImplementedError

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Applies the layer; in training, adds R_l of its connections if the rule learns B.

        Raises:
            ValueError: in training, if the rule is one for a whole network and the model is not an `AlignedModel`.
        """
        if self.is_native:
            return super().call(inputs)
        inputs = dense_floats(inputs, self.compute_dtype)
        state = self.forward_pass_of(inputs, training)
        bias = None if self.bias is None else tensor_of(self.bias)  # Read once, for both J and R.
        last, outputs = self.last_projection(inputs, bias, state, training)
        if bias is not None:
            outputs = tf.nn.bias_add(outputs, bias) if bias.shape.rank == 1 else outputs + bias
        if state.probe is not None:
            outputs = state.probe(self.connections[-1] if self.connections else self, last, outputs)
        return outputs if self.activation is None else self.activation(outputs)


class SingleKernelLayer(FeedforwardLayer):
    """Mixin for a layer with one kernel, called `kernel`: outputs = activation(W^T x + bias).

    The arguments are those of `AlignedLayer`.
    """

    def linear_map(self) -> LinearMap:
        """Returns the linear map of the layer."""
        raise NotImplementedError

    def make_connections(self) -> Sequence[Connection]:
        """Returns the one connection of the layer."""
        return (self.connect(self.linear_map(), bias=self.bias, following_activation=self.following_activation),)

    def check_arguments(self) -> None:
        """Checks that the rule is defined for the linear map. See `AlignedLayer.check_arguments`."""
        super().check_arguments()
        if self.keeps_backward_kernel:
            self.alignment.check_map(self.linear_map(), self.name)

    @property
    def forward_kernel(self) -> Any:
        """W, the kernel of the native layer."""
        return self.kernel

    @property
    def backward_kernel(self) -> Any:
        """B, the kernel through which the error travels: `(outputs, inputs)` in `Dense`, otherwise in the shape of W.

        It is a weight if the rule learns B or keeps it fixed. It is computed from W if the rule defines it by W (sign
        symmetry), or if the rule starts at W(0) and training has not begun (Align-prop), and from two weights if the
        rule defines it by a product (product feedback alignment).

        Raises:
            AttributeError: if the layer has no alignment, or is not built.
        """
        return self.connection().backward_kernel

    def scaled(self, kernel: Tensor) -> Tensor:
        """Returns W or B as the layer uses it. See `scale_of`."""
        return scaled(kernel, self.scale_of(self.linear_map(), self.kernel))

    def last_projection(
        self, inputs: Tensor, bias: Tensor | None, state: ForwardPass, training: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the inputs and W^T x. See `FeedforwardLayer.last_projection`."""
        return inputs, self.project(self.linear_map(), inputs, state, training, bias)


def checked_rule(alignment: Any) -> Alignment | None:
    """Returns the rule of the argument `alignment` of a layer, which may be in its serialised form.

    Raises:
        ValueError: if it is not a rule.
    """
    if isinstance(alignment, dict):
        alignment = keras.saving.deserialize_keras_object(alignment)
    if alignment is not None and not isinstance(alignment, Alignment):
        requirement = "must be a rule of `neural_alignment.alignments`, or None for backpropagation"
        raise ArgumentError("alignment", requirement, alignment, "alignment=Symmetric(self_=2e-3, decay=2e-3)")
    return alignment


def check_floats(layer: Any) -> None:
    """Checks that an aligned layer is not quantised.

    Raises:
        ValueError: if it is.
    """
    if getattr(layer, "quantization_mode", None):
        requirement = "of an aligned layer must be a policy of floats: integers have no gradient"
        raise ArgumentError("dtype", requirement, layer.dtype_policy.name, "dtype='mixed_bfloat16'")


def check_computed_once(layer: Any) -> None:
    """Checks that a layer with an alignment is not computed again in the backward pass.

    Raises:
        ValueError: if it was created in a `keras.RematScope` that includes it.
    """
    if layer.alignment is not None and recomputes(layer):
        requirement = "must not include a layer with an alignment: its R would have no gradient"
        example = 'keras.RematScope(mode="activations")'
        raise ArgumentError("keras.RematScope", requirement, Words(f"layer {layer.name!r}"), example)


def check_unconstrained(layer: Any, constraints: Mapping[str, Any]) -> None:
    """Checks that no constraint changes a W whose updates its B gets.

    Args:
        layer: the layer.
        constraints: the constraints of its kernels by the name of the argument; None for none.

    Raises:
        ValueError: if the rule ties the updates and there is a constraint.
    """
    if layer.alignment is None or not layer.alignment.tie_gradient:
        return
    for name, constraint in constraints.items():
        if constraint is not None:
            requirement = (
                f"must be None with {layer.alignment.rule!r}, which gives B the updates of W: a constraint would "
                "change only W"
            )
            found = Words(f"{type(constraint).__name__} in layer {layer.name!r}")
            raise ArgumentError(name, requirement, found, f"{name}=None")


def before_gradient(outputs: Tensor, check: Callable[[], None]) -> Tensor:
    """Returns the tensor; calls `check` before its gradient is computed, which happens once in a graph."""

    @tf.custom_gradient
    def operation(outputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(upstream: Tensor) -> Tensor:
            check()
            return upstream

        return tf.identity(outputs), gradient

    return operation(outputs)


def dense_floats(inputs: Any, dtype: str) -> Tensor:
    """Returns the inputs as a dense tensor of floats; Keras does not cast integers and keeps sparse tensors sparse."""
    if isinstance(inputs, tf.SparseTensor):
        inputs = tf.sparse.to_dense(tf.sparse.reorder(inputs))
    inputs = tf.convert_to_tensor(inputs)
    return inputs if inputs.dtype.is_floating else tf.cast(inputs, dtype)


def known_shape(shape: Sequence[int | None]) -> tuple[int, ...]:
    """Returns a shape with 1 for each unknown size."""
    return tuple(size or 1 for size in shape)


def output_shape(linear_map: LinearMap, inputs: Sequence[int | None], kernel: Sequence[int]) -> tuple[int | None, ...]:
    """Returns the shape of the outputs of a linear map for the shapes of inputs and kernel."""
    specs = [tf.TensorSpec(shape, tf.float32) for shape in (inputs, kernel)]
    return tuple(tf.function(linear_map.project, autograph=False).get_concrete_function(*specs).outputs[0].shape)


class _ClassSignature:
    """The signature of the constructor of a class. Its instances have another, that of `__call__`."""

    def __init__(self, signature: inspect.Signature):
        self._signature = signature

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        return self._signature


def _with_arguments(native: inspect.Signature, names: Sequence[str]) -> inspect.Signature:
    """Returns the signature of a native layer with keyword arguments added, None by default."""
    parameters = [each for each in native.parameters.values() if each.name not in names]
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    rest = [each for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
    return native.replace(parameters=[*(each for each in parameters if each not in rest), *own, *rest])


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    """Returns the signature of a constructor without its first parameter."""
    return signature.replace(parameters=[*signature.parameters.values()][1:])
