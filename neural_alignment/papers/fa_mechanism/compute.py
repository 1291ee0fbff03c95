"""Computations of the figures of Rahmansetayesh et al.: one public function for each kind of piece (`jobs/pieces.py`).

Each function gets `tell`, which it calls with its progress from 0 to 1, and the configurations it starts from. It
returns arrays by name, whose axes are points or moments in time, hidden layers l = 1 to d - 1, orders o, and lags.
Arguments that several functions share: `iterations` is the number of iterations, the first of which is 0; `every` the
number of iterations from one measurement to the next; `moments` are iterations at which more is measured; `examples` is
a number of training examples; `draws` a number of random draws, from `seed`. Angles are in degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from neural_alignment.analysis import disturbances, open_loop, random_products, trajectories, transformation
from neural_alignment.analysis import network_measures as measures
from neural_alignment.analysis.alignment_terms import History, LayerSignals
from neural_alignment.analysis.similarity import angle
from neural_alignment.analysis.trained_network import Step, TrainedNetwork
from neural_alignment.config import Config
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.papers.fa_mechanism.network import FEEDBACK_STREAM, build, build_direct

LAGS = (1, 30, 60)
"""Lags at which signals are compared (Figures S1, S3 and S4); 60 is an epoch, after which a batch comes again."""


def observed(
    tell: Tell, config: Config, iterations: int, every: int, moments: Sequence[int], orders: int, direct: bool = False
) -> Arrays:
    """Trains the network, and measures the alignment of its weights, updates and alignment terms.

    The history holds `orders` iterations. `direct` trains by direct feedback alignment, with the Q_l in place of B_l.

    Returns:
        `iteration` (points,): of the measurements, with the arrays of `network_measures.alignment` along this axis.
        `moment` (moments,), with the arrays of `term_angles` and, at `LAGS`, of `lagged`. The arrays of `costs`.
    """
    network = build_direct(config) if direct else build(config)
    histories, earlier = measures.histories(network, orders), dict[int, Step]()
    wanted = {moment - lag for moment in moments for lag in LAGS}
    measured, at_moments, terms = [], [], 0
    for step in network.steps(iterations):
        k = step.number
        if k % every == 0:
            measured.append({"iteration": k, **measures.alignment(network, step)})
        if k in moments:
            lagged = measures.lagged(network, step, [earlier.get(k - lag) for lag in LAGS])
            at_moments.append({"moment": k, **measures.term_angles(network, step, histories, orders), **lagged})
            earlier = {n: old for n, old in earlier.items() if any(n + lag > k for lag in LAGS if n + lag in moments)}
            terms += len(histories[1])
        if any(moment - orders <= k < moment for moment in moments):
            measures.append(network, step, histories)
        if k in wanted:
            earlier[k] = step
        tell((k + 1) / iterations)
    costs = measures.costs(network, config.batch_size, histories, terms)
    return measures.columns(measured) | measures.columns(at_moments) | costs


def expanded(tell: Tell, config: Config, moments: Sequence[int]) -> Arrays:
    """Trains the network, and expands its updates at some moments over all orders, back to the initial weights.

    Returns:
        `moment` (moments,), with the arrays of `network_measures.expansions` along this axis. The arrays of `costs`.
    """
    network, rows = build(config), []
    histories = measures.histories(network, max(moments))
    for step in network.steps(max(moments) + 1):
        if step.number in moments:
            rows.append({"moment": step.number, **measures.expansions(network, step, histories)})
            tell(sum(moment for moment in moments if moment <= step.number) / sum(moments))
        measures.append(network, step, histories)
    return measures.columns(rows) | measures.costs(network, config.batch_size, histories, sum(moments))


DISTURBANCES = ("linear", "feedback", "errors")
"""No nonlinearity (Figure 4A), new backward weights (4B), shuffled errors (5)."""


def disturbed(tell: Tell, config: Config, iterations: int, how: str) -> Arrays:
    """Trains the network, and for each W_l another kernel that is moved only by disturbed alignment terms.

    `how` is one of `DISTURBANCES`. For `feedback` and `errors` the cost grows with the square of `iterations`.

    Returns:
        `weight_angle` and `disturbed_angle` (iterations + 1, hidden): of W_l, and of the other kernel, to B_l^T; where
        `how` is `feedback` the other kernel is compared with the new backward weights.

    Raises:
        ValueError: if there is no such disturbance.
    """
    if how not in DISTURBANCES:
        raise ValueError(f"`how` must be one of {', '.join(DISTURBANCES)}. Received {how!r}.")
    network = build(config)
    kernels = {layer: network.kernels[layer] for layer in network.hidden}
    disturbers = {layer: _disturber(network, config, layer, iterations, how) for layer in network.hidden}
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


def _disturber(
    network: TrainedNetwork, config: Config, layer: int, iterations: int, how: str
) -> tuple[np.ndarray, Callable[[LayerSignals], np.ndarray]]:
    """Returns the backward kernel that a disturbed kernel is compared with, and the sum of its disturbed terms."""
    rng, backward = np.random.default_rng((FEEDBACK_STREAM, config.seed, layer)), network.aim(layer).T
    if how == "linear":
        return backward, disturbances.LinearTerms(network.rate, backward).total
    history = History(network.rate, network.activation, iterations)
    if how == "feedback":
        backward = rng.normal(0.0, config.model.initial_stddev, backward.shape)
        changes = disturbances.DisturbedTerms(history, lambda each: disturbances.with_feedback(each, backward))
    else:
        changes = disturbances.DisturbedTerms(
            history, lambda each: disturbances.with_shuffled_errors(each, backward, rng)
        )
    return backward, changes.total


def similarities(tell: Tell, config: Config, iterations: int, examples: int, shown: int, bins: int) -> Arrays:
    """Compares the signals of all pairs of some examples, before and after training the network (Figure S5).

    The batches of the configuration are in file order. The norm of the error is kept for `shown` examples per epoch.

    Returns:
        PHASE/NAME for each phase (`first`, `last`) and array of `network_measures.similarity_distributions`; examples
        are well or poorly classified in the last phase. `iteration` (points,) and `error_norm` (points, shown):
        ||delta_d|| of single examples.
    """
    network, rows, arrays = build(config), [], {}

    def compare(phase: str, quality: bool) -> None:
        found = measures.similarity_distributions(network, inputs, labels, bins, quality)
        arrays.update({f"{phase}/{name}": values for name, values in found.items()})

    inputs, labels = network.examples(examples)
    compare("first", quality=False)
    for step in network.steps(iterations + 1):
        if step.number % network.steps_per_epoch == 0:
            norms = np.linalg.norm(network.look(inputs[:shown], labels[:shown]).error, axis=1)
            rows.append({"iteration": step.number, "error_norm": norms})
        tell(0.8 * step.number / iterations)
    compare("last", quality=True)
    return arrays | measures.columns(rows)


def plane(
    tell: Tell, first: Config, second: Config, iterations: int, every: int, side: int, examples: int, arrows: int
) -> Arrays:
    """Trains two networks, and returns their paths in the plane of two principal components (Figure 7C and F).

    The second has backward kernels. The published figure has a point of the paths at `every` third iteration. The
    contours have `side` points along each side; directions of updates are kept at `arrows` points of the second path.

    Returns:
        `explained` (2,): part of the variance along each component. `paths` (2, points, 2). `first_axis`, `second_axis`
        (side,), with the arrays of `network_measures.landscape`. `places`, `true`, `feedback_directions` (arrows, 2):
        where updates start, and where those of backpropagation and of the rule point to.
    """
    rows, stride = [], max(iterations // max(arrows, 1), 1)
    for number, config in enumerate((first, second)):
        network = build(config)
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


def open_loops(tell: Tell, condition: str, rate: float, runs: int, iterations: int) -> Arrays:
    """Runs the open loop of Figure 1B; run r draws from seed r.

    Returns:
        `angles` (runs, iterations + 1): of W_1 to B_1^T.
    """
    angles = []
    for run in range(runs):
        angles.append(open_loop.run(condition, np.random.default_rng(run), iterations, rate))
        tell((run + 1) / runs)
    return {"angles": np.array(angles)}


def products(tell: Tell, draws: int, parts: int, seed: int, width: float) -> Arrays:
    """Draws products of random matrices in several parts, for bins of `width` degrees (Figure S7).

    Returns:
        `product_mean`, `product_variance`, `gated_mean`, `gated_variance` (bins, bins): of theta_3 by theta_1 and
        theta_2, in the linear case and behind the gates of a ReLU; `counts` (bins, bins). `shift` (2,): how much
        farther from 90 degrees the gates move theta_3, mean and standard error.
    """
    rng, samples = np.random.default_rng(seed), []
    for part in range(parts):
        samples.append(random_products.sample(draws // parts, rng))
        tell((part + 1) / parts)
    whole = random_products.Sample(*np.concatenate(samples, axis=1))
    arrays: Arrays = {"shift": np.array(random_products.gated_shift(whole, width))}
    for name in ("product", "gated"):
        found = random_products.heatmap(whole.first, whole.second, getattr(whole, name), width)
        arrays |= {f"{name}_mean": found.mean, f"{name}_variance": found.variance, "counts": found.counts}
    return arrays


def transformations(tell: Tell, draws: int, units: int, seed: int) -> Arrays:
    """Draws independent transformations M and matrices B (Figure S1; `random_transformation`).

    Returns:
        (draws,) each: `eigenvalue_ratio`, the mean of M_sym's eigenvalues over their root mean square;
        `symmetric_angle`, `angle`, `skew_angle` of B^T to B^T M_sym, B^T M, B^T M_skew; `skew_ratio`,
        ||B^T M_skew|| / ||B^T M_sym||.
    """
    rng, rows = np.random.default_rng(seed), []
    for draw in range(draws):
        matrix, ratio = transformation.random_transformation(units, rng)
        effect = transformation.effect(rng.normal(size=(units, units)), matrix)._asdict()
        del effect["eigenvalues"]
        rows.append({"eigenvalue_ratio": ratio, **effect})
        tell((draw + 1) / draws)
    return measures.columns(rows)
