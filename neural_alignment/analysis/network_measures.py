"""Measures of a network that is trained step by step: its alignment, alignment terms, similarities and trajectory.

`signals` defines the notation. Functions return arrays by name. Angles are in degrees. An axis `hidden` has one entry
per hidden layer l = 1 to d - 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from neural_alignment.analysis import (
    alignment_terms,
    direct_feedback,
    signals,
    similarity,
    trajectories,
    transformation,
)
from neural_alignment.analysis.alignment_terms import History
from neural_alignment.analysis.similarity import angle
from neural_alignment.analysis.trained_network import DirectNetwork, Step, TrainedNetwork

Array = np.ndarray
Arrays = dict[str, Array]

LAG_MEASURES = (
    "output_angle",
    "error_angle",
    "within",
    "between",
    "transformed_angle",
    "symmetric_angle",
    "skew_ratio",
)
"""Measures that `lagged` computes for each layer and lag."""


def columns(rows: Sequence[Mapping[str, Array | float]]) -> Arrays:
    """Returns the values of each key of all rows as one array."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def histories(network: TrainedNetwork, capacity: int) -> dict[int, History]:
    """Returns an empty history of each hidden layer."""
    return {layer: History(network.rate, network.activation, capacity) for layer in network.hidden}


def append(network: TrainedNetwork, step: Step, kept: Mapping[int, History]) -> None:
    """Adds a step to the history of each hidden layer."""
    for layer, history in kept.items():
        history.append(network.signals(step, layer))


def costs(network: TrainedNetwork, batch: int, kept: Mapping[int, History], terms: int) -> Arrays:
    """Returns the cost of the alignment terms of each hidden layer (`alignment_terms.cost`).

    Args:
        network: the network.
        batch: examples per batch.
        kept: history of each hidden layer.
        terms: number of terms of each layer.

    Returns:
        `memory` and `operations` (hidden,), in bytes and floating-point operations.
    """
    found = []
    for layer, history in kept.items():
        sizes = (*network.kernels[layer - 1].shape, network.kernels[layer].shape[1])
        found.append(alignment_terms.cost(batch, sizes, terms, history.iterations, history.capacity)._asdict())
    return columns(found)


def alignment(network: TrainedNetwork, step: Step) -> dict[str, list[float]]:
    """Returns the angles of the kernels and their updates, and the norms of the kernels.

    Args:
        network: the network.
        step: the step.

    Returns:
        - `weight_angle` (hidden,): angle between W_l and B_l^T.
        - `update_to_feedback` (hidden,): angle between the update of W_l and B_l^T.
        - `update_angle` (d,): angle between the update of W_l and that of backpropagation.
        - `norm` (d,): ||W_l||.
        - `product_angle` (hidden,), only for direct feedback alignment: angle between W_l ... W_(d-1) and F_l^T.

        For direct feedback alignment, Q_l takes the place of B_l.
    """
    true, _ = network.true_updates(step)
    row = {
        "weight_angle": [angle(step.kernels[layer], network.aim(layer)) for layer in network.hidden],
        "update_to_feedback": [angle(step.added[layer], network.aim(layer)) for layer in network.hidden],
        "update_angle": [angle(*pair) for pair in zip(step.added, true, strict=True)],
        "norm": [np.linalg.norm(kernel) for kernel in step.kernels],
    }
    if isinstance(network, DirectNetwork):
        row["product_angle"] = direct_feedback.product_angles(step.kernels[1:], network.feedback[1:])
    return row


