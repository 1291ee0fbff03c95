"""Kernels whose columns all have the same norm (Rahmansetayesh et al., equation 13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from pydantic import PositiveFloat

from neural_alignment.alignments import Alignment
from neural_alignment.errors import ArgumentError, Words
from neural_alignment.layers import AlignedLayer
from neural_alignment.options import Options
from neural_alignment.serialization import serializable


@serializable
class ColumnNorm(keras.constraints.Constraint):
    """Scales every column w_i of a kernel `(..., outputs)` to the norm gamma: w_i <- gamma w_i / ||w_i||.

    A column contains all weights into one neuron. In a convolution, `(rows, columns, inputs, filters)`, it is a whole
    filter. Unlike Keras' `UnitNorm`, this class adds no small number to the norm. Columns of zeros are not changed.

    Args:
        gamma: the norm, positive.

    Raises:
        ValueError: if `gamma` is not positive.
    """

    def __init__(self, gamma: float = 1.0):
        if not gamma > 0:
            raise ArgumentError("gamma", "must be positive", gamma, "gamma=1.0")
        self.gamma = float(gamma)

    def __call__(self, kernel: Any) -> Any:
        """Returns the kernel with scaled columns.

        Raises:
            ValueError: if the kernel has fewer than two axes.
        """
        kernel = keras.ops.convert_to_tensor(kernel)
        if kernel.ndim < 2:
            requirement = "must have two or more axes, the last of which is outputs"
            raise ArgumentError("kernel", requirement, Words(f"the shape {tuple(kernel.shape)}"), "(3, 3, 16, 32)")
        axes = tuple(range(kernel.ndim - 1))
        norms = keras.ops.sqrt(keras.ops.sum(keras.ops.square(kernel), axis=axes, keepdims=True))
        return kernel * keras.ops.where(norms > 0, self.gamma / keras.ops.where(norms > 0, norms, 1.0), 1.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"gamma": self.gamma}


class WeightNorm(Options):
    """A fixed norm of the weights into each neuron. W is scaled after every update, and B only once, at the start."""

    gamma: PositiveFloat = 1.0
    """The norm of every column of W, over its inputs, and of every column of B, over the outputs of the layer."""
    kernels: Literal["forward", "backward", "both"] = "both"
    """The kernels to scale: W (at the start and after each update), B (at the start), or both. Biases are not."""

    @property
    def constrains_forward(self) -> bool:
        """Whether W is scaled after each update."""
        return self.kernels != "backward"

    @property
    def scales_backward(self) -> bool:
        """Whether the initial B is scaled."""
        return self.kernels != "forward"

    def constraint(self) -> ColumnNorm | None:
        """Returns the constraint that scales W after each update, or None."""
        return ColumnNorm(self.gamma) if self.constrains_forward else None

    def start(self, layer: AlignedLayer) -> None:
        """Scales the initial kernels of a built dense layer: W `(inputs, outputs)` and B `(outputs, inputs)`."""
        scale = ColumnNorm(self.gamma)
        if self.constrains_forward:
            layer.kernel.assign(scale(layer.kernel))
        if self.scales_backward and layer.keeps_backward_kernel:
            backward = layer.connection().stored_backward_kernel
            backward.assign(scale(backward))

    def check_rules(self, rules: Sequence[Alignment]) -> None:
        """Checks that training keeps the norms, and that backward kernels are independent of W if they are scaled.

        Args:
            rules: all rules of a run.

        Raises:
            ArgumentError: if this is not true for one of the rules.
        """
        for rule in rules:
            if rule.tie_gradient:
                requirement = (
                    f"must be left out with {rule.rule}, in which B gets the updates of W: norms would undo it"
                )
                raise ArgumentError("model.weight_norm", requirement, self.model_dump())
        if not self.scales_backward:
            return
        reason = None if rules else "without a rule, since there are no backward kernels"
        for rule in rules:
            if not rule.keeps_kernel or rule.starts_at_forward:
                reason = f"with {rule.rule}, whose backward kernels are copies of W"
            elif rule.learns:
                reason = f"with {rule.rule}, which changes the norm of B"
        if reason is not None:
            raise ArgumentError("model.weight_norm.kernels", f"must be forward {reason}", self.kernels)
