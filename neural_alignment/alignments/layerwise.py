"""The learning rules that act layer by layer: Kunin et al. 2020 (Table 2, Appendix D.3), sign symmetry, Align-prop.

The R of a rule is a weighted sum of primitives P. Papers and published code disagree on the Greek letters of the
weights and on the factors 1/2. Here each weight has the name of its primitive, with the factors of Table 1.

A rule is local if weights act only on their own inputs, and the update of a weight depends only on presynaptic and
postsynaptic activity (the criteria of Kunin et al. 2020).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pydantic
import tensorflow as tf

from neural_alignment.alignments import primitives
from neural_alignment.alignments.base import Alignment, KernelView, LayerView, SignalAlignment, TrainedAlignment
from neural_alignment.alignments.registry import register
from neural_alignment.alignments.schedules import Weight
from neural_alignment.errors import ArgumentError
from optimizers import noise
from optimizers.keras_internals import scales_by_weights

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
    drawn, independently of the others, from the entries of the initial backward kernel, which are a sample of the
    initializer's distribution. The draw depends only on the seed, the name of the connection and the step. All uses of
    a connection in a step, and all replicas, have the same M. R = 0.
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
    """Kolen-Pollack (Kolen and Pollack 1994; Appendix D.3): R = decay P_decay, and B gets the update of W.

    `operations` computes the gradient of the angle primitive to B, with `tie_gradient`. `decay` must equal the weight
    decay of W, and one optimizer must update both kernels, so that the decay shrinks W - B^T at every step. In a layer
    with the NTK parameterization, R reads B without the factor 1 / sqrt(fan-in), because the weight decay of W has no
    such factor. With `update_forward` R decays W as well as B, so the weight decay of W must be 0. The published code
    does not check this; there W would decay twice as fast as B.
    """

    rule: Literal["kolen_pollack"] = "kolen_pollack"
    tie_gradient: ClassVar[bool] = True
    decay: Weight
    """Weight of the decay primitive. It must equal the top-level key `weight_decay`; with `update_forward`, which
    requires `weight_decay: 0`, it may have any value or be a schedule."""

    def __call__(self, view: LayerView) -> Tensor:
        """Returns R_l."""
        return self.weight("decay", view) * primitives.decay(view.backward_kernel, view.trained_forward_kernel)

    @pydantic.model_validator(mode="after")
    def _updates_at_every_step(self):
        if self.every > 1:
            requirement = f"must be left out with {self.rule}, whose B gets the update of W at every step"
            raise ArgumentError("every", requirement, self.every)
        return self

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