def term_angles(network: TrainedNetwork, step: Step, kept: Mapping[int, History], orders: int) -> Arrays:
    """Returns the angles of the alignment terms of a step.

    Args:
        network: the network.
        step: the step.
        kept: history of each hidden layer, of the steps before.
        orders: maximum number of orders.

    Returns:
        - `term_angle` (hidden, orders): angle between the alignment term and B_l^T.
        - `linear_angle` (hidden, orders): the same for the linear term, which has no factors f'.

        Orders that are not in the history are NaN.
    """
    found = np.full((2, len(kept), orders), np.nan)
    for place, (layer, history) in enumerate(kept.items()):
        seen, aim = network.signals(step, layer), network.aim(layer)
        for order, term in alignment_terms.alignment_terms(history, seen):
            linear = alignment_terms.linear_term(history, seen, aim.T, order)
            found[:, place, order - 1] = angle(term, aim), angle(linear, aim)
    return {"term_angle": found[0], "linear_angle": found[1]}


def lagged(network: TrainedNetwork, step: Step, earlier: Sequence[Step | None]) -> Arrays:
    """Compares the signals of a step with those of earlier steps.

    Args:
        network: the network.
        step: the step.
        earlier: the step at each lag; `None` gives NaN.

    Returns:
        - `output_angle`, `error_angle` (hidden, lags): angle between L_(l-1) of both steps, and between delta_(l+1).
        - `within`, `between` (hidden, lags): sums of the similarity terms within and between categories, divided by
          the number of pairs.
        - `transformed_angle`, `symmetric_angle`, `skew_ratio` (hidden, lags): `angle`, `symmetric_angle` and
          `skew_ratio` of `transformation.Effect`, for the transformation M of both steps.
        - `eigenvalues` (hidden, lags, units): eigenvalues of the symmetric part of M. `units` is the size of the
          largest layer; the array ends with NaN for smaller ones.
    """
    shape = len(network.hidden), len(earlier)
    row = {name: np.full(shape, np.nan) for name in LAG_MEASURES}
    units = max(error.shape[1] for error in step.errors)
    row["eigenvalues"] = np.full((*shape, units), np.nan)
    for (place, layer), (column, past) in itertools.product(enumerate(network.hidden), enumerate(earlier)):
        if past is None:
            continue
        outputs = past.passed.outputs[layer - 1], step.passed.outputs[layer - 1]
        errors, labels = (past.errors[layer], step.errors[layer]), (past.labels, step.labels)
        pairs = len(past.labels) * len(step.labels)
        sums = similarity.overlap_by_category(errors, outputs, labels)
        effect = transformation.effect(network.aim(layer).T, errors[0].T @ outputs[0] @ outputs[1].T @ errors[1])
        angles = angle(*outputs), angle(*errors)
        values = (*angles, *(each / pairs for each in sums), effect.angle, effect.symmetric_angle, effect.skew_ratio)
        for name, value in zip(LAG_MEASURES, values, strict=True):
            row[name][place, column] = value
        row["eigenvalues"][place, column, : effect.eigenvalues.size] = effect.eigenvalues
    return row


def expansions(network: TrainedNetwork, step: Step, kept: Mapping[int, History]) -> dict[str, list[float]]:
    """Returns the norms of an update and its summands (`alignment_terms.Expansion`), and their angles to B_l^T.

    Args:
        network: the network.
        step: the step.
        kept: history of each hidden layer, of the steps before.

    Returns:
        `NAME_norm` and `NAME_angle` (hidden,) for each field `NAME` of `Expansion`.
    """
    found = {layer: alignment_terms.expand(history, network.signals(step, layer)) for layer, history in kept.items()}
    row = {}
    for part in alignment_terms.Expansion._fields:
        values = {layer: getattr(parts, part) for layer, parts in found.items()}
        row[f"{part}_norm"] = [np.linalg.norm(value) for value in values.values()]
        row[f"{part}_angle"] = [angle(value, network.aim(layer)) for layer, value in values.items()]
    return row


