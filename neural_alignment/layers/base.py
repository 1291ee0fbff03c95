"""Mixin of all aligned layers: the backward kernel, R_l (the term of R of one layer), and the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import initialization
from neural_alignment.alignments import Alignment, ForwardPass, LayerView, current_pass, first_example
from neural_alignment.keras_internals import stored_value
from neural_alignment.operations import LinearMap, carry

Tensor = tf.Tensor

PARAMETERIZATIONS = ("standard", "ntk")
"""A kernel is used unchanged ("standard"), or divided by the square root of its fan-in ("ntk")."""

HALF = (tf.bfloat16, tf.float16)
"""Dtypes that are too imprecise for R, which is computed in float32 instead."""


class AlignedLayer:
    """Mixin that gives a Keras layer a backward kernel and R_l.

    A subclass defines `linear_map`. Without an alignment the layer behaves exactly like the native Keras layer.
    """

    alignment: Alignment | None

    _converted_kernel: np.ndarray | None = None
    """W of the native layer from which this layer was converted. It may be already trained."""

    def _set_alignment(
        self, alignment: Alignment | dict | None, alignment_activation: Any, parameterization: str
    ) -> None:
        """Validates and stores the arguments that the native layer does not have."""
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"`parameterization` must be one of {', '.join(PARAMETERIZATIONS)}. Received {parameterization!r}. "
                'Example: parameterization="ntk".'
            )
        self.parameterization = parameterization
        if isinstance(alignment, dict):
            alignment = keras.saving.deserialize_keras_object(alignment)
        if alignment is not None and not isinstance(alignment, Alignment):
            raise ValueError(
                "`alignment` must be a rule of `neural_alignment.alignments`, or None for backpropagation. "
                f"Received {alignment!r}. Example: alignment=Symmetric(self_=2e-3, decay=2e-3)."
            )
        self.alignment = alignment
        self.alignment_activation = keras.activations.get(alignment_activation) if alignment_activation else None
        if not self._is_native and self.lora_rank:
            raise ValueError(
                f"`lora_rank` cannot be combined with `alignment`: the backward kernel would follow the wrong weights. "
                f"Received lora_rank={self.lora_rank}. Example: lora_rank=None."
            )
        if not self._is_native and getattr(self, "quantization_mode", None):
            raise ValueError(
                "`dtype` of an aligned layer must be a policy of floats: integers have no gradient. "
                f"Received {self.dtype_policy.name!r}. Example: dtype='mixed_bfloat16'."
            )

    def linear_map(self) -> LinearMap:
        """Returns the linear map of the layer, such as a matrix product or a convolution."""
        raise NotImplementedError

    @property
    def _is_native(self) -> bool:
        """Whether the layer behaves exactly like the native Keras layer."""
        return self.alignment is None and self.parameterization == "standard"

    @property
    def keeps_backward_kernel(self) -> bool:
        """Whether the layer has a backward kernel: it has a rule, which is not a rule for a whole network."""
        return self.alignment is not None and self.alignment.keeps_kernel

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the native layer and, if the rule has one, the backward kernel.

        Raises:
            ValueError: if B must be drawn independently, but the initializer gives all entries of W the same value.
        """
        super().build(input_shape)
        if not self.keeps_backward_kernel:
            return
        linear_map = self.linear_map()
        starts_at_forward = self.alignment.starts_at_forward

        def initializer(shape, dtype=None):
            del shape  # B is drawn in the layout of W, so that it gets the fan-in of W.
            if starts_at_forward:
                return linear_map.transpose(_stored(self.kernel))
            backward = initialization.independent_draw(
                self.kernel_initializer, self.kernel, self.name, dtype, self._converted_kernel
            )
            return linear_map.transpose(backward)

        self._backward_kernel = self.add_weight(
            name="backward_kernel",
            shape=linear_map.transposed_shape(tuple(self.kernel.shape)),
            initializer=initializer,
            trainable=self.alignment.learns,
            # Outside of an `AlignedModel` each replica records W(0) within a step.
            aggregation="only_first_replica" if starts_at_forward else "none",
        )
        # `optimizers.MultiOptimizer` reads these two attributes, because it cannot import layers and rules.
        self._backward_kernel.tied_by = self.alignment.rule if self.alignment.tie_gradient else None
        self.kernel.trained_by_both = self.alignment.trains_forward
        if self.alignment.uses_step or starts_at_forward:
            self._step = self.add_weight(
                name="alignment_step",
                shape=(),
                dtype="int64",
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
            )

    def take_initial_kernel(self) -> None:
        """Sets B to W(0) if the rule starts at W(0) and no training step has been made; otherwise does nothing.

        `AlignedModel` calls this method before training steps. In other models the layer records W(0) in its first
        backward pass, except that of a call with `training=False`. Custom training loops may omit `training`.
        """
        if not (self.keeps_backward_kernel and self.alignment.starts_at_forward):
            return

        def take() -> Tensor:
            self._backward_kernel.assign(self.linear_map().transpose(_stored(self.kernel)))
            self._step.assign(1)
            return tf.constant(True)

        tf.cond(tf.convert_to_tensor(self._step.value) > 0, lambda: tf.constant(True), take)

    @property
    def forward_kernel(self) -> Any:
        """W, the kernel of the native layer."""
        return self.kernel

    @property
    def backward_kernel(self) -> Any:
        """B, the kernel through which the error travels: `(outputs, inputs)`, or the shape of W in a convolution.

        B is a weight if the rule trains it or keeps it fixed. B is a tensor computed from W if the rule defines it by W
        (sign symmetry), or if the rule starts at W(0) and training has not begun (Align-prop).

        Raises:
            AttributeError: if the layer has no backward kernel, or is not built.
        """
        if getattr(self, "_backward_kernel", None) is None:
            raise AttributeError(f"Layer {self.name!r} has no backward kernel: it is not built or has no alignment.")
        if self.alignment.starts_at_forward:
            kept, start = self._backward_kernel, self.linear_map().transpose(_stored(self.kernel))
            return tf.cond(self._step.value > 0, lambda: kept, lambda: start)
        if type(self.alignment).carried_kernel is Alignment.carried_kernel:
            return self._backward_kernel
        linear_map = self.linear_map()
        backward = linear_map.transpose(_tensor(self._backward_kernel))
        return linear_map.transpose(self.alignment.carried_kernel(_tensor(self.kernel), backward))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Applies the layer. In training it also adds R_l if the rule trains B.

        Args:
            inputs: `(batch, ..., inputs)`.
            training: as in Keras.

        Returns:
            `(batch, ..., outputs)`.

        Raises:
            ValueError: in training outside of an `AlignedModel`, if the rule is a rule for a whole network.
        """
        if self._is_native:
            return super().call(inputs)
        inputs = _dense_floats(inputs, self.compute_dtype)
        state = current_pass() or self._own_pass(inputs, training)
        bias = None if self.bias is None else _tensor(self.bias)
        if self.keeps_backward_kernel:
            projection = self._carried_projection(inputs, bias, training, state)
        else:
            projection = self.linear_map().project(inputs, self.scaled(_tensor(self.kernel)))
        outputs = projection if bias is None else tf.nn.bias_add(projection, bias)
        if state.probe is not None:
            outputs = state.probe(self, inputs, outputs)
        return outputs if self.activation is None else self.activation(outputs)

    def scaled(self, kernel: Tensor) -> Tensor:
        """Returns a kernel as the layer uses it: unchanged, or in the NTK parameterization divided by sqrt(fan-in).

        The layer scales W and B in this way. The fan-in is the number of inputs of one output unit: the number of
        entries of W divided by the number of outputs (Boopathy and Fiete 2022, equation 1).
        """
        if self.parameterization == "standard":
            return kernel
        return kernel * (1.0 / math.sqrt(math.prod(self.kernel.shape[:-1])))

    def _carried_projection(
        self, inputs: Tensor, bias: Tensor | None, training: bool | None, state: ForwardPass
    ) -> Tensor:
        """Returns W^T x, whose error travels back through B. In training, adds R_l if the rule trains B."""
        linear_map = self.linear_map()
        # Each weight is read only once, for both J and R, so that its update depends on that read through the gradient.
        # TensorFlow's graph optimiser may remove other dependencies of updates on reads.
        take_start = None
        if self.alignment.starts_at_forward and not state.has_initial_weights:
            kernel, backward, take_start = self._kernels_from_start()
        else:
            kernel, backward = _tensor(self.kernel), _tensor(self._backward_kernel)
        carried = self.alignment.carried_kernel(tf.stop_gradient(kernel), linear_map.transpose(backward))
        tie_gradient = self.alignment.tie_gradient
        if not tie_gradient:
            carried = tf.stop_gradient(carried)  # Avoids writing the gradient of J to B, which is zero, to memory.
        kernels = self.scaled(kernel), self.scaled(carried)

        takes_start = take_start is not None and training is not False and current_pass() is None

        def weight_transport() -> bool:
            if takes_start:
                take_start()
            return state.weight_transport

        projection = carry(linear_map, inputs, *kernels, tie_gradient, weight_transport)
        if training and state.regularise and self.alignment.learns:
            weights = (
                _widened(kernel, self.kernel),
                _widened(backward, self._backward_kernel),
                _widened(bias, self.bias),
            )
            self._regularise(weights, inputs, projection, state)
        return projection

    def _kernels_from_start(self) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """Returns W and B for a rule with B = W(0), in the compute dtype, and a function that stores this B.

        Until W(0) is recorded, B is the current W. W is read only once, and B is computed from the read value, so that
        no update can happen in between.
        """
        forward, step = _stored(self.kernel), tf.convert_to_tensor(self._step.value)
        start, kept = self.linear_map().transpose(tf.stop_gradient(forward)), _stored(self._backward_kernel)
        backward = tf.cond(step > 0, lambda: kept, lambda: start)

        def take_start() -> None:
            self._backward_kernel.assign(backward)
            self._step.assign(step + 1)

        return tf.cast(forward, self.compute_dtype), tf.cast(backward, self.compute_dtype), take_start

    def _own_pass(self, inputs: Tensor, training: bool | None) -> ForwardPass:
        """Returns the `ForwardPass` of a layer outside of an `AlignedModel`, where the layer counts its own steps."""
        if training and self.alignment is not None and not self.keeps_backward_kernel:
            raise ValueError(
                f"{self.alignment.rule!r} is a rule for a whole network. Received layer {self.name!r} in training "
                "outside of a step of an `AlignedModel`. Example: AlignedModel(model.input, model.output)."
            )
        if self.alignment is None or not self.alignment.uses_step:
            return ForwardPass()
        first = first_example(tf.shape(inputs)[0]) if training else 0
        return ForwardPass(step=self._step.value, first_example=first)

    def _regularise(
        self, weights: tuple[Tensor, Tensor, Tensor | None], inputs: Tensor, projection: Tensor, state: ForwardPass
    ) -> None:
        """Computes R_l and adds it to the active `ForwardPass`, or with `add_loss` if none is active."""
        kernel, backward, bias = weights
        linear_map = self.linear_map()
        deferred = state.deferred is not None and not self.alignment.reads_signals
        if self.alignment.trains_forward and state.separate is not None and not deferred:
            kernel = state.separate(self, kernel)

        def regulariser() -> Tensor:
            view = LayerView(
                linear_map=linear_map,
                inputs=_widened(inputs),
                forward_kernel=self.scaled(kernel),
                backward_kernel=self.scaled(backward),
                bias=bias,
                activation=self.following_activation,
                projection=None if projection.dtype in HALF else projection,  # R needs float32.
                name=self.name,
                step=state.step,
                first_example=state.first_example,
                update_forward=self.alignment.trains_forward,
            )
            return self.alignment(view)

        if current_pass() is None:
            value = regulariser()
            if self.alignment.uses_step:
                self._step.assign_add(1)
            self.add_loss(value)  # Must be last: Keras discards the loss if replicas synchronise afterwards.
        elif deferred:
            moved = {"backward": backward, **({"forward": kernel} if self.alignment.trains_forward else {})}
            state.deferred.append((self, moved, regulariser))
        else:
            state.add(self.name, regulariser())

    @property
    def ends_nonlinear(self) -> bool:
        """Whether the layer has its own nonlinearity. The rules for a whole network read this."""
        return self.activation not in (None, keras.activations.linear)

    @property
    def following_activation(self) -> Any:
        """The nonlinearity that follows W^T x: `alignment_activation`, or `activation` if not given; None if linear."""
        activation = self.alignment_activation or self.activation
        return None if activation is keras.activations.linear else activation

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raises an error for an aligned layer; otherwise enables LoRA."""
        self._refuse("enable_lora")
        super().enable_lora(*args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises an error for an aligned layer; otherwise quantises the layer."""
        self._refuse("quantize")
        super().quantize(*args, **kwargs)

    def _refuse(self, method: str) -> None:
        if not self._is_native:
            found = self.alignment.rule if self.alignment is not None else self.parameterization
            raise ValueError(
                f"`{method}` must not be called on an aligned layer: the backward kernel would follow the wrong "
                f"weights. Received a call on layer {self.name!r} with {found!r}. Example: alignment=None."
            )

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
        return {
            **super().get_config(),
            "alignment": self.alignment and keras.saving.serialize_keras_object(self.alignment),
            "alignment_activation": activation and keras.activations.serialize(activation),
            "parameterization": self.parameterization,
        }


def with_initializer(options: dict[str, Any], parameterization: str, given: bool) -> dict[str, Any]:
    """Adds the kernel initializer of a parameterization to the options of a layer, unless one is given.

    Args:
        options: keyword arguments of the layer.
        parameterization: "standard" or "ntk".
        given: whether an initializer is among the positional arguments.
    """
    if parameterization != "ntk" or given or "kernel_initializer" in options:
        return options
    return {**options, "kernel_initializer": keras.initializers.RandomNormal(stddev=1.0)}


def _tensor(variable: Any) -> Tensor:
    """Returns a weight as a tensor in the compute dtype, as eager `tf.custom_gradient` does not accept variables."""
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(variable))


def _stored(variable: Any) -> Tensor:
    """Returns the value of a weight in the dtype in which it is stored."""
    value, stored = _tensor(variable), stored_value(variable)
    return value if stored is None or stored.dtype == value.dtype else tf.convert_to_tensor(stored)


def _dense_floats(inputs: Any, dtype: str) -> Tensor:
    """Returns the inputs as a dense tensor of floats, to which Keras converts neither integers nor sparse tensors."""
    if isinstance(inputs, tf.SparseTensor):
        inputs = tf.sparse.to_dense(tf.sparse.reorder(inputs))
    inputs = tf.convert_to_tensor(inputs)
    return inputs if inputs.dtype.is_floating else tf.cast(inputs, dtype)


def _widened(value: Tensor | None, variable: Any = None) -> Tensor | None:
    """Casts half precision to float32, in which R is computed; returns other dtypes and None unchanged.

    Args:
        value: a signal, or the value of a weight in the compute dtype, or None.
        variable: the weight, if `value` is its value. Its stored value is cast, so that no precision is lost.
    """
    if value is None or value.dtype not in HALF:
        return value
    return tf.cast(value if variable is None else stored_value(variable), tf.float32)
