"""A connection: one linear map of a layer, with its forward kernel W, its backward kernel B and its R_l."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment import initialization
from neural_alignment.alignments import Alignment, ForwardPass, KernelView, LayerView, current_pass
from neural_alignment.alignments.forward_pass import DeferredTerm
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.keras_internals import outermost_call, stored_value
from neural_alignment.operations import LinearMap, carry
from neural_alignment.operations.precision import HALF, widened

logger = logging.getLogger(__name__)

Tensor = tf.Tensor


@dataclass(frozen=True)
class Connection:
    """One linear map of an aligned layer.

    Most layers have one connection. A recurrent layer has one from its inputs and one from its previous outputs, a
    separable convolution has a depthwise and a pointwise one. The weights belong to the layer; a connection is a view.

    Args:
        layer: the aligned layer; B is one of its weights.
        linear_map: the map.
        kernel_name: name of the attribute that is W.
        holder: the layer that has W: `layer`, or the cell in it.
        bias: the variable whose value is added to W^T x, or None.
        following_activation: the nonlinearity that follows, or None if the connection is linear.
        name: unique in a model. The noise of connections with different names is independent.
        bias_row: the row of `bias` that belongs to this connection; None if it is the whole variable.
    """

    layer: Any
    linear_map: LinearMap
    kernel_name: str
    holder: Any
    bias: Any
    following_activation: Callable[[Tensor], Tensor] | None
    name: str
    bias_row: int | None = None

    @property
    def alignment(self) -> Alignment:
        """The rule of the layer."""
        return self.layer.alignment

    @property
    def kernel(self) -> Any:
        """W, as a variable."""
        return getattr(self.holder, self.kernel_name)

    @property
    def stored_backward_kernel(self) -> Any:
        """The variable in which the layer keeps B, or the kernel from which its rule computes B."""
        return getattr(self.layer, f"_backward_{self.kernel_name}")

    @property
    def fixed_kernel(self) -> Any:
        """The variable with the second backward weight of the rule, or None. See `Alignment.fixed_shape`."""
        return getattr(self.layer, f"_fixed_{self.kernel_name}", None)

    @property
    def step(self) -> Any:
        """The variable that counts the steps of a layer outside of an `AlignedModel`."""
        return getattr(self.layer, f"_step{self._suffix}")

    @property
    def is_trained(self) -> bool:
        """Whether R trains a kernel of the connection: B, or W with `update_forward`. In a frozen layer it does not."""
        return self._trains_backward or (self.alignment.trains_forward and self._trains_forward)

    @property
    def _trains_backward(self) -> bool:
        """Whether B is not frozen, alone or with its layer."""
        return self.layer.trainable and self.stored_backward_kernel.trainable

    @property
    def _trains_forward(self) -> bool:
        """Whether W is not frozen, alone or with its layer."""
        return self.holder.trainable and self.kernel.trainable

    def check_frozen(self) -> None:
        """Checks that W and B are frozen together if the rule gives both the same updates.

        Raises:
            ValueError: if only one of them is frozen.
        """
        if self.alignment.tie_gradient and self._trains_backward != self._trains_forward:
            requirement = f"of W and B must be equal with the rule {self.alignment.rule!r}, which moves both together"
            found = Words(f"a frozen {'W' if self._trains_backward else 'B'} in layer {self.name!r}")
            raise ArgumentError("trainable", requirement, found, "layer.trainable = False")

    @property
    def bias_size(self) -> int:
        """The number of entries of the bias of this connection."""
        if self.bias is None:
            return 0
        return math.prod(self.bias.shape if self.bias_row is None else self.bias.shape[1:])

    @property
    def backward_weights(self) -> list[Any]:
        """B as it is stored, and the second backward weight if there is one."""
        return [self.stored_backward_kernel, *([] if self.fixed_kernel is None else [self.fixed_kernel])]

    @property
    def weights(self) -> list[Any]:
        """The backward weights, and the step counter if there is one."""
        step = getattr(self.layer, f"_step{self._suffix}", None)
        return [*self.backward_weights, *([] if step is None else [step])]

    @property
    def _suffix(self) -> str:
        return "" if self.kernel_name == "kernel" else f"_{self.kernel_name}"

    @property
    def backward_kernel(self) -> Any:
        """B as the layer uses it, in the layout of the backward kernel. See `AlignedLayer`."""
        if self.alignment.starts_at_forward:
            kept, start = self.stored_backward_kernel, self.linear_map.transpose(_stored(self.kernel))
            return tf.cond(self.step.value > 0, lambda: kept, lambda: start)
        if not self.computes_backward_kernel:
            return self.stored_backward_kernel
        state = current_pass() or ForwardPass(step=self.own_step)
        kernels = tensor_of(self.kernel), tensor_of(self.stored_backward_kernel)
        return self.linear_map.transpose(self.carried_kernel(*kernels, state))

    @property
    def computes_backward_kernel(self) -> bool:
        """Whether the rule computes the kernel through which the error travels. Otherwise it is the stored B."""
        return type(self.alignment).carried_kernel is not Alignment.carried_kernel

    @property
    def own_step(self) -> Tensor | int:
        """The number of training steps that the layer has counted itself; 0 if it counts none."""
        step = getattr(self.layer, f"_step{self._suffix}", None)
        return 0 if step is None else tf.identity(step.value)

    def add_weights(self, initializer: Any, drawn: np.ndarray | None = None) -> None:
        """Creates B, and the second backward weight and the step counter if the rule needs them.

        Args:
            initializer: the initializer of W.
            drawn: initial values of W, if they are not those of the variable.

        Raises:
            ValueError: if B needs an independent draw and the initializer gives all entries of W the same value, or if
                the rule cannot be combined with the regulariser of W.
        """
        self.alignment.check_kernel(self.kernel, self.name, self.layer.regularizer_argument(self))
        starts_at_forward = self.alignment.starts_at_forward
        stored_shape = self.alignment.stored_shape(self.linear_map, tuple(self.kernel.shape))

        def draw(shape, dtype=None):
            del shape  # B is drawn in the layout of W, so that the fan-in is that of W.
            if starts_at_forward:
                return self.linear_map.transpose(_stored(self.kernel))
            backward = initialization.independent_draw(
                initializer, self.kernel, self.name, dtype, drawn, shape=stored_shape
            )
            return self.linear_map.transpose(backward)

        backward = self.layer.add_weight(
            name=f"backward_{self.kernel_name}",
            shape=self.linear_map.transposed_shape(stored_shape),
            initializer=draw,
            trainable=self.alignment.learns,
            # Outside of an `AlignedModel` each replica takes W(0) within a step.
            aggregation="only_first_replica" if starts_at_forward else "none",
        )
        setattr(self.layer, f"_backward_{self.kernel_name}", backward)
        # `optimizers.MultiOptimizer` reads these two attributes; it knows no layers and no rules.
        backward.tied_by = self.alignment.rule if self.alignment.tie_gradient else None
        self.kernel.trained_by_both = self.alignment.trains_forward
        self._add_fixed_kernel(initializer, drawn)
        if self.alignment.uses_step or starts_at_forward:
            step = self.layer.add_weight(
                name=f"alignment_step{self._suffix}",
                shape=(),
                dtype="int64",
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
            )
            setattr(self.layer, f"_step{self._suffix}", step)

    def check_gradient(self, gradient: Any) -> None:
        """Checks that R_l, if it trains B, depends on B.

        Args:
            gradient: the gradient of R_l to B, or None.

        Raises:
            ValueError: if R_l must have a gradient and has none.
        """
        is_fixed = not (self.layer.trainable and self.stored_backward_kernel.trainable)
        if gradient is None and not is_fixed and not self.alignment.tie_gradient:
            requirement = f"of rule {self.alignment.rule!r} must depend on the backward kernel, which it trains"
            found = Words(f"an R_l without a gradient to that of layer {self.name!r}")
            raise ArgumentError("R_l", requirement, found, "tf.reduce_sum(view.backward_kernel**2)")

    def _add_fixed_kernel(self, initializer: Any, drawn: np.ndarray | None) -> None:
        """Creates the second backward weight, if the rule has one."""
        shape, name = self.alignment.fixed_shape(self.linear_map, tuple(self.kernel.shape)), f"fixed_{self.kernel_name}"
        if shape is None:
            return

        def draw(shape, dtype=None):
            rng = initialization.generator(name, initializer, self.kernel, self.name, drawn)
            return tf.constant(self.alignment.draw_fixed(shape, rng), dtype)

        fixed = self.layer.add_weight(name=name, shape=shape, initializer=draw, trainable=False)
        setattr(self.layer, f"_{name}", fixed)

    def take_initial_kernel(self) -> None:
        """Sets B to W(0) if the rule starts at W(0) and no training step has been made; otherwise does nothing."""
        if not self.alignment.starts_at_forward:
            return

        def take() -> Tensor:
            self.stored_backward_kernel.assign(self.linear_map.transpose(_stored(self.kernel)))
            self.step.assign(1)
            return tf.constant(True)

        tf.cond(tf.convert_to_tensor(self.step.value) > 0, lambda: tf.constant(True), take)

    def kernels(self, state: ForwardPass) -> KernelValues:
        """Reads W and B for one forward pass."""
        # Each weight is read once, for both J and R. Its update depends on that read through the gradient. TensorFlow's
        # graph optimiser may drop other dependencies of updates on reads.
        if self.alignment.starts_at_forward and not state.has_initial_weights:
            forward, backward, take_start = self._kernels_from_start()
        else:
            forward, backward, take_start = tensor_of(self.kernel), tensor_of(self.stored_backward_kernel), None
        # Here and not in `carry`, which recurrent layers call in their loop over time.
        carried = self.carried_kernel(forward, backward, state)
        return KernelValues(self, state, forward, backward, carried, take_start)

    def carried_kernel(self, forward: Tensor, backward: Tensor, state: ForwardPass) -> Tensor:
        """Returns the kernel through which the error travels, in the layout of W. See `Alignment.carried_kernel`.

        Args:
            forward: the value of W.
            backward: the value of the stored B.
            state: the forward pass.
        """
        view = KernelView(
            linear_map=self.linear_map,
            forward_kernel=tf.stop_gradient(forward),
            backward_kernel=self.linear_map.transpose(backward),
            fixed_kernel=None if self.fixed_kernel is None else tensor_of(self.fixed_kernel),
            name=self.name,
            step=state.step,
        )
        return self.alignment.carried_kernel(view)

    def _kernels_from_start(self) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """Returns W and B for a rule with B = W(0), in the compute dtype, and a function that stores this B.

        Until W(0) is taken, B is the present W. W is read once and the new value of B is computed from that read, so no
        update can happen in between.
        """
        forward, step = _stored(self.kernel), tf.convert_to_tensor(self.step.value)
        start, kept = self.linear_map.transpose(tf.stop_gradient(forward)), _stored(self.stored_backward_kernel)
        backward = tf.cond(step > 0, lambda: kept, lambda: start)

        def take_start() -> None:
            self.stored_backward_kernel.assign(backward)
            self.step.assign(step + 1)

        dtype = tensor_of(self.kernel).dtype  # Within a wrapper it may differ from the layer's own compute dtype.
        return tf.cast(forward, dtype), tf.cast(backward, dtype), take_start

    def scaled(self, kernel: Tensor) -> Tensor:
        """Returns W or B as the layer uses it. See `AlignedLayer.scale_of`."""
        return scaled(kernel, self.layer.scale_of(self.linear_map, self.kernel))


@dataclass(frozen=True)
class KernelValues:
    """W and B of a connection, as read in one forward pass.

    Attributes:
        connection: the connection.
        state: the forward pass.
        forward: W in the compute dtype.
        backward: B as it is stored, in the compute dtype and in the layout of the backward kernel.
        carried: the kernel through which the error travels, in the layout of W.
        take_start: stores B in the backward pass, if B is W(0) and is not stored yet.
    """

    connection: Connection
    state: ForwardPass
    forward: Tensor
    backward: Tensor
    carried: Tensor
    take_start: Callable[[], None] | None

    def carry(self, inputs: Tensor, training: bool | None, columns: slice | None = None) -> Tensor:
        """Returns W^T x, whose error travels back through B.

        Args:
            inputs: `(batch, ..., inputs)`.
            training: as of `call` of the layer.
            columns: the outputs that are computed. Default: all.

        Raises:
            ValueError: in `tf.vectorized_map`, unless `training` is False.
        """
        if training is not False:
            _check_custom_gradients(self.connection.layer)
        connection, state, carried = self.connection, self.state, self.carried
        linear_map, rule = connection.linear_map, connection.alignment
        if not rule.tie_gradient:
            carried = tf.stop_gradient(carried)  # The gradient of J to B is zero; no zeros are written.
        kernels = [connection.scaled(kernel) for kernel in (self.forward, carried)]
        if columns is not None:
            kernels = [kernel[..., columns] for kernel in kernels]
        alone = training is not False and current_pass() is None
        takes_start = self.take_start is not None and alone
        caller = outermost_call(connection.layer).layer if alone and not training else None

        def weight_transport() -> bool:
            if takes_start:
                self.take_start()
            if caller is not None and (connection.is_trained or rule.uses_step):
                _warn_of_omission(caller, connection)
            return state.weight_transport

        return carry(linear_map, inputs, *kernels, rule.tie_gradient, weight_transport)

    def regularise(self, inputs: Tensor, projection: Tensor | None, bias: Tensor | None) -> None:
        """Computes R_l and adds it to the forward pass of the model; without one, with `add_loss`.

        R_l is left out if both kernels that it would train are frozen. R_l of a rule that reads only kernels is added
        once in a forward pass, also if it calls the layer several times: the kernels, and their updates, are the same
        in all calls.

        Args:
            inputs: the inputs of the connection `(batch, ..., inputs)`.
            projection: W^T x, if it has been computed with the same inputs.
            bias: the value of the bias in the compute dtype, or None.
        """
        connection, state = self.connection, self.state
        layer, rule = connection.layer, connection.alignment
        if not connection.is_trained or not (rule.reads_signals or self._is_first_use()):
            return
        # J's weight decay has no factor either, and a tied B must decay as W does.
        scaled = (lambda kernel: kernel) if rule.tie_gradient else connection.scaled
        kernel = _in_float32(self.forward, connection.kernel)
        backward = _in_float32(self.backward, connection.stored_backward_kernel)
        if bias is not None and bias.dtype in HALF:
            stored = _in_float32(bias, connection.bias)
            bias = stored if connection.bias_row is None else stored[connection.bias_row]
        deferred = state.deferred is not None and not rule.reads_batch
        if rule.trains_forward and state.separate is not None and not deferred:
            kernel = state.separate(connection, kernel)

        def regulariser() -> Tensor:
            reads = rule.reads_signals
            known = reads and projection is not None and projection.dtype not in HALF  # R needs one in float32.
            view = LayerView(
                linear_map=connection.linear_map,
                inputs=widened(self._used(inputs)) if reads else None,
                forward_kernel=scaled(kernel),
                backward_kernel=scaled(backward),
                bias=bias,
                activation=connection.following_activation,
                projection=self._used(projection) if known else None,
                name=connection.name,
                step=state.step,
                first_example=state.first_example,
                update_forward=rule.trains_forward,
            )
            return self._checked(rule(view))

        if current_pass() is None:
            layer.add_loss(regulariser())
        elif deferred:
            moved = {"backward": backward, **({"forward": kernel} if rule.trains_forward else {})}
            state.deferred.append(DeferredTerm(connection, moved, regulariser))
        else:
            state.add(connection.name, regulariser())

    def _checked(self, regulariser: Any) -> Tensor:
        """Returns R_l as its rule computed it.

        Raises:
            ValueError: if it is not a scalar.
        """
        value = None if regulariser is None else tf.convert_to_tensor(regulariser)
        if value is None or value.shape.rank:
            found = "None" if value is None else f"shape {tuple(value.shape)}"
            found = Words(f"{found} from rule {self.connection.alignment.rule!r} for layer {self.connection.name!r}")
            raise ArgumentError("R_l", "must be a scalar", found, "tf.reduce_mean(values)")
        return value

    def _is_first_use(self) -> bool:
        """Returns whether the connection has not yet added R_l in this forward pass."""
        connection = self.connection
        if current_pass() is None:
            return outermost_call(connection.layer).is_first((connection.layer, connection.kernel_name))
        return self.state.is_first(connection.name)

    def _used(self, signal: Tensor) -> Tensor:
        """Returns the rows of a signal `(batch, ...)` from which R_l is computed."""
        state, size = self.state, signal.shape[0]
        batch = (tf.shape(signal)[0] if size is None else size) // state.rows
        parts = state.parts * tf.distribute.get_strategy().num_replicas_in_sync
        used = self.connection.alignment.examples_used(batch, parts)
        return signal if used is batch else signal[: used * state.rows]


_warned: weakref.WeakSet[Any] = weakref.WeakSet()
"""The models and layers for which `_warn_of_omission` has warned."""


def _warn_of_omission(model: Any, connection: Connection) -> None:
    """Warns once for each model that gradients are computed without `training`, so that R is not.

    It is not an error, because a gradient to the inputs may be all that is wanted.
    """
    if model in _warned:
        return
    _warned.add(model)
    logger.warning(
        "%s %r computes gradients without training=True, so its layers compute no R and count no steps (rule %r of "
        "layer %r). To train them, give its method `call` the argument `training`",
        type(model).__name__,
        model.name,
        connection.alignment.rule,
        connection.layer.name,
    )


def _check_custom_gradients(layer: Any) -> None:
    """Checks that the graph keeps custom gradients.

    Raises:
        ValueError: in the body of `tf.vectorized_map`. Its operations have no custom gradients, so the error would
            travel back through W.
    """
    if "loop_body" in tf.get_current_name_scope().split("/"):
        raise ArgumentError(
            "tf.vectorized_map",
            "must not train an aligned layer: it has no custom gradients, so the error would travel back through W",
            Words(f"layer {layer.name!r}"),
            "neural_alignment.layers.TimeDistributed(layer)",
        )


def scaled(kernel: Tensor, factor: float) -> Tensor:
    """Returns a kernel times a factor; no operation is created for the factor 1."""
    return kernel if factor == 1.0 else kernel * factor


def tensor_of(variable: Any) -> Tensor:
    """Returns the value of a weight in the compute dtype; `tf.custom_gradient` accepts no variables in eager mode."""
    return tf.convert_to_tensor(keras.ops.convert_to_tensor(variable))


def _stored(variable: Any) -> Tensor:
    """Returns the value of a weight in the dtype in which it is stored."""
    value, stored = tensor_of(variable), stored_value(variable)
    return value if stored is None or stored.dtype == value.dtype else tf.convert_to_tensor(stored)


def _in_float32(value: Tensor, variable: Any) -> Tensor:
    """Returns the value of a weight; with half precision the stored one in float32, so that no precision is lost."""
    return widened(stored_value(variable)) if value.dtype in HALF else value