def taylor_degrees(
    network: TrainedNetwork, step: Step, kept: Mapping[int, History], degree: int
) -> dict[str, Array | list[float]]:
    """Returns the sizes of the terms of each degree in the Taylor series of an update (Note 2).

    Args:
        network: the network.
        step: the step.
        kept: history of each hidden layer, of the steps before.
        degree: the largest degree.

    Returns:
        - `update_norm` (hidden,): norm of the update.
        - `terms_norm`, `terms_angle` (hidden, degree): norm of the sum of the terms of each degree, and its angle to
          B_l^T.
        - `remainders_norm` (hidden, degree): norm of the Taylor error that is left after each degree.
    """
    row: dict[str, list] = {"update_norm": [], "terms_norm": [], "terms_angle": [], "remainders_norm": []}
    for layer, history in kept.items():
        seen, aim = network.signals(step, layer), network.aim(layer)
        sums = alignment_terms.taylor_sums(history, seen, degree)
        row["update_norm"].append(np.linalg.norm(alignment_terms.update(history, seen)))
        row["terms_norm"].append([np.linalg.norm(each) for each in sums.terms])
        row["terms_angle"].append([angle(each, aim) for each in sums.terms])
        row["remainders_norm"].append([np.linalg.norm(each) for each in sums.remainders])
    return row


PARTS = ("product", "rest")
"""Parts of a direct feedback matrix: the product of its factors, and the rest (`direct_feedback.Factor`)."""


def direct_histories(network: DirectNetwork, capacity: int) -> dict[int, dict[str, History]]:
    """Returns an empty history of each hidden layer and part."""
    kept = {part: histories(network, capacity) for part in PARTS}
    return {layer: {part: kept[part][layer] for part in PARTS} for layer in network.hidden}


def append_direct(network: DirectNetwork, step: Step, kept: Mapping[int, Mapping[str, History]]) -> None:
    """Adds a step to the histories of each hidden layer: to each its part of the returned error."""
    for layer, own in kept.items():
        returned = direct_feedback.returned_parts(step.error, network.factors[layer])
        for part, history in own.items():
            history.append(network.signals(step, layer)._replace(returned=returned[part]))


def direct_parts(network: DirectNetwork, step: Step, kept: Mapping[int, Mapping[str, History]]) -> dict[str, list]:
    """Splits the sum of the direct alignment terms of a step into the four parts of equation S17.

    Args:
        network: the network.
        step: the step.
        kept: histories of each hidden layer and part, of the steps before.

    Returns:
        The parts are product and product, product and rest, rest and product, rest and rest: of the past error and of
        the current error.

        - `part_norm` (hidden, 4): norm of each part, divided by the norm of their sum.
        - `part_angle` (hidden, 4): angle of each part to Q_l^T; NaN if it is zero.
        - `sum_angle` (hidden,): angle of their sum to Q_l^T.
        - `rest_norm` (hidden,): norm of the rest of F_l, divided by that of F_l.
    """
    row: dict[str, list] = {"part_norm": [], "part_angle": [], "sum_angle": [], "rest_norm": []}
    for layer, own in kept.items():
        sums = _direct_sums(network, step, layer, own)
        total, aim = sum(sums), network.aim(layer)
        row["part_norm"].append([np.linalg.norm(each) / np.linalg.norm(total) for each in sums])
        row["part_angle"].append([angle(each, aim) for each in sums])
        row["sum_angle"].append(angle(total, aim))
        row["rest_norm"].append(np.linalg.norm(network.factors[layer].rest) / np.linalg.norm(network.feedback[layer]))
    return row


def _direct_sums(network: DirectNetwork, step: Step, layer: int, kept: Mapping[str, History]) -> list[Array]:
    """Returns the sum over all orders of each of the four parts."""
    above = layer + 1
    if above in network.hidden:
        gate = network.activation.derivative(step.passed.states[layer])
        errors = direct_feedback.error_parts(step.error, network.factors[above], gate)
    else:
        errors = {"product": step.error, "rest": np.zeros_like(step.error)}  # The output layer has no feedback matrix.
    seen, orders = network.signals(step, layer), range(1, len(kept["product"]) + 1)
    found = [direct_feedback.direct_term_parts(kept, seen, errors, order) for order in orders]
    return [sum(each[parts] for each in found) for parts in itertools.product(PARTS, PARTS)]


