"""Experiments on a network that is trained step by step (Rahmansetayesh et al., Figures 2 to 7).

Each function trains a new network and returns arrays by name (`network_measures.py`). Arguments that they share: `tell`
is called with the progress, from 0 to 1; `iterations` is the number of iterations, the first of which is 0; `every` the
number of iterations from one measurement to the next; `moments` are iterations at which more is measured; `examples` is
a number of training examples. Angles are in degrees; an axis "hidden" has the layers l = 1 to d - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from neural_alignment.analysis import disturbances, trajectories
from neural_alignment.analysis import network_measures as measures
from neural_alignment.analysis.alignment_terms import History, LayerSignals
from neural_alignment.analysis.network_measures import Array, Arrays
from neural_alignment.analysis.similarity import angle
from neural_alignment.analysis.trained_network import Step, TrainedNetwork


def observed(
    tell: Callable[[float], None],
    network: TrainedNetwork,
    iterations: int,
    every: int,
    moments: Sequence[int],
    orders: int,
    lags: Sequence[int],
) -> Arrays:
    """Measures the alignment of the weights, the updates and the alignment terms during training.

    The history holds `orders` iterations.

    Returns:
        `iteration` (points,): of the measurements, with the arrays of `network_measures.alignment` along this axis.
        `moment` (moments,), with the arrays of `term_angles` and, at some lags, of `lagged`. The arrays of `costs`.
    """
    histories, earlier = measures.histories(network, orders), dict[int, Step]()
    wanted = {moment - lag for moment in moments for lag in lags}
    measured, at_moments, terms = [], [], 0
    for step in network.steps(iterations):
        k = step.number
        if k % every == 0:
            measured.append({"iteration": k, **measures.alignment(network, step)})
        if k in moments:
            lagged = measures.lagged(network, step, [earlier.get(k - lag) for lag in lags])
            at_moments.append({"moment": k, **measures.term_angles(network, step, histories, orders), **lagged})
            earlier = {n: old for n, old in earlier.items() if any(n + lag > k for lag in lags if n + lag in moments)}
            terms += len(histories[1])
        if any(moment - orders <= k < moment for moment in moments):
            measures.append(network, step, histories)
        if k in wanted:
            earlier[k] = step
        tell((k + 1) / iterations)
    costs = measures.costs(network, len(step.labels), histories, terms)
    return measures.columns(measured) | measures.columns(at_moments) | costs


def expanded(tell: Callable[[float], None], network: TrainedNetwork, moments: Sequence[int]) -> Arrays:
    """Expands the updates at some moments over all orders, back to the initial weights.

    Returns:
        `moment` (moments,), with the arrays of `network_measures.expansions` along this axis. The arrays of `costs`.
    """
    rows, histories = [], measures.histories(network, max(moments))
    for step in network.steps(max(moments) + 1):
        if step.number in moments:
            rows.append({"moment": step.number, **measures.expansions(network, step, histories)})
            tell(sum(moment for moment in moments if moment <= step.number) / sum(moments))
        measures.append(network, step, histories)
    return measures.columns(rows) | measures.costs(network, len(step.labels), histories, sum(moments))


DISTURBANCES = ("linear", "feedback", "errors")
"""No nonlinearity (Figure 4A), new backward weights (4B), shuffled errors (5)."""


def disturbed(
    tell: Callable[[float], None],
    network: TrainedNetwork,
    iterations: int,
    how: str,
    seed: Sequence[int],
    deviation: float,
) -> Arrays:
    """Moves another kernel beside each W_l only by disturbed alignment terms.

    Args:
        tell: called with the progress.
        network: the network.
        iterations: number of updates; the cost grows with its square, except for `linear`.
        how: one of `DISTURBANCES`.
        seed: seed of the disturbances.
        deviation: standard deviation of new backward weights.

    Returns:
        `weight_angle` and `disturbed_angle` (iterations + 1, hidden): of W_l, and of the other kernel, to B_l^T; where
        `how` is `feedback` the other kernel is compared with the new backward weights.

    Raises:
        ValueError: if there is no such disturbance.
    """
    if how not in DISTURBANCES:
        raise ValueError(f"`how` must be one of {', '.join(DISTURBANCES)}. Received {how!r}.")
    kernels, disturbers = {layer: network.kernels[layer] for layer in network.hidden}, {}
    for layer in network.hidden:
        rng, shape = np.random.default_rng((*seed, layer)), network.aim(layer).T.shape
        backward = rng.normal(0.0, deviation, shape) if how == "feedback" else network.aim(layer).T
        disturbers[layer] = backward, _total(network, how, backward, rng, iterations)
    rows = []
    for step in network.steps(iterations + 1):
        weights = [angle(step.kernels[layer], network.aim(layer)) for layer in network.hidden]
        others = [angle(kernels[layer], backward.T) for layer, (backward, _) in disturbers.items()]
        rows.append({"weight_angle": weights, "disturbed_angle": others})
        for layer, (_, total) in disturbers.items():
            kernels[layer] = kernels[layer] + total(network.signals(step, layer))
        part = (step.number + 1) / (iterations + 1)
        tell(part if how == "linear" else part**2)
    return measures.columns(rows)


def _total(
    network: TrainedNetwork, how: str, backward: Array, rng: np.random.Generator, iterations: int
) -> Callable[[LayerSignals], Array]:
    """Returns the function that sums the disturbed terms of an iteration."""
    if how == "linear":
        return disturbances.LinearTerms(network.rate, backward).total
    disturb = {
        "feedback": partial(disturbances.with_feedback, backward_kernel=backward),
        "errors": partial(disturbances.with_shuffled_errors, backward_kernel=backward, rng=rng),
    }[how]
    return disturbances.DisturbedTerms(History(network.rate, network.activation, iterations), disturb).total


def similarities(
    tell: Callable[[float], None], network: TrainedNetwork, iterations: int, examples: int, shown: int, bins: int
) -> Arrays:
    """Compares the signals of all pairs of some examples, before and after training (Figure S5).

    Returns:
        PHASE/NAME for each phase (`first`, `last`) and array of `network_measures.similarity_distributions`; examples
        are well or poorly classified in the last phase. `iteration` (points,) and `error_norm` (points, shown):
        ||delta_d|| of single examples after each epoch.
    """
    inputs, labels = network.examples(examples)

    def compare(phase: str, quality: bool) -> Arrays:
        found = measures.similarity_distributions(network, inputs, labels, bins, quality)
        return {f"{phase}/{name}": values for name, values in found.items()}

    first, rows = compare("first", quality=False), []
    for step in network.steps(iterations + 1):
        if step.number % network.steps_per_epoch == 0:
            norms = np.linalg.norm(network.look(inputs[:shown], labels[:shown]).error, axis=1)
            rows.append({"iteration": step.number, "error_norm": norms})
        tell(0.8 * step.number / iterations)
    return first | compare("last", quality=True) | measures.columns(rows)


def plane(
    tell: Callable[[float], None],
    networks: Sequence[TrainedNetwork],
    iterations: int,
    every: int,
    side: int,
    examples: int,
    arrows: int,
) -> Arrays:
    """Follows the paths of two networks in the plane of two principal components (Figure 7C and F).

    The second network has backward kernels. The published figure has a point of the paths at every third iteration.
    The contours have `side` points along each side; directions of updates are kept at `arrows` points of the second
    path.

    Returns:
        `explained` (2,): part of the variance along each component. `paths` (2, points, 2). `first_axis`, `second_axis`
        (side,), with the arrays of `network_measures.landscape`. `places`, `true`, `feedback_directions` (arrows, 2):
        where updates start, and where those of backpropagation and of the rule point to.
    """
    rows, stride = [], max(iterations // max(arrows, 1), 1)
    for number, network in enumerate(networks):
        points, directions = measures.follow(
            network, iterations, every, stride, lambda part, number=number: tell(0.4 * (number + part))
        )
        rows.append(points)
    found = trajectories.plane(np.concatenate(rows))
    paths = np.stack([found.project(np.array(each)) for each in rows])
    axes = [trajectories.grid_axis(paths[..., which], side) for which in range(2)]
    return {
        "explained": found.explained,
        "paths": paths,
        "first_axis": axes[0],
        "second_axis": axes[1],
        **measures.landscape(network, found, axes, examples),
        "places": found.project(directions["places"]),
        **{name: found.project_direction(directions[name]) for name in ("true", "feedback_directions")},
    }
