"""Computations of the figures of Rahmansetayesh et al.: one public function for each kind of piece (`jobs/pieces.py`).

Each function gets `tell`, which it calls with its progress from 0 to 1, and the configurations it starts from. It
returns arrays by name. Those that train networks are the experiments of `analysis/network_experiments.py`, which
describes their arrays and further arguments (`sizes`). Angles are in degrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_alignment.analysis import network_experiments, open_loop, random_products, transformation
from neural_alignment.analysis.network_measures import columns
from neural_alignment.config import Config
from neural_alignment.jobs.pieces import Arrays, Tell
from neural_alignment.papers.fa_mechanism.network import FEEDBACK_STREAM, build, build_direct
from neural_alignment.reporting import Spread

LAGS = (1, 30, 60)
"""Lags at which signals are compared (Figures S1, S3 and S4); 60 is an epoch, after which a batch comes again."""


def observed(tell: Tell, config: Config, direct: bool = False, **sizes: Any) -> Arrays:
    """Observes the training; `direct` is by direct feedback alignment, with the Q_l in place of B_l."""
    network = build_direct(config) if direct else build(config)
    return network_experiments.observed(tell, network, lags=LAGS, **sizes)


def expanded(tell: Tell, config: Config, **sizes: Any) -> Arrays:
    """Expands updates back to the initial weights."""
    return network_experiments.expanded(tell, build(config), **sizes)


def disturbed(tell: Tell, config: Config, **sizes: Any) -> Arrays:
    """Moves kernels by disturbed alignment terms; new backward weights are drawn like the initial ones."""
    return network_experiments.disturbed(tell, build(config), **_disturbance_draws(config), **sizes)


def disturbed_terms(tell: Tell, config: Config, **sizes: Any) -> Arrays:
    """Measures the angles of single disturbed alignment terms, with the same draws as `disturbed`."""
    return network_experiments.disturbed_terms(tell, build(config), **_disturbance_draws(config), **sizes)


def _disturbance_draws(config: Config) -> dict[str, Any]:
    return {"seed": (FEEDBACK_STREAM, config.seed), "deviation": config.model.initial_stddev}


def taylor(tell: Tell, config: Config, **sizes: Any) -> Arrays:
    """Measures the terms of each degree in the Taylor series of updates."""
    return network_experiments.taylor(tell, build(config), **sizes)


def direct_parts(tell: Tell, config: Config, **sizes: Any) -> Arrays:
    """Splits the direct alignment terms of a network that is trained by direct feedback alignment."""
    return network_experiments.direct_parts(tell, build_direct(config), **sizes)


def similarities(tell: Tell, config: Config, **sizes: Any) -> Arrays:
    """Compares the signals of pairs of examples; the batches of the configuration are in file order."""
    return network_experiments.similarities(tell, build(config), **sizes)


def lagged_similarities(tell: Tell, config: Config, **sizes: Any) -> Arrays:
    """Compares the signals of pairs of examples of two batches; the batches are in file order."""
    return network_experiments.lagged_similarities(tell, build(config), lags=LAGS, **sizes)


def plane(tell: Tell, first: Config, second: Config, **sizes: Any) -> Arrays:
    """Follows two paths of training in a plane."""
    return network_experiments.plane(tell, [build(first), build(second)], **sizes)


def open_loops(tell: Tell, condition: str, rate: float, runs: int, iterations: int) -> Arrays:
    """Runs the open loop of Figure 1B, run r from seed r; returns `angles` (runs, iterations + 1) of W_1 to B_1^T."""
    angles = []
    for run in range(runs):
        angles.append(open_loop.run(condition, np.random.default_rng(run), iterations, rate))
        tell((run + 1) / runs)
    return {"angles": np.array(angles)}


def products(tell: Tell, draws: int, parts: int, seed: int, width: float) -> Arrays:
    """Draws products of random matrices in several parts, for bins of `width` degrees (Figure S7).

    Returns `product_mean`, `product_variance`, `gated_mean`, `gated_variance` (bins, bins): of theta_3 by theta_1 and
    theta_2, in the linear case and behind the gates of a ReLU; `counts` (bins, bins); `shift` (2,): how much farther
    from 90 degrees the gates move theta_3, mean and standard error.
    """
    rng, samples = np.random.default_rng(seed), []
    for part in range(parts):
        samples.append(random_products.sample(draws // parts, rng))
        tell((part + 1) / parts)
    whole = random_products.Sample(*np.concatenate(samples, axis=1))
    shift = Spread(random_products.gated_shift(whole).tolist())
    arrays: Arrays = {"shift": np.array([shift.mean, shift.error])}
    for name in ("product", "gated"):
        found = random_products.heatmap(whole.first, whole.second, getattr(whole, name), width)
        arrays |= {f"{name}_mean": found.mean, f"{name}_variance": found.variance, "counts": found.counts}
    return arrays


def product_histograms(tell: Tell, draws: int, parts: int, seed: int, bins: int) -> Arrays:
    """Draws products of random matrices and makes histograms of theta_3 under several conditions (Note 1).

    Returns `edges` (bins + 1,), and for each CONDITION of `random_products.CONDITIONS`, `CONDITION/product` and
    `CONDITION/gated` (bins,): numbers of draws, without and with the gates of a ReLU; `CONDITION/test` (2,): t and p of
    the test that the gates leave the mean; `CONDITION/shift` (parts,): how much farther from 90 degrees the gates move
    theta_3, the mean of each part, NaN if none of its draws meets the condition.
    """
    rng, samples = np.random.default_rng(seed), []
    for part in range(parts):
        samples.append(random_products.sample(draws // parts, rng))
        tell((part + 1) / parts)
    whole = random_products.Sample(*np.concatenate(samples, axis=1))
    arrays: Arrays = {"edges": np.linspace(0, 180, bins + 1)}
    for condition in random_products.CONDITIONS:
        chosen = random_products.chosen(whole, condition)
        arrays[f"{condition}/test"] = np.array(random_products.gate_test(chosen))
        shifts = [random_products.gated_shift(random_products.chosen(part, condition)) for part in samples]
        arrays[f"{condition}/shift"] = np.array([Spread(each.tolist()).mean for each in shifts])
        for name in ("product", "gated"):
            arrays[f"{condition}/{name}"] = np.histogram(getattr(chosen, name), arrays["edges"])[0]
    return arrays


def transformations(tell: Tell, draws: int, units: int, seed: int) -> Arrays:
    """Draws independent transformations M and matrices B (Figure S1; `random_transformation`).

    Returns, (draws,) each, `eigenvalue_ratio`, the mean of M_sym's eigenvalues over their root mean square, and the
    numbers of `transformation.Effect`.
    """
    rng, rows = np.random.default_rng(seed), []
    for draw in range(draws):
        matrix, ratio = transformation.random_transformation(units, rng)
        effect = transformation.effect(rng.normal(size=(units, units)), matrix)._asdict()
        del effect["eigenvalues"]
        rows.append({"eigenvalue_ratio": ratio, **effect})
        tell((draw + 1) / draws)
    return columns(rows)
