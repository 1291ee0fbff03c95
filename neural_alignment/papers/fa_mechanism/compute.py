"""Computations of the figures of Rahmansetayesh et al.: one function for each kind of piece (`jobs/pieces.py`).

Each function gets the configurations it starts from, and returns arrays by name. Axes are points or moments in time,
hidden layers l = 1 to d - 1, orders o, and lags. Angles are in degrees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neural_alignment.analysis import (
    alignment_terms,
    direct_feedback,
    disturbances,
    open_loop,
    random_products,
    similarity,
    trajectories,
    transformation,
)
from neural_alignment.analysis import signals as passes
from neural_alignment.analysis.alignment_terms import History
from neural_alignment.analysis.similarity import angle
from neural_alignment.config import Config
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.papers.fa_mechanism.network import FEEDBACK_STREAM, DirectNetwork, NumpyNetwork, Step

Array = np.ndarray

LAGS = (1, 30, 60)
"""Lags at which signals are compared (Figures S1, S3 and S4); 60 is an epoch, after which a batch comes again."""

PARTS = ("update", "alignment", "zero_degree", "remainder")
"""Parts measured by `expanded`: the update and its three summands."""


# Training, observed.


def observed(
    tell: Tell,
    config: Config,
    iterations: int,
    every: int,
    moments: Sequence[int],
    orders: int,
    direct: bool = False,
) -> Arrays:
    """Trains the network, and measures the alignment of its weights, updates and alignment terms.

    Args:
        tell: called with the progress, from 0 to 1.
        config: configuration of the run.
        iterations: number of iterations; the first is 0.
        every: iterations from one measurement to the next.
        moments: iterations whose alignment terms are measured.
        orders: maximum number of orders; the history holds as many iterations.
        direct: whether to train by direct feedback alignment, the Q_l in place of B_l.

    Returns:
        `iteration` (points,): of the measurements. `weight_angle`, `update_to_feedback` (points, hidden): of W_l and of
        its update to B_l^T. `update_angle`, `norm` (points, d): of the updates to those of backpropagation; ||W_l||.
        `product_angle` (points, hidden): of W_l ... W_(d-1) to F_l^T, where `direct`.
        `moment` (moments,). `term_angle`, `linear_angle` (moments, hidden, orders): of the terms to B_l^T, with
        and without their gates; NaN where there is no such order yet. `memory`, `operations` (hidden,): cost of the
        alignment terms of a layer, in bytes and floating-point operations.
        At `LAGS`, (moments, hidden, lags): `output_angle`, `error_angle` of L_(l-1) and delta_(l+1) to those of k - o;
        `within`, `between`, sums of the similarity terms over the number of pairs; of the transformation M
        `transformed_angle`, `symmetric_angle`, `skew_ratio`, and `eigenvalues` (moments, hidden, lags, units) of its
        symmetric part.
    """
    network = DirectNetwork(config) if direct else NumpyNetwork(config)
    histories = {layer: History(network.rate, network.activation, orders) for layer in network.hidden}
    lagged: dict[int, Step] = {}
    wanted = {moment - lag for moment in moments for lag in LAGS}
    measured: dict[str, list] = {"iteration": []}
    at_moments: dict[str, list] = {"moment": []}
    terms = 0
    for step in network.steps(iterations):
        k = step.number
        if k % every == 0:
            _add(measured, {"iteration": k, **_alignment(network, step)})
        if k in moments:
            _add(at_moments, {"moment": k, **_terms(network, step, histories, orders), **_lags(network, step, lagged)})
            lagged = {n: old for n, old in lagged.items() if any(n + lag > k for lag in LAGS if n + lag in moments)}
            terms += len(histories[1])
        if any(moment - orders <= k < moment for moment in moments):
            for layer, history in histories.items():
                history.append(network.signals(step, layer))
        if k in wanted:
            lagged[k] = step
        tell((k + 1) / iterations)
    arrays = {name: np.array(values) for name, values in {**measured, **at_moments}.items()}
    return arrays | _costs(network, histories, terms)


def _add(columns: dict[str, list], row: dict[str, Array | float]) -> None:
    """Adds a row to columns."""
    for name, value in row.items():
        columns.setdefault(name, []).append(value)


def _costs(network: NumpyNetwork, histories: dict[int, History], terms: int) -> Arrays:
    """Returns the cost of the alignment terms of each hidden layer; `terms` is their number per layer."""
    found = []
    for layer, history in histories.items():
        sizes = (*network.kernels[layer - 1].shape, network.kernels[layer].shape[1])
        found.append(
            alignment_terms.cost(network.config.batch_size, sizes, terms, history.iterations, history.capacity)
        )
    return {name: np.array([getattr(cost, name) for cost in found]) for name in ("memory", "operations")}


def _alignment(network: NumpyNetwork, step: Step) -> dict[str, Array]:
    """Returns the angles of W and its updates, and the norms of W."""
    true, _ = passes.updates(step.passed.outputs, network.true_errors(step), network.rate)
    row = {
        "weight_angle": [angle(step.kernels[layer], network.aim(layer)) for layer in network.hidden],
        "update_to_feedback": [angle(step.added[layer], network.aim(layer)) for layer in network.hidden],
        "update_angle": [angle(*pair) for pair in zip(step.added, true, strict=True)],
        "norm": [np.linalg.norm(kernel) for kernel in step.kernels],
    }
    if isinstance(network, DirectNetwork):
        row["product_angle"] = direct_feedback.product_angles(step.kernels[1:], network.feedback[1:])
    return {name: np.array(values) for name, values in row.items()}


def _terms(network: NumpyNetwork, step: Step, histories: dict[int, History], orders: int) -> dict[str, Array]:
    """Returns the angles of all alignment terms of a step."""
    found = np.full((2, len(histories), orders), np.nan)
    for place, (layer, history) in enumerate(histories.items()):
        seen, aim = network.signals(step, layer), network.aim(layer)
        for order, term in alignment_terms.alignment_terms(history, seen):
            linear = alignment_terms.linear_term(history, seen, aim.T, order)
            found[:, place, order - 1] = angle(term, aim), angle(linear, aim)
    return {"term_angle": found[0], "linear_angle": found[1]}


def _lags(network: NumpyNetwork, step: Step, lagged: dict[int, Step]) -> dict[str, Array]:
    """Returns similarities of the signals of a step to earlier ones, and the effect of M on B^T."""
    shape = len(network.hidden), len(LAGS)
    names = ("output_angle", "error_angle", "within", "between", "transformed_angle", "symmetric_angle", "skew_ratio")
    row = {name: np.full(shape, np.nan) for name in names}
    row["eigenvalues"] = np.full((*shape, step.error.shape[1]), np.nan)
    for place, layer in enumerate(network.hidden):
        for column, lag in enumerate(LAGS):
            if step.number - lag not in lagged:
                continue
            past = lagged[step.number - lag]
            outputs = past.passed.outputs[layer - 1], step.passed.outputs[layer - 1]
            errors = past.errors[layer], step.errors[layer]
            labels = past.labels, step.labels
            within, between = similarity.overlap_by_category(errors, outputs, labels)
            pairs = len(labels[0]) * len(labels[1])
            matrix = errors[0].T @ outputs[0] @ outputs[1].T @ errors[1]
            effect = transformation.effect(network.aim(layer).T, matrix)
            values = (angle(*outputs), angle(*errors), within / pairs, between / pairs, *effect[:2], effect.skew_ratio)
            for name, value in zip(names, values, strict=True):
                row[name][place, column] = value
            row["eigenvalues"][place, column] = effect.eigenvalues
    return row


def expanded(tell: Tell, config: Config, moments: Sequence[int]) -> Arrays:
    """Trains the network, and expands its updates at some iterations over all orders, back to the initial weights.

    Args:
        tell: called with the progress, from 0 to 1.
        config: configuration of the run.
        moments: the iterations; the history goes back from the last of them to iteration 0.

    Returns:
        `moment` (moments,); for each of `PARTS` NAME_norm and NAME_angle (moments, hidden): its Frobenius norm, and its
        angle to B_l^T. `memory`, `operations` (hidden,): cost of the alignment terms of a layer, as in `observed`.
    """
    network = NumpyNetwork(config)
    histories = {layer: History(network.rate, network.activation, max(moments)) for layer in network.hidden}
    columns: dict[str, list] = {}
    for step in network.steps(max(moments) + 1):
        if step.number in moments:
            row: dict[str, list] = {f"{part}_{what}": [] for part in PARTS for what in ("norm", "angle")}
            for layer, history in histories.items():
                parts = alignment_terms.expand(history, network.signals(step, layer))
                for part in PARTS:
                    value = getattr(parts, part)
                    row[f"{part}_norm"].append(np.linalg.norm(value))
                    row[f"{part}_angle"].append(angle(value, network.aim(layer)))
            _add(columns, {"moment": step.number, **{name: np.array(values) for name, values in row.items()}})
            tell(sum(moment for moment in moments if moment <= step.number) / sum(moments))
        for layer, history in histories.items():
            history.append(network.signals(step, layer))
    return {name: np.array(values) for name, values in columns.items()} | _costs(network, histories, sum(moments))


# Disturbances.

DISTURBANCES = ("linear", "feedback", "errors")
"""No nonlinearity (Figure 4A), new backward weights (4B), shuffled errors (5)."""


def disturbed(tell: Tell, config: Config, iterations: int, how: str) -> Arrays:
    """Trains the network, and for each W_l another kernel that is moved only by disturbed alignment terms.

    Args:
        tell: called with the progress, from 0 to 1.
        config: configuration of the run.
        iterations: number of updates; for `feedback` and `errors` the cost grows with its square.
        how: one of `DISTURBANCES`.

    Returns:
        `weight_angle` and `disturbed_angle` (iterations + 1, hidden): of W_l, and of the other kernel, to B_l^T; where
        `how` is `feedback` the other kernel is compared with the new backward weights.

    Raises:
        ValueError: if there is no such disturbance.
    """
    if how not in DISTURBANCES:
        raise ValueError(f"`how` must be one of {', '.join(DISTURBANCES)}. Received {how!r}.")
    network = NumpyNetwork(config)
    movers = {layer: _Disturbed(network, layer, iterations, how) for layer in network.hidden}
    angles: dict[str, list] = {"weight_angle": [], "disturbed_angle": []}
    for step in network.steps(iterations + 1):
        weights = [angle(step.kernels[layer], network.aim(layer)) for layer in network.hidden]
        _add(angles, {"weight_angle": weights, "disturbed_angle": [each.angle for each in movers.values()]})
        for layer, mover in movers.items():
            mover.move(network.signals(step, layer))
        part = (step.number + 1) / (iterations + 1)
        tell(part if how == "linear" else part**2)
    return {name: np.array(values) for name, values in angles.items()}


class _Disturbed:
    """A kernel that is moved by the disturbed alignment terms of one layer."""

    def __init__(self, network: NumpyNetwork, layer: int, iterations: int, how: str):
        self._rng = np.random.default_rng((FEEDBACK_STREAM, network.config.seed, layer))
        self._backward, self._how = network.aim(layer).T, how
        if how == "feedback":
            spread = network.config.model.initial_stddev
            self._backward = self._rng.normal(0.0, spread, self._backward.shape)
        self._kernel = network.kernels[layer]
        if how == "linear":
            self._linear = disturbances.LinearTerms(network.rate, self._backward)
        else:
            self._history = History(network.rate, network.activation, iterations)

    @property
    def angle(self) -> float:
        """Of the kernel to its backward weights, degrees."""
        return angle(self._kernel, self._backward.T)

    def move(self, signals: alignment_terms.LayerSignals) -> None:
        """Adds the disturbed alignment terms of an iteration."""
        if self._how == "linear":
            self._kernel = self._kernel + self._linear.total(signals)
            return
        if self._how == "feedback":
            changed = disturbances.with_feedback(signals, self._backward)
        else:
            changed = disturbances.with_shuffled_errors(signals, self._backward, self._rng)
        self._kernel = self._kernel + alignment_terms.alignment_sum(self._history, changed)
        self._history.append(changed)


# Similarities of data points.


def similarities(tell: Tell, config: Config, iterations: int, examples: int, shown: int, bins: int) -> Arrays:
    """Compares the signals of all pairs of some examples, before and after training the network (Figure S5).

    Args:
        tell: called with the progress, from 0 to 1.
        config: configuration of the run, with batches in file order.
        iterations: number of iterations.
        examples: number of examples; all their pairs are compared.
        shown: number of examples whose error norm is kept, once per epoch.
        bins: number of bins of the histograms.

    Returns:
        For each phase (`first`, `last`), signal (`output` of L_(l-1), `error` of delta_(l+1)) and hidden layer l,
        PHASE/SIGNAL/l/edges (bins + 1,), and of each group of pairs PHASE/SIGNAL/l/GROUP (bins,), counts, and its mean.
        Groups are `within` and `between` categories; in the last phase of each `well` and `poor`.
        `iteration` (points,) and `error_norm` (points, shown): ||delta_d|| of single examples.
    """
    network = NumpyNetwork(config)
    inputs, labels = network.examples(examples)
    arrays = _tallies(network, inputs, labels, "first", bins)
    points, norms = [], []
    for step in network.steps(iterations + 1):
        if step.number % network.dataset.steps_per_epoch == 0:
            points.append(step.number)
            norms.append(np.linalg.norm(network.look(inputs[:shown], labels[:shown]).error, axis=1))
        tell(0.8 * step.number / iterations)
    arrays |= _tallies(network, inputs, labels, "last", bins)
    return {**arrays, "iteration": np.array(points), "error_norm": np.array(norms)}


def _tallies(network: NumpyNetwork, inputs: Array, labels: Array, phase: str, bins: int) -> Arrays:
    """Returns the distributions of similarities in the network as it is."""
    step = network.look(inputs, labels)
    well = None if phase == "first" else (similarity.well_classified(step.error),) * 2
    arrays: Arrays = {}
    for layer in network.hidden:
        for signal, values in (("output", step.passed.outputs[layer - 1]), ("error", step.errors[layer])):
            some = similarity.similarity_matrix(values[:500], values[:500])
            edges = np.linspace(*np.quantile(some, (0.005, 0.995)), bins + 1)
            name = f"{phase}/{signal}/{layer}"
            arrays[f"{name}/edges"] = edges
            for group, tally in similarity.tally(values, values, (labels, labels), edges, well).items():
                arrays[f"{name}/{group}"] = tally.histogram
                arrays[f"{name}/{group}/mean"] = np.array(tally.mean)
    return arrays


# Trajectories.


def plane(
    tell: Tell, first: Config, second: Config, iterations: int, every: int, side: int, examples: int, arrows: int
) -> Arrays:
    """Trains two networks, and returns their paths in the plane of two principal components (Figure 7C and F).

    Args:
        tell: called with the progress, from 0 to 1.
        first: configuration of one run.
        second: configuration of the other run, which has backward kernels.
        iterations: number of updates.
        every: iterations from one point of a path to the next; the published figure has 3.
        side: points along each side of the grid of the contours.
        examples: training examples whose error the contours show.
        arrows: points of the second path at which directions of updates are kept.

    Returns:
        `explained` (2,): part of the variance along each component. `paths` (2, points, 2). `first_axis`, `second_axis`
        (side,) and `heights` (side, side): ||E|| / 2. `feedback` (2,): the backward kernels B_l^T in place of W_l, all
        else as at the centre. `places`, `true`, `feedback_directions` (arrows, 2): where updates start, and where those
        of backpropagation and of the rule point to.
    """
    rows: list[list[Array]] = []
    for number, config in enumerate((first, second)):
        network = NumpyNetwork(config)
        points, directions = _follow(network, iterations, every, arrows, lambda part, n=number: tell(0.4 * (n + part)))
        rows.append(points)
    found = trajectories.plane(np.concatenate(rows))
    paths = np.stack([found.project(np.array(each)) for each in rows])
    axes = [_axis(paths[..., which], side) for which in range(2)]
    inputs, labels = network.examples(examples)
    shapes = [kernel.shape for kernel in network.kernels]

    def height(row: Array) -> float:
        passed = passes.forward(inputs, *trajectories.unflatten(row, shapes), network.activation)
        return trajectories.contour_height(network.targets[labels], passed.outputs[-1])

    kernels, biases = trajectories.unflatten(found.centre, shapes)
    aims = [kernels[0], *(network.aim(layer) for layer in network.hidden)]
    return {
        "explained": found.explained,
        "paths": paths,
        "first_axis": axes[0],
        "second_axis": axes[1],
        "heights": trajectories.loss_on_plane(found, *axes, height),
        "feedback": found.project(trajectories.flatten(aims, biases)),
        "places": found.project(np.array(directions["places"])),
        "true": found.project_direction(np.array(directions["true"])),
        "feedback_directions": found.project_direction(np.array(directions["feedback_directions"])),
    }


def _follow(
    network: NumpyNetwork, iterations: int, every: int, arrows: int, tell: Tell
) -> tuple[list[Array], dict[str, list[Array]]]:
    """Trains a network; returns points of its path, and directions of updates along it."""
    points: list[Array] = []
    directions: dict[str, list[Array]] = {"places": [], "true": [], "feedback_directions": []}
    stride = max(iterations // max(arrows, 1), 1)
    for step in network.steps(iterations + 1):
        if step.number % every == 0:
            points.append(trajectories.flatten(step.kernels, step.biases))
        if step.number % stride == 0:
            updates = passes.updates(step.passed.outputs, network.true_errors(step), network.rate)
            directions["places"].append(trajectories.flatten(step.kernels, step.biases))
            directions["true"].append(trajectories.flatten(*updates))
            directions["feedback_directions"].append(trajectories.flatten(step.added, step.added_to_biases))
        tell(step.number / iterations)
    return points, directions


def _axis(values: Array, side: int) -> Array:
    """Returns coordinates of a grid that reaches beyond some values."""
    low, high = values.min(), values.max()
    margin = 0.15 * (high - low)
    return np.linspace(low - margin, high + margin, side)


# Without a network that learns.


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
    """Draws products of random matrices (Figure S7).

    Args:
        tell: called with the progress, from 0 to 1.
        draws: number of draws in all.
        parts: number of parts in which they are drawn.
        seed: seed of the draws.
        width: width of a bin, degrees.

    Returns:
        `product_mean`, `product_variance`, `gated_mean`, `gated_variance` (bins, bins): of theta_3 by theta_1 and
        theta_2, in the linear case and behind the gates of a ReLU; `counts` (bins, bins). `shift` (2,): how much
        farther from 90 degrees the gates move theta_3, mean and standard error.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for part in range(parts):
        samples.append(random_products.sample(draws // parts, rng))
        tell((part + 1) / parts)
    whole = random_products.Sample(*(np.concatenate(each) for each in zip(*samples, strict=True)))
    arrays: Arrays = {"shift": np.array(random_products.gated_shift(whole, width))}
    for name, values in (("product", whole.product), ("gated", whole.gated)):
        found = random_products.heatmap(whole.first, whole.second, values, width)
        arrays |= {f"{name}_mean": found.mean, f"{name}_variance": found.variance, "counts": found.counts}
    return arrays


def transformations(tell: Tell, draws: int, units: int, seed: int) -> Arrays:
    """Draws independent transformations M and matrices B (Figure S1).

    M_sym has eigenvalues N(m, 1), m uniform between -1 and 3, and random eigenvectors; M_skew is random, 0 to 3 times
    the norm of M_sym.

    Returns:
        (draws,) each: `eigenvalue_ratio`, the mean of M_sym's eigenvalues over their root mean square;
        `symmetric_angle`, `angle`, `skew_angle` of B^T to B^T M_sym, B^T M, B^T M_skew; `skew_ratio`,
        ||B^T M_skew|| / ||B^T M_sym||.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {}
    for draw in range(draws):
        eigenvalues = rng.normal(rng.uniform(-1.0, 3.0), 1.0, units)
        vectors, _ = np.linalg.qr(rng.normal(size=(units, units)))
        even = (vectors * eigenvalues) @ vectors.T
        odd = transformation.skew(rng.normal(size=(units, units)))
        odd *= rng.uniform(0.0, 3.0) * np.linalg.norm(even) / np.linalg.norm(odd)
        effect = transformation.effect(rng.normal(size=(units, units)), even + odd)
        row = {name: getattr(effect, name) for name in ("symmetric_angle", "angle", "skew_angle", "skew_ratio")}
        _add(columns, {"eigenvalue_ratio": eigenvalues.mean() / np.sqrt((eigenvalues**2).mean()), **row})
        tell((draw + 1) / draws)
    return {name: np.array(values) for name, values in columns.items()}