def similarity_distributions(network: TrainedNetwork, earlier: Step, later: Step, bins: int, quality: bool) -> Arrays:
    """Returns histograms of the similarities of all pairs of an earlier and a later example (Figure S5).

    Args:
        network: the network.
        earlier: the signals of the earlier examples.
        later: the signals of the later examples; may be the same.
        bins: number of bins.
        quality: whether to distinguish well and poorly classified examples.

    Returns:
        Three kinds of arrays for each hidden layer l and each SIGNAL, `output` (L_(l-1)) and `error` (delta_(l+1)):

        - `SIGNAL/l/edges` (bins + 1,): edges of the bins.
        - `SIGNAL/l/GROUP` (bins,): number of pairs in each bin, for each GROUP of pairs of `similarity.tally`.
        - `SIGNAL/l/GROUP/mean` (): mean similarity.
    """
    steps, labels = (earlier, later), (earlier.labels, later.labels)
    well = tuple(similarity.well_classified(step.error) for step in steps) if quality else None
    arrays: Arrays = {}
    for layer in network.hidden:
        values = {
            "output": [step.passed.outputs[layer - 1] for step in steps],
            "error": [step.errors[layer] for step in steps],
        }
        for signal, both in values.items():
            some = similarity.similarity_matrix(*(each[:500] for each in both))
            edges, name = np.linspace(*np.quantile(some, (0.005, 0.995)), bins + 1), f"{signal}/{layer}"
            arrays[f"{name}/edges"] = edges
            for group, tally in similarity.tally(*both, labels, edges, well).items():
                arrays |= {f"{name}/{group}": tally.histogram, f"{name}/{group}/mean": np.array(tally.mean)}
    return arrays


def follow(
    network: TrainedNetwork, iterations: int, every: int, stride: int, tell: Callable[[float], None]
) -> tuple[list[Array], Arrays]:
    """Trains a network and records its parameters and updates, flattened by `trajectories.flatten`.

    Args:
        network: the network.
        iterations: number of updates.
        every: number of iterations between two recorded points.
        stride: number of iterations between two recorded updates.
        tell: called with the progress, from 0 to 1.

    Returns:
        The points, each `(parameters,)`; and three arrays `(directions, parameters)`: `places`, the parameters before
        an update; `true`, the update of backpropagation; `feedback_directions`, the update of the learning rule.
    """
    points, directions = [], []
    for step in network.steps(iterations + 1):
        place = trajectories.flatten(step.kernels, step.biases)
        if step.number % every == 0:
            points.append(place)
        if step.number % stride == 0:
            true = trajectories.flatten(*network.true_updates(step))
            own = trajectories.flatten(step.added, step.added_to_biases)
            directions.append({"places": place, "true": true, "feedback_directions": own})
        tell(step.number / iterations)
    return points, columns(directions)


def landscape(network: TrainedNetwork, plane: trajectories.Plane, axes: Sequence[Array], examples: int) -> Arrays:
    """Returns the error of the network in a plane of its parameters.

    Args:
        network: the network.
        plane: the plane.
        axes: coordinates along its first and second axis, `(side,)` each.
        examples: number of training examples.

    Returns:
        - `heights` (side, side): ||E|| / 2, see `trajectories.contour_height`.
        - `feedback` (2,): coordinates of the parameters at the centre of the plane, with B_l^T in place of W_l.
    """
    inputs, labels = network.examples(examples)
    shapes = [kernel.shape for kernel in network.kernels]

    def height(row: Array) -> float:
        passed = signals.forward(inputs, *trajectories.unflatten(row, shapes), network.activation)
        return trajectories.contour_height(network.targets[labels], passed.outputs[-1])

    kernels, biases = trajectories.unflatten(plane.centre, shapes)
    aims = [kernels[0], *(network.aim(layer) for layer in network.hidden)]
    return {
        "heights": trajectories.loss_on_plane(plane, *axes, height),
        "feedback": plane.project(trajectories.flatten(aims, biases)),
    }
