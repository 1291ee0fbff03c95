"""Align-zero and Align-ada: the error through the network as it was at initialisation (Boopathy and Fiete 2022)."""

from __future__ import annotations

from typing import Literal

import keras
import tensorflow as tf

from neural_alignment.alignments.networkwise.base import Backward, Frozen, Kept, NetworkRule, graph, has_kernel
from neural_alignment.alignments.networkwise.cuts import (
    CutRule,
    Pass,
    Places,
    ends_nonlinear,
    is_nonlinear,
    kernels_ahead,
    reached,
)
from neural_alignment.alignments.registry import register

Tensor = tf.Tensor


class FrozenRule(NetworkRule):
    """A rule that needs W(0), the network at the first training step."""

    def keep(self, model: keras.Model, kept: Kept) -> Frozen:
        """Makes room for W(0)."""
        return Frozen(model, kept)

    def start(self, kept: Frozen) -> None:
        """Takes W(0), once."""
        kept.take()


@register
class AlignZero(FrozenRule):
    """Align-zero (equation 15): all but the error at the outputs is of the network at initialisation.

    dW_l = grad_{z_l} f(0) dJ/df(t) sigma(z_{l-1}(0))^T: activities, gates and, of the batch at hand, the statistics of
    batch normalisation. A step costs a second forward pass, and no more than backpropagation besides. The same holds
    through time, with all steps (Appendix E).
    """

    rule: Literal["align_zero"] = "align_zero"

    def forward(self, model: keras.Model, kept: Frozen, x: Tensor) -> tuple[Tensor, Backward]:
        """Runs the network; its error goes back through the frozen one."""
        return model(x, training=True), lambda upstream: kept.gradients(x, upstream)


@register
class AlignAda(FrozenRule, CutRule):
    """Align-ada (equation 16): the error through the network at initialisation, the presynaptic activity live.

    dW_l = grad_{z_l} f(0) dJ/df(t) sigma(z_{l-1}(t))^T. The network is cut where a nonlinearity or a layer with a
    kernel takes its inputs, but for nonlinearities behind which there is no kernel but a readout's: what lies between a
    weight and the next cut is live, with the batch normalisation that follows the weight, and the error at the cut is
    that of the frozen network. As in the published code the last nonlinearity before the readout is thus live, gate
    included, where equation 16 has it frozen; where branches meet in the readout, the last one of each is. In a
    recurrent layer a state is cut where it enters the next one: its error comes from the outputs of later steps alone
    (equation 58), and its own gate is live, as the published losses of Table 8 need.
    """

    rule: Literal["align_ada"] = "align_ada"

    def places(self, model: keras.Model) -> Places:
        """Returns where the network is cut: before its kernels, and its nonlinearities but those before a readout."""
        nodes = list(graph(model))
        operations = [operation for operation, _ in nodes]
        ahead = kernels_ahead(nodes)
        nonlinear = [
            each for each in operations if (is_nonlinear(each) or ends_nonlinear(each)) and ahead[each.name] > 1
        ]
        inputs = {each.name for each in nonlinear if is_nonlinear(each)}
        inputs |= {each.name for each in operations if has_kernel(each)}
        activations = {each.name for each in nonlinear if ends_nonlinear(each)}
        recurrent = frozenset(each.name for each in operations if getattr(each, "recurrent", False))
        return Places(frozenset(inputs & reached(nodes)), recurrent.union(activations), silent=recurrent)

    def errors(
        self, model: keras.Model, kept: Frozen, x: Tensor, upstream: Tensor, values: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns the errors at the same cuts of the frozen network."""
        del values
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watched(value: Tensor) -> tuple[Tensor, Tensor]:
                value = tf.identity(value)
                tape.watch(value)
                return value, value

            frozen = Pass(self.places(model), watched)
            outputs = kept(x, kept.values(), **frozen.hooks)
        return tape.gradient(outputs, frozen.values, output_gradients=upstream)
