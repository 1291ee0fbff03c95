"""The learning rules that act layer by layer: Kunin et al. 2020 (Table 2, Appendix D.3), and rules of other papers.

The R of a rule is a weighted sum of primitives P. Papers and published code disagree on the Greek letters of the
weights and on the factors 1/2. Here each weight has the name of its primitive, with the factors of Table 1.

A rule is local if weights act only on their own inputs, and the update of a weight depends only on presynaptic and
postsynaptic activity (the criteria of Kunin et al. 2020).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import pydantic
import tensorflow as tf

from neural_alignment.alignments import primitives
from neural_alignment.alignments.base import Alignment, KernelView, LayerView, SignalAlignment, TrainedAlignment
from neural_alignment.alignments.registry import register
from neural_alignment.alignments.schedules import Weight
from neural_alignment.errors import ArgumentError, Words, WrongValue
from neural_alignment.operations import LinearMap
from optimizers import noise
from optimizers.keras_internals import scales_by_weights

logger = logging.getLogger(__name__)

Tensor = tf.Tensor


@register
class Feedback(Alignment):
    """Feedback alignment (Lillicrap et al. 2016): B keeps its initial value; R = 0."""

    rule: Literal["feedback"] = "feedback"
    learns: ClassVar[bool] = False

    def __call__(self, view: LayerView) -> Tensor:
        """Returns zero."""
        return tf.zeros([], view.backward_kernel.dtype)


@register
class AlignProp(Feedback):
    """Align-prop (Boopathy and Fiete 2022, Appendix G): feedback alignment with the fixed B = W(0); R = 0.

    W(0) is W just before the first training step of the layer, including values that were assigned or loaded earlier.
    W(0) is saved with the weights, so a model that is loaded or resumed keeps it. Outside of an `AlignedModel`, the
    first training step is the first backward pass through the layer, except that of a call with `training=False`.
    """

    rule: Literal["align_prop"] = "align_prop"
    starts_at_forward: ClassVar[bool] = True


@register
class SignSymmetry(Feedback):
    """Sign symmetry (Liao et al. 2016; Xiao et al. 2019): the error travels back through the signs of W.

    The error travels through sign(W) ||B|| / ||sign(W)||, where B is the initial backward kernel. The size of the error
    therefore does not grow with W. R = 0.
    """

    rule: Literal["sign_symmetry"] = "sign_symmetry"

    def carried_kernel(self, kernels: KernelView) -> Tensor:
        """Returns sign(W), scaled to the norm of B. See `Alignment.carried_kernel`."""
        signs = tf.sign(kernels.forward_kernel)
        # `tf.norm` would write all squares to memory before summing them; decay is half the sum of squares.
        squares = tf.math.divide_no_nan(*map(primitives.decay, (kernels.backward_kernel, signs)))
        return signs * tf.cast(tf.sqrt(squares), signs.dtype)


@register
class FixedMagnitudes(Feedback):
    """Sign-concordant feedback with fixed random magnitudes (Liao et al. 2016, frSF; Moskovitz et al. 2018).

    The error travels through sign(W) * |M|, entry by entry, where M is the initial backward kernel: a draw from the
    distribution of the initial W that is independent of W. R = 0.
    """

    rule: Literal["frsf"] = "frsf"

    def carried_kernel(self, kernels: KernelView) -> Tensor:
        """Returns sign(W) * |M|. See `Alignment.carried_kernel`."""
        return tf.sign(kernels.forward_kernel) * tf.abs(self.magnitudes(kernels))

    def magnitudes(self, kernels: KernelView) -> Tensor:
        """Returns M, in the layout of W. Its signs have no effect."""
        return kernels.backward_kernel


@register
class RedrawnMagnitudes(FixedMagnitudes):
    """Sign-concordant feedback whose magnitudes are redrawn for each batch (Liao et al. 2016, brSF).

    The error travels through sign(W) * |M|, as in `FixedMagnitudes`, with a new M at every step. Each entry of M is
    drawn, independently of the others, from entries of the initial backward kernel, which are a sample of the
    initializer's distribution (`optimizers.noise.resample`). The draw depends only on the seed, the name of the
    connection and the step. All uses of a connection in a step, and all replicas, have the same M. R = 0.
    """

    rule: Literal["brsf"] = "brsf"
    seed: int = 0
    """Seed of the draws. Default in a run: the seed of the run. In a Keras model it is 0 unless this is set."""

    @property
    def uses_step(self) -> bool:
        """True: the magnitudes depend on the step."""
        return True

    def magnitudes(self, kernels: KernelView) -> Tensor:
        """Returns M at this step. See `FixedMagnitudes.magnitudes`."""
        return noise.resample(kernels.backward_kernel, noise.key(self.seed, kernels.name, kernels.step))


@register
class WeightMirror(SignalAlignment):
    """Weight mirror (Akrout et al. 2019): R = amp P_amp + decay P_decay. Local."""

    rule: Literal["weight_mirror"] = "weight_mirror"
    amp: Weight
    """Weight of the amp primitive."""
    decay: Weight
    """Weight of the decay primitive."""

    def __call__(self, view: LayerView) -> Tensor:
        """Returns R_l."""
        overlap = self.signals(view).overlap()
        decay = primitives.decay(view.backward_kernel, view.trained_forward_kernel)
        return self.weight("amp", view) * overlap + self.weight("decay", view) * decay


@register
class Information(SignalAlignment):
    """Information alignment: R = amp P_amp + decay P_decay + null P_null. Local."""

    rule: Literal["information"] = "information"
    amp: Weight
    """Weight of the amp primitive."""
    decay: Weight
    """Weight of the decay primitive, or of the sparse one with `sparse_decay`."""
    null: Weight
    """Weight of the null primitive."""
    sparse_decay: bool = False
    """Whether to use the sparse primitive in place of decay."""
    reconstruct_backward: bool = False
    """Whether the reconstruction is W (B^T x), from the backward projection, in place of B (W^T x), from the forward
    projection."""
    compare_reconstruction: bool = False
    """Whether amp compares the input with its reconstruction, in place of the two projections."""

    def __call__(self, view: LayerView) -> Tensor:
        """Returns R_l."""
        signals = self.signals(view)
        reconstruction = "backward_reconstruction" if self.reconstruct_backward else "forward_reconstruction"
        if self.compare_reconstruction:
            amp = primitives.amp(signals.inputs, getattr(signals, reconstruction))
        else:
            projects = self.reconstruct_backward or self.sparse_decay
            amp = signals.overlap(shares="projection" if projects else "reconstruction")
        null = primitives.null(getattr(signals, reconstruction))
        if self.sparse_decay:
            decay = primitives.sparse(signals.backward_projection, signals.trained_forward_projection)
        else:
            decay = primitives.decay(view.backward_kernel, view.trained_forward_kernel)
        return self.weight("amp", view) * amp + self.weight("decay", view) * decay + self.weight("null", view) * null


@register
class Symmetric(TrainedAlignment):
    """Symmetric alignment: R = self_ P_self + decay P_decay. Non-local.

    With equal weights B converges to W^T (Kunin et al. 2020, section 5). The alpha = 1e-3 and beta = 2e-3 of their
    appendix correspond to self_ = decay = 2e-3.
    """

    rule: Literal["symmetric"] = "symmetric"
    self_: Weight
    """Weight of the self primitive."""
    decay: Weight
    """Weight of the decay primitive."""

    def __call__(self, view: LayerView) -> Tensor:
        """Returns R_l."""
        overlap = primitives.self_(view.transposed_forward_kernel, view.backward_kernel)
        decay = primitives.decay(view.backward_kernel, view.trained_forward_kernel)
        return self.weight("self_", view) * overlap + self.weight("decay", view) * decay


@register
class Activation(SignalAlignment):
    """Activation alignment: R = amp P_amp + sparse P_sparse. Non-local."""

    rule: Literal["activation"] = "activation"
    amp: Weight
    """Weight of the amp primitive."""
    sparse: Weight
    """Weight of the sparse primitive."""

    def __call__(self, view: LayerView) -> Tensor:
        """Returns R_l."""
        signals = self.signals(view)
        sparse = primitives.sparse(signals.backward_projection, signals.trained_forward_projection)
        amp = signals.overlap(shares="projection")
        return self.weight("amp", view) * amp + self.weight("sparse", view) * sparse


@register
class KolenPollack(TrainedAlignment):
    """Kolen-Pollack (Kolen and Pollack 1994; Appendix D.3): R = P_angle + decay P_decay; B gets the update of W.

    `operations` computes the gradient of the angle primitive to B, with `tie_gradient`, so `__call__` returns only
    decay P_decay. `decay` must equal the weight
    decay of W, and one optimizer must update both kernels, so that the decay shrinks W - B^T at every step. In a Keras
    model the weight decay of W is its regulariser: `kernel_regularizer=keras.regularizers.L2(decay / 2)`. With
    `decay=0`, the `weight_decay` of the optimizer may decay both kernels instead. In a layer with the NTK
    parameterization, R reads B without the factor 1 / sqrt(fan-in), because the weight decay of W has no such factor.
    With `update_forward` R decays W as well as B, so the weight decay of W must be 0. The published code does not check
    this; there W would decay twice as fast as B.
    """

    rule: Literal["kolen_pollack"] = "kolen_pollack"
    tie_gradient: ClassVar[bool] = True
    decay: Weight
    """Weight of the decay primitive. It must equal the weight decay of W: the top-level key `weight_decay`, or in a
    Keras model twice the coefficient of the L2 regulariser of W. With `update_forward`, which requires a weight decay
    of 0, it may have any value or be a schedule."""

    def __call__(self, view: LayerView) -> Tensor:
        """Returns R_l."""
        return self.weight("decay", view) * primitives.decay(view.backward_kernel, view.trained_forward_kernel)

    @pydantic.model_validator(mode="after")
    def _updates_at_every_step(self):
        if self.every > 1:
            requirement = f"must be left out with {self.rule}, whose B gets the update of W at every step"
            raise ArgumentError("every", requirement, self.every)
        return self

    def check_kernel(self, kernel: Any, layer: str, argument: str) -> None:
        """Checks that W and B decay equally. See `Alignment.check_kernel`.

        A decay of W that is not known here, for example if it is that of the optimizer, is only a warning.
        """
        needed = 0.0 if self.update_forward else self.decay
        found, is_number = _decay_of(kernel.regularizer), isinstance(needed, float)
        if is_number and found is not None and math.isclose(found, needed, rel_tol=1e-5):
            return
        regularizer = _described(kernel.regularizer)
        if is_number and found:
            example = f"keras.regularizers.L2({needed / 2:g})" if needed else None
            requirement = f"must decay W by {needed:g}, as {self.rule!r} requires, or W and B do not align"
            found = Words(f"{regularizer}, which decays W by {found:g}, in layer {layer!r}")
            raise ArgumentError(argument, requirement, found, f"{argument}={example}")
        if (self, regularizer) not in _warned:
            _warned.add((self, regularizer))
            requirement, example = "an equal decay of W and B", f"decay=0.1 and {argument}=keras.regularizers.L2(0.05)"
            if self.update_forward:
                requirement, example = "a W without other decay, because its R decays W", f"{argument}=None"
            requirement = f"{self.rule!r} requires {requirement}, or W and B do not align"
            found = Words(f"decay={self.decay} and {argument}={regularizer} in layer {layer!r}")
            logger.warning(WrongValue("alignment", requirement, found, example).sentences)

    def check_run(self, config: Any) -> None:
        """Checks that W and B get the same updates. See `Alignment.check_run`."""
        plan, name = config.optimization, self.rule
        options = {"backward": plan.backward and plan.backward.name, "alternation": plan.alternation}
        for key, value in {**options, "delay_epochs": plan.delay_epochs}.items():
            if value:
                requirement = f"must be left out with {name}, which needs one optimizer for both kernels at every step"
                raise ArgumentError(f"optimization.{key}", requirement, value)
        if scales_by_weights(plan.forward.optimizer):
            requirement = f"must not scale steps by the norm of a weight with {name}: those of W and B differ"
            raise ArgumentError("optimization.forward.name", requirement, plan.forward.name)
        if plan.loss_rates.forward != plan.loss_rates.backward:
            requirement = f"must be equal for J and R with {name}, so that W and B get the same updates"
            raise ArgumentError("optimization.loss_rates", requirement, plan.loss_rates.model_dump())
        if plan.forward.noise is not None and plan.forward.noise.only != "backward_kernel":
            requirement = f"must be backward_kernel with {name}, which allows noise only on the updates of B"
            raise ArgumentError("optimization.forward.noise.only", requirement, plan.forward.noise.only)
        if self.update_forward and config.weight_decay:
            requirement = f"must be 0 with {name} and update_forward, whose R decays W as well as B"
            raise ArgumentError("weight_decay", requirement, config.weight_decay)
        if self.decay != config.weight_decay and not self.update_forward:
            requirement = f"must equal weight_decay ({config.weight_decay}) with {name}, so that W and B decay equally"
            raise ArgumentError(f"{config.key_path(self)}.decay", requirement, self.decay)


@register
class ProductFeedback(KolenPollack):
    """Product feedback alignment, PFA (Li and Benna 2024): the error travels through a fixed and a learned kernel.

    The error d at the outputs of a layer reaches its inputs x through hidden units with the errors r: through F, which
    is random and never changes, and then through L, which gets the product of x and r. No two units are connected in
    both directions. With z = W^T x and gradients as for a single example,

        r = F d,  dx = L r,  dW = x d^T,  dL = x r^T = dW F^T.

    The backward kernel is therefore B = L F. W and L decay equally, so the difference of B and W F^T F decays too, as
    that of B and W does with Kolen-Pollack. F^T F is the identity if F is orthogonal, and is close to it if there are
    many hidden units; W then aligns with B. Optimizers whose updates are linear in the gradient, such as momentum, move
    L by exactly the product of W's update with F^T; Adam does not. In a convolution F acts at each position of the
    outputs, and L has the taps and strides of W. R = decay P_decay, of L. `layer.backward_kernel` is B, which measures
    compare with W.

    The paper is arXiv 2405.20594. The equations and these details are those of the code of the authors
    (https://github.com/jil095/product_feedback_alignment, `autograd/tfa` and `layers/tfa_constructor`), in which B and
    R are the transposes of F and L:

    - There are `expansion` hidden units for each output unit; 10 in their experiments.
    - L is drawn by the initializer of W, in its own shape.
    - The entries of F have a uniform distribution with the variance 1 / hidden units, so that F^T F is the identity on
      average. In PFA-o, F is orthogonal and `expansion` is 1.

    This class differs from that code:

    - B is computed once in a step, and dL from dW, instead of r for each example. The gradients are the same; the cost
      does not depend on the batch.
    - Each group of a convolution, or channel of a depthwise one, has separate hidden units, as a separate convolution
      would have. One F for all groups, as in that code, would send errors to inputs that do not reach the outputs.
    - F is never the identity; this is Kolen-Pollack. All units are connected.
    - The decay is constant. In the experiments of the authors it is larger in the first epoch; with `update_forward`,
      `decay` can be a schedule here too.
    """

    rule: Literal["pfa"] = "pfa"
    decay: Weight
    """Weight of the decay primitive of L. It must equal the weight decay of W: the top-level key `weight_decay`, or in
    a Keras model twice the coefficient of the L2 regulariser of W. With `update_forward`, which requires a weight decay
    of 0, it may have any value or be a schedule."""
    expansion: pydantic.PositiveInt = 10
    """Number of hidden units for each output unit."""
    orthogonal: bool = False
    """Whether the columns of F are orthogonal and of norm 1 (PFA-o, with `expansion: 1`), instead of independent
    entries."""

    def stored_shape(self, linear_map: LinearMap, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of L: that of W with `expansion` times the output units. See `Alignment.stored_shape`."""
        sizes = list(shape)
        sizes[linear_map.output_axes[-1]] *= self.expansion
        return tuple(sizes)

    def fixed_shape(self, linear_map: LinearMap, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of F, `(groups, hidden units, outputs)`. See `Alignment.fixed_shape`."""
        groups, outputs = linear_map.units(shape)
        return groups, self.expansion * outputs, outputs

    def draw_fixed(self, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Returns F. See `Alignment.draw_fixed`."""
        if self.orthogonal:
            vectors, triangle = np.linalg.qr(rng.normal(size=shape))
            # Without the signs the distribution would depend on the algorithm.
            return vectors * np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[:, np.newaxis]
        limit = math.sqrt(3 / shape[1])
        return rng.uniform(-limit, limit, shape)

    def carried_kernel(self, kernels: KernelView) -> Tensor:
        """Returns B = L F. See `Alignment.carried_kernel`."""
        return kernels.linear_map.combine_outputs(kernels.backward_kernel, kernels.fixed_kernel)

    def check_map(self, linear_map: LinearMap, layer: str) -> None:
        """Checks that the kernel has an axis of outputs. See `Alignment.check_map`."""
        if not linear_map.output_axes:
            raise ArgumentError(
                "alignment",
                f"{self.rule!r} needs a kernel with an axis that the outputs have and the inputs do not have: its "
                "hidden units are a multiple of these outputs",
                Words(f"{linear_map} in layer {layer!r}"),
                'equation="ab,bc->ac"',
            )


def _decay_of(regularizer: Any) -> float | None:
    """Returns the factor c if the gradient of a regulariser of W is c W; None if its form is not known."""
    if regularizer is None:
        return 0.0
    kinds = (keras.regularizers.L2, keras.regularizers.L1L2)
    return 2 * float(regularizer.l2) if type(regularizer) in kinds and not getattr(regularizer, "l1", 0) else None


def _described(regularizer: Any) -> str:
    """Returns a regulariser as text, with the coefficient of L2."""
    decay = _decay_of(regularizer)
    named = "None" if regularizer is None else getattr(regularizer, "__name__", type(regularizer).__name__)
    return f"L2({decay / 2:g})" if decay else named


_warned: set[tuple[KolenPollack, str]] = set()
"""The rules, with regularisers of W, of which there was a warning: one for all layers with the same mistake."""
