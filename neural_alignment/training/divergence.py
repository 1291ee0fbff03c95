"""The error of a run whose J or R is no longer finite."""

from __future__ import annotations

import keras
import numpy as np

from neural_alignment.errors import Diverged
from neural_alignment.keras_internals import all_layers
from neural_alignment.training.model import AlignedModel


def diverged(model: AlignedModel, step: int) -> Diverged:
    """Returns the error to raise; its message names the step, the layer and a remedy.

    Args:
        model: the model whose J or R is not finite.
        step: the step to report if J and R were finite at all training steps.
    """
    step, sources = model.first_non_finite() or (step, ["J"])
    layers = [source for source in sources if source != "J"]
    forward = "lower the forward learning rate, clip the gradients, or delay J until B has aligned"
    if layers:
        subject = f"R of layer {layers[0]}" + (f" and {len(layers) - 1} more" if layers[1:] else "")
        advice = "lower the backward learning rate, or raise the weight of decay, sparse or null against amp"
        advice += "; if J had grown before, lower the forward learning rate, because R reads W and the activities"
        if "J" in sources:  # J does not read B, so W is the cause of both.
            subject, advice = f"J and {subject}", forward
    else:
        layers = _damaged_layers(model)
        where = f" (first weights that are not finite: layer {layers[0]})" if layers else ""
        subject, advice = f"J{where}", forward
    return Diverged(f"{subject} is not finite at step {step}; try this: {advice}", step, layers)


def _damaged_layers(model: AlignedModel) -> list[str]:
    """Returns the names of the layers that have a weight that is not finite."""
    return [
        layer.name
        for layer in all_layers(model)
        if not all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in layer.weights)
    ]
