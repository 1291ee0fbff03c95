"""Experiments on a network that is trained step by step (Rahmansetayesh et al., Figures 2 to 7).

Each function trains a new network and returns arrays by name (`network_measures.py`). Arguments that they share: `tell`
is called with the progress, from 0 to 1; `iterations` is the number of iterations, the first of which is 0; `every` the
number of iterations from one measurement to the next; `moments` are iterations at which more is measured; `examples` is
a number of training examples. Angles are in degrees; an axis "hidden" has the layers l = 1 to d - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from neural_alignment.analysis import alignment_terms, disturbances, trajectories
from neural_alignment.analysis import network_measures as measures
from neural_alignment.analysis.alignment_terms import History, LayerSignals
from neural_alignment.analysis.network_measures import Array, Arrays
from neural_alignment.analysis.similarity import angle
from neural_alignment.analysis.trained_network import DirectNetwork, Step, TrainedNetwork


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
    histories = measures.histories(network, max(moments))
    rows, batch = _whole(tell, network, moments, histories, measures.append, measures.expansions)
    return rows | measures.costs(network, batch, histories, sum(moments))


def taylor(tell: Callable[[float], None], network: TrainedNetwork, moments: Sequence[int], degree: int) -> Arrays:
    """Measures the terms of each degree in the Taylor series of updates, over all orders (Note 2).

    Returns:
        `moment` (moments,), with the arrays of `network_measures.taylor_degrees` along this axis.
    """
    histories = measures.histories(network, max(moments))
    measure = partial(measures.taylor_degrees, degree=degree)
    return _whole(tell, network, moments, histories, measures.append, measure)[0]


def direct_parts(tell: Callable[[float], None], network: DirectNetwork, moments: Sequence[int]) -> Arrays:
    """Splits the direct alignment terms of updates into the four parts of equation S17, summed over all orders.

    Returns:
        `moment` (moments,), with the arrays of `network_measures.direct_parts` along this axis.
    """
    histories = measures.direct_histories(network, max(moments))
    return _whole(tell, network, moments, histories, measures.append_direct, measures.direct_parts)[0]


def _whole(
    tell: Callable[[float], None],
    network: TrainedNetwork,
    moments: Sequence[int],
    histories: Mapping,
    append: Callable[[TrainedNetwork, Step, Mapping], None],
    measure: Callable[[TrainedNetwork, Step, Mapping], dict],
) -> tuple[Arrays, int]:
    """Measures steps at some moments with the history of all steps before; returns the arrays and the batch size."""
    rows = []
    for step in network.steps(max(moments) + 1):
        if step.number in moments:
            rows.append({"moment": step.number, **measure(network, step, histories)})
            tell(sum(moment for moment in moments if moment <= step.number) / sum(moments))
        append(network, step, histories)
    return measures.columns(rows), len(step.labels)


DISTURBANCES = ("none", "linear", "feedback", "errors")
"""Undisturbed, as a control; no nonlinearity (Figure 4A), new backward weights (4B), shuffled errors (5)."""


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
    kernels, disturbers = {layer: network.kernels[layer] for layer in network.hidden}, {}
    for layer, (backward, disturb) in _disturbances(network, how, seed, deviation).items():
        if how == "linear":
            total = disturbances.LinearTerms(network.rate, backward).total
        else:
            history = History(network.rate, network.activation, iterations)
            total = disturbances.DisturbedTerms(history, disturb).total
        disturbers[layer] = backward, total
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


def disturbed_terms(
    tell: Callable[[float], None],
    network: TrainedNetwork,
    moments: Sequence[int],
    orders: int,
    how: str,
    seed: Sequence[int],
    deviation: float,
) -> Arrays:
    """Measures the angles of single disturbed alignment terms.

    Args:
        tell: called with the progress.
        network: the network.
        moments: iterations at which the terms are measured.
        orders: the largest order; the history holds as many iterations.
        how: one of `DISTURBANCES`, except for `linear`, whose terms `observed` measures.
        seed: seed of the disturbances.
        deviation: standard deviation of new backward weights.

    Returns:
        `moment` (moments,) and `term_angle` (moments, hidden, orders): angle of the disturbed term to B_l^T, or to the
        new backward weights; NaN for orders that are not in the history.

    Raises:
        ValueError: if there is no such disturbance.
    """
    found, histories = _disturbances(network, how, seed, deviation), measures.histories(network, orders)
    angles = np.full((len(moments), len(found), orders), np.nan)
    for step in network.steps(max(moments) + 1):
        for place, (layer, (backward, disturb)) in enumerate(found.items()):
            seen = disturb(network.signals(step, layer))
            if step.number in moments:
                for order, term in alignment_terms.alignment_terms(histories[layer], seen):
                    angles[moments.index(step.number), place, order - 1] = angle(term, backward.T)
            histories[layer].append(seen)
        tell((step.number + 1) / (max(moments) + 1))
    return {"moment": np.array(moments), "term_angle": angles}


def _disturbances(
    network: TrainedNetwork, how: str, seed: Sequence[int], deviation: float
) -> dict[int, tuple[Array, Callable[[LayerSignals], LayerSignals]]]:
    """Returns hidden layer -> the backward kernel of its disturbed terms, and the function that disturbs signals.

    Raises:
        ValueError: if there is no such disturbance.
    """
    if how not in DISTURBANCES:
        raise ValueError(f"`how` must be one of {', '.join(DISTURBANCES)}. Received {how!r}.")
    found = {}
    for layer in network.hidden:
        rng, shape = np.random.default_rng((*seed, layer)), network.aim(layer).T.shape
        backward = rng.normal(0.0, deviation, shape) if how == "feedback" else network.aim(layer).T
        disturb = {
            "feedback": partial(disturbances.with_feedback, backward_kernel=backward),
            "errors": partial(disturbances.with_shuffled_errors, backward_kernel=backward, rng=rng),
        }.get(how, lambda seen: seen)
        found[layer] = backward, disturb
    return found


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
        step = network.look(inputs, labels)
        found = measures.similarity_distributions(network, step, step, bins, quality)
        return {f"{phase}/{name}": values for name, values in found.items()}

    first, rows = compare("first", quality=False), []
    for step in network.steps(iterations + 1):
        if step.number % network.steps_per_epoch == 0:
            norms = np.linalg.norm(network.look(inputs[:shown], labels[:shown]).error, axis=1)
            rows.append({"iteration": step.number, "error_norm": norms})
        tell(0.8 * step.number / iterations)
    return first | compare("last", quality=True) | measures.columns(rows)


def lagged_similarities(
    tell: Callable[[float], None], network: TrainedNetwork, moments: Sequence[int], lags: Sequence[int], bins: int
) -> Arrays:
    """Compares the signals of all pairs of an example of one batch and an example of an earlier batch (Figure S5).

    Returns:
        MOMENT/LAG/NAME for each moment, lag and array of `network_measures.similarity_distributions`. At the last
        moment, examples are well or poorly classified within their batch.
    """
    wanted, earlier, arrays = {moment - lag for moment in moments for lag in lags}, dict[int, Step](), {}
    for step in network.steps(max(moments) + 1):
        if step.number in moments:
            last = step.number == max(moments)
            for lag in lags:
                past = earlier[step.number - lag]
                found = measures.similarity_distributions(network, past, step, bins, quality=last)
                arrays |= {f"{step.number}/{lag}/{name}": values for name, values in found.items()}
            later = {moment - lag for moment in moments if moment > step.number for lag in lags}
            earlier = {number: old for number, old in earlier.items() if number in later}
        if step.number in wanted:
            earlier[step.number] = step
        tell((step.number + 1) / (max(moments) + 1))
    return arrays


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
