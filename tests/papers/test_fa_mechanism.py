"""The figures of Rahmansetayesh et al.: computations on the digits against NumPy, and how they look."""

import csv
import dataclasses
import functools
import io
import json
import math
import re

import numpy as np
import pytest
from helpers import distance, exhaustive_unless
from lab import CONFIGS, computed_once, configuration_of, grey
from matplotlib.text import Text

from neural_alignment import config as configuration
from neural_alignment.analysis import random_products, signals
from neural_alignment.analysis.network_experiments import DISTURBANCES
from neural_alignment.analysis.similarity import angle
from neural_alignment.errors import ConfigError, RunError
from neural_alignment.jobs.pieces import Piece, Pieces, Result
from neural_alignment.jobs.plans import Cell, Run, unique
from neural_alignment.papers import commands, fa_mechanism
from neural_alignment.papers.fa_mechanism import compute, figures, normalisation, tidy
from neural_alignment.papers.fa_mechanism import runs as experiments
from neural_alignment.papers.fa_mechanism.network import build, build_direct
from neural_alignment.papers.registry import Source, find
from neural_alignment.reporting import csv_text, new_figure
from neural_alignment.training import setup

DIGITS = (
    "data={source: digits, shuffle: false}",
    "batch_size=100",
    "epochs=2",
    "optimization.forward.learning_rate=0.004",
)
"""As in tests/training/test_fa_mechanism.py: 14 batches, at a rate that moves the weights as far as MNIST's does."""

LAYERS = experiments.LAYERS


def loaded(condition, *overrides):
    return configuration.load(f"{CONFIGS}/fa_mechanism/{condition}.yaml", (*DIGITS, *overrides))


def nothing(part):
    assert 0 <= part <= 1


# The network.


def trained_by_the_library(config, steps):
    dataset = setup.load_data(config)
    model = setup.build_model(config, dataset.classes, dataset.input_shape, dataset.steps_per_epoch)
    setup.compile_model(model, config, dataset.classes, dataset.steps_per_epoch)
    model.fit(dataset.train().take(steps), verbose=0, shuffle=False)
    return [model.get_layer(name) for name in LAYERS]


def differences(network, layers):
    pairs = [*zip(network.kernels, [layer.kernel for layer in layers], strict=True)]
    pairs += zip(network.biases, [layer.bias for layer in layers], strict=True)
    return max(np.abs(mine - np.asarray(other)).max() for mine, other in pairs)


CONDITIONS = {
    "bp": (),
    "bp_trw": ("data.shuffle=true", "loss.label_smoothing=0.05", "data.replace_labels=0.5"),
    "bp_trw_wb": ("alignment={rule: feedback}",),  # As in Figure S8: a B that is not used.
}


@pytest.mark.parametrize("condition", exhaustive_unless(CONDITIONS, ("bp_trw", "bp_trw_wb")))
def test_the_network_is_the_one_that_the_library_trains(condition):
    config = loaded(condition, "runtime.precision=float64", *CONDITIONS[condition])
    network = build(config)
    steps = list(network.steps(16))
    assert [step.number for step in steps] == list(range(16))
    layers = trained_by_the_library(config, 15)  # The update of the last step that is yielded is not made.
    assert differences(network, layers) < 1e-9
    other = build(loaded("bp" if condition != "bp" else "bp_trw", "runtime.precision=float64"))
    for _ in other.steps(16):
        pass
    assert differences(other, layers) > 1e-4


def test_the_unused_backward_kernel_of_figure_s8_changes_nothing():
    plain, fed = (build(loaded("bp_trw_wb", *more)) for more in ((), ("alignment={rule: feedback}",)))
    for mine, other in zip([*plain.kernels, *plain.backward[1:]], [*fed.kernels, *fed.backward[1:]], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_step_tells_what_is_added_and_what_backpropagation_would_add():
    network = build(loaded("bp_trw"))
    first, second = network.steps(2)
    np.testing.assert_array_equal(second.kernels[2], first.kernels[2] + first.added[2])
    true = network.true_errors(first)
    np.testing.assert_array_equal(true[-1], first.errors[-1])
    gate = signals.TANH_RELU.derivative(first.passed.states[3])
    np.testing.assert_allclose(true[3], (first.error @ first.kernels[4].T) * gate, rtol=0, atol=1e-14)
    assert distance(true[3], first.errors[3]) > 0.1


def test_direct_feedback_goes_from_the_output_to_each_layer():
    network = build_direct(loaded("bp"))
    [step] = network.steps(1)
    for layer in network.hidden:
        gate = signals.TANH_RELU.derivative(step.passed.states[layer - 1])
        np.testing.assert_allclose(step.errors[layer - 1], (step.error @ network.feedback[layer]) * gate, atol=1e-14)
        assert network.aim(layer).shape == step.kernels[layer].shape
        np.testing.assert_array_equal(network.signals(step, layer).errors, step.errors[layer])
    assert 0.08 < np.std(network.feedback[1]) < 0.12
    again = build_direct(loaded("bp", "seed=1"))
    assert distance(again.feedback[1], network.feedback[1]) > 0.5


@pytest.mark.parametrize(("override", "part"), [
    ("optimization.forward.momentum=0.9", "optimization.forward: must be"),
    ("weight_decay=0.1", "weight_decay: must be 0.0 where signals are computed outside of the run; found 0.1"),
    ("model.output_activation=tanh", "must be one of relu, tanh_relu, the same; found tanh_relu and tanh"),
    ("alignment={rule: symmetric, self_: 1, decay: 1}", "alignment: rules must be feedback, or none, where signals"),
    ("runtime.precision=mixed_bfloat16", "runtime.precision: must be 'float32' or 'float64' where signals"),
])  # fmt: skip
def test_a_run_that_the_loop_would_not_follow_is_refused(override, part):
    with pytest.raises(ConfigError) as error:
        build(loaded("bp_trw", override))
    assert part in str(error.value)


# Computations.


def term_by_hand(steps, network, layer, order):
    """Equation 4 of the last of some steps, written out."""
    past, now = steps[-1 - order], steps[-1]
    prime = signals.TANH_RELU.derivative
    below = layer - 1
    gate = prime(now.passed.outputs[below] @ past.kernels[below] + now.biases[below])
    back = prime(past.passed.states[below]) * (past.errors[layer] @ network.backward[layer])
    inner = gate.T * (back.T @ past.passed.outputs[below] @ now.passed.outputs[below].T)
    return network.rate**2 * inner @ now.errors[layer]


def test_observed_angles_are_those_of_the_steps_across_gaps_in_the_history():
    config = loaded("bp_trw")
    arrays = compute.observed(nothing, config, iterations=40, every=7, moments=[5, 37], orders=8)
    network = build(config)
    steps = list(network.steps(40))
    assert arrays["iteration"].tolist() == [0, 7, 14, 21, 28, 35]
    assert arrays["moment"].tolist() == [5, 37]
    kernel, aim = steps[35].kernels[2], network.backward[2].T
    assert arrays["weight_angle"][-1, 1] == pytest.approx(angle(kernel, aim))
    assert arrays["norm"][-1, 2] == pytest.approx(np.linalg.norm(kernel))
    assert arrays["update_to_feedback"][-1, 1] == pytest.approx(angle(steps[35].added[2], aim))
    assert arrays["update_angle"][:, -1] == pytest.approx(0, abs=1e-6)  # The last layer learns by backpropagation.
    assert arrays["update_angle"][:, 0].min() > 10
    for row, moment, orders in ((0, 5, (1, 5)), (1, 37, (1, 8))):
        for order in orders:
            expected = angle(term_by_hand(steps[: moment + 1], network, 2, order), aim)
            assert arrays["term_angle"][row, 1, order - 1] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(arrays["term_angle"][0, :, 5:]).all()  # No iteration before the first.
    assert not np.isnan(arrays["term_angle"][1]).any()
    assert np.abs(arrays["term_angle"] - arrays["linear_angle"])[1].max() > 0.1
    # Lag 30 of iteration 37; there is no lag 60 yet.
    past, now = steps[7], steps[37]
    assert arrays["error_angle"][1, 1, 1] == pytest.approx(angle(past.errors[2], now.errors[2]))
    assert arrays["output_angle"][1, 1, 1] == pytest.approx(angle(past.passed.outputs[1], now.passed.outputs[1]))
    assert np.isnan(arrays["error_angle"][1, :, 2]).all()
    terms = (past.errors[2] @ now.errors[2].T) * (past.passed.outputs[1] @ now.passed.outputs[1].T)
    same = past.labels[:, None] == now.labels[None]
    assert arrays["within"][1, 1, 1] == pytest.approx(terms[same].sum() / terms.size)
    assert arrays["between"][1, 1, 1] == pytest.approx(terms[~same].sum() / terms.size)


def test_expansions_are_measured_part_by_part():
    config = loaded("bp_trw")
    arrays = compute.expanded(nothing, config, moments=[1, 12])
    network = build(config)
    steps = list(network.steps(13))
    assert arrays["update_norm"][1, 2] == pytest.approx(np.linalg.norm(steps[12].added[3]))
    aim = network.backward[3].T
    terms = sum(term_by_hand(steps, network, 3, order) for order in range(1, 13))
    zero = network.rate * (
        signals.TANH_RELU.value(steps[12].passed.outputs[2] @ steps[0].kernels[2] + steps[12].biases[2]).T
        @ steps[12].errors[3]
    )
    for part, value in (("alignment", terms), ("zero_degree", zero), ("remainder", steps[12].added[3] - terms - zero)):
        assert arrays[f"{part}_norm"][1, 2] == pytest.approx(np.linalg.norm(value), rel=1e-6), part
        assert arrays[f"{part}_angle"][1, 2] == pytest.approx(angle(value, aim), abs=1e-4), part


def test_disturbed_terms_move_another_kernel_and_leave_the_learning_intact():
    config = loaded("bp_trw")
    network = build(config)
    steps = list(network.steps(9))
    actual = [[angle(step.kernels[layer], network.backward[layer].T) for layer in network.hidden] for step in steps]
    found = {how: compute.disturbed(nothing, config, iterations=8, how=how) for how in DISTURBANCES}
    for how, arrays in found.items():
        assert arrays["weight_angle"] == pytest.approx(np.array(actual)), how
        assert arrays["disturbed_angle"].shape == (9, 4)
    linear = network_kernel = steps[0].kernels[2]
    for k in range(1, 8):
        for past in steps[:k]:
            matrix = past.errors[2].T @ past.passed.outputs[1] @ steps[k].passed.outputs[1].T @ steps[k].errors[2]
            linear = linear + network.rate**2 * network.backward[2].T @ matrix
    assert found["linear"]["disturbed_angle"][-1, 1] == pytest.approx(angle(linear, network.backward[2].T))
    # The same start: but for the new backward weights, which are compared with themselves.
    assert found["errors"]["disturbed_angle"][0, 1] == pytest.approx(angle(network_kernel, network.backward[2].T))
    assert found["feedback"]["disturbed_angle"][0, 1] != pytest.approx(actual[0][1], abs=1e-3)
    ends = {how: arrays["disturbed_angle"][-1] for how, arrays in found.items()}
    assert not np.allclose(ends["errors"], ends["linear"], atol=1e-2)
    # Undisturbed terms, the control.
    undisturbed = network_kernel
    for k in range(1, 8):
        undisturbed = undisturbed + sum(term_by_hand(steps[: k + 1], network, 2, order) for order in range(1, k + 1))
    assert found["none"]["disturbed_angle"][-1, 1] == pytest.approx(angle(undisturbed, network.backward[2].T))
    with pytest.raises(ValueError, match=r"must be one of none, linear, feedback, errors. Received 'noise'"):
        compute.disturbed(nothing, config, iterations=8, how="noise")


def test_single_disturbed_terms_are_measured():
    config = loaded("bp_trw")
    network = build(config)
    steps = list(network.steps(8))
    found = {
        how: compute.disturbed_terms(nothing, config, moments=[3, 7], orders=5, how=how)
        for how in ("none", "feedback", "errors")
    }
    for arrays in found.values():
        assert arrays["moment"].tolist() == [3, 7]
        assert np.isnan(arrays["term_angle"][0, :, 3:]).all()
        assert not np.isnan(arrays["term_angle"][1]).any()
    for row, moment, order in ((0, 3, 2), (1, 7, 5)):
        term = term_by_hand(steps[: moment + 1], network, 2, order)
        expected = angle(term, network.backward[2].T)
        assert found["none"]["term_angle"][row, 1, order - 1] == pytest.approx(expected, abs=1e-6)
        for how in ("feedback", "errors"):
            assert abs(found[how]["term_angle"][row, 1, order - 1] - expected) > 0.1, how


def test_taylor_polynomials_of_each_degree_are_measured():
    config = loaded("bp_trw")
    arrays = compute.taylor(nothing, config, moments=[1, 12], degree=3)
    expanded = compute.expanded(nothing, config, moments=[1, 12])
    assert arrays["terms_norm"].shape == arrays["remainders_norm"].shape == (2, 4, 3)
    assert arrays["terms_norm"][..., 0] == pytest.approx(expanded["alignment_norm"])
    assert arrays["terms_angle"][..., 0] == pytest.approx(expanded["alignment_angle"])
    assert arrays["remainders_norm"][..., 0] == pytest.approx(expanded["remainder_norm"])
    assert arrays["update_norm"] == pytest.approx(expanded["update_norm"])


NARROW = ("optimization.forward.learning_rate=0.004", "model.hidden=[50, 50, 50, 20]")


def test_direct_terms_have_four_parts_if_a_hidden_layer_is_smaller_than_the_output():
    square, narrow = (
        compute.direct_parts(nothing, loaded("bp", *overrides), moments=[2, 5]) for overrides in ((), NARROW)
    )
    assert square["rest_norm"] == pytest.approx(0, abs=1e-9)
    assert square["part_norm"][..., 0] == pytest.approx(1)
    assert square["part_norm"][..., 1:] == pytest.approx(0, abs=1e-9)
    # F_4 is its own factor; the rest of the other F is perpendicular to 20 of 50 directions.
    assert narrow["rest_norm"][:, 3] == pytest.approx(0, abs=1e-9)
    assert narrow["rest_norm"][:, :3] == pytest.approx(np.sqrt(0.6), abs=0.05)
    assert narrow["part_norm"][:, :2].min() > 0.05
    assert narrow["part_norm"][:, 2, 1] == pytest.approx(0, abs=1e-9)  # The error of layer 4 has no rest.
    assert narrow["part_norm"][:, 3, 1:] == pytest.approx(0, abs=1e-9)
    network = build_direct(loaded("bp", *NARROW))
    steps = list(network.steps(6))
    whole = 0.0
    for past in steps[:5]:
        gate = signals.TANH_RELU.derivative(steps[5].passed.outputs[1] @ past.kernels[1] + steps[5].biases[1])
        inner = gate.T * (past.errors[1].T @ past.passed.outputs[1] @ steps[5].passed.outputs[1].T)
        whole = whole + network.rate**2 * inner @ steps[5].errors[2]
    assert narrow["sum_angle"][1, 1] == pytest.approx(angle(whole, network.aim(2)), abs=1e-6)
    assert len(compute.observed(nothing, loaded("bp", *NARROW), direct=True, **OBSERVED)["eigenvalues"]) == 1


OBSERVED = {"iterations": 10, "every": 3, "moments": [8], "orders": 4}


def test_lagged_similarities_are_those_of_two_batches():
    config = loaded("bp_trw")
    arrays = compute.lagged_similarities(nothing, config, moments=[61, 64], bins=10)
    network = build(config)
    steps = list(network.steps(65))
    past, now = steps[34], steps[64]
    pairs = past.errors[2] @ now.errors[2].T
    same = past.labels[:, None] == now.labels[None]
    well = [np.argsort(np.linalg.norm(step.error, axis=1), kind="stable")[:60] for step in (past, now)]
    good = np.zeros_like(same)
    good[np.ix_(*well)] = True
    assert arrays["64/30/error/2/within/well/mean"] == pytest.approx(pairs[same & good].mean())
    assert arrays["64/30/error/2/between/poor/mean"] == pytest.approx(pairs[~same & ~good].mean())
    past, now = steps[60], steps[61]
    pairs = past.passed.outputs[2] @ now.passed.outputs[2].T
    same = past.labels[:, None] == now.labels[None]
    assert arrays["61/1/output/3/within/mean"] == pytest.approx(pairs[same].mean())
    edges = arrays["61/1/output/3/edges"]
    assert arrays["61/1/output/3/between"].tolist() == np.histogram(pairs[~same], edges)[0].tolist()


def test_histograms_of_products_have_the_draws_of_their_conditions():
    arrays = compute.product_histograms(nothing, draws=6000, parts=2, seed=1, bins=18)
    assert arrays["all/product"].sum() == arrays["all/gated"].sum() == 6000
    for condition in ("both_45", "one_0", "one_90"):
        assert 5 < arrays[f"{condition}/product"].sum() < 60
        _, p = arrays[f"{condition}/test"]
        assert 0 <= p <= 1
        assert arrays[f"{condition}/shift"].shape == (2,)
    rng = np.random.default_rng(1)
    whole, condition = [random_products.sample(3000, rng) for _ in range(2)], "both_45"
    chosen = [random_products.chosen(part, condition) for part in whole]
    away = [np.mean(part.product - part.gated) for part in chosen]  # Angles below 90 degrees.
    np.testing.assert_allclose(arrays[f"{condition}/shift"], away)


def test_similarities_are_those_of_all_pairs():
    config = loaded("bp_trw")
    arrays = compute.similarities(nothing, config, iterations=14, examples=150, shown=4, bins=10)
    network = build(config)
    inputs, labels = network.examples(150)
    step = network.look(inputs, labels)
    pairs = step.errors[1] @ step.errors[1].T
    same = labels[:, None] == labels[None]
    assert arrays["first/error/1/within/mean"] == pytest.approx(pairs[same].mean())
    assert arrays["first/error/1/between/mean"] == pytest.approx(pairs[~same].mean())
    edges = arrays["first/output/1/edges"]
    expected = np.histogram((inputs @ inputs.T)[same], edges)[0]
    assert arrays["first/output/1/within"].tolist() == expected.tolist()
    for _ in network.steps(15):
        pass
    step = network.look(inputs, labels)
    norms = np.linalg.norm(step.error, axis=1)
    assert arrays["error_norm"][-1] == pytest.approx(norms[:4])
    well = norms <= np.sort(norms)[89]
    good = same & well[:, None] & well[None]
    assert arrays["last/error/2/within/well/mean"] == pytest.approx((step.errors[2] @ step.errors[2].T)[good].mean())


def test_two_paths_begin_at_one_point_of_their_plane():
    arrays = compute.plane(
        nothing, loaded("bp"), loaded("bp_trw"), iterations=12, every=2, side=3, examples=60, arrows=3
    )
    assert arrays["paths"].shape == (2, 7, 2)
    assert arrays["paths"][0, 0] == pytest.approx(arrays["paths"][1, 0])
    assert distance(arrays["paths"][0, -1], arrays["paths"][1, -1]) > 0.1
    assert 0.5 < arrays["explained"].sum() <= 1 + 1e-9
    assert arrays["heights"].shape == (3, 3)
    assert arrays["places"][0] == pytest.approx(arrays["paths"][1, 0])
    # From one start the two rules point elsewhere.
    assert distance(arrays["true"][0], arrays["feedback_directions"][0]) > 0.05


def test_random_transformations_turn_b_as_their_parts_say():
    arrays = compute.transformations(nothing, 40, 30, seed=1)
    assert np.abs(arrays["skew_angle"] - 90).max() < 1e-9
    expected = np.cos(np.deg2rad(arrays["symmetric_angle"])) / np.sqrt(1 + arrays["skew_ratio"] ** 2)
    assert np.cos(np.deg2rad(arrays["angle"])) == pytest.approx(expected, abs=0.05)
    error = np.cos(np.deg2rad(arrays["symmetric_angle"])) - arrays["eigenvalue_ratio"]
    assert np.abs(error).max() < 0.25
    assert np.corrcoef(arrays["eigenvalue_ratio"], np.cos(np.deg2rad(arrays["symmetric_angle"])))[0, 1] > 0.98


# Pieces.


def piece(iterations=3, **changes):
    arguments = {"condition": "neither", "rate": 0.002, "runs": 2, "iterations": iterations}
    return dataclasses.replace(Piece("loop/neither", compute.open_loops, arguments=arguments), **changes)


def test_a_piece_is_kept_and_read_and_the_result_of_another_computation_is_refused(tmp_path):
    folder = str(tmp_path / "runs")
    assert piece().is_waiting(folder, CONFIGS)
    piece().compute_and_keep(folder, CONFIGS)
    assert sorted(path.name for path in (tmp_path / "runs" / "loop").iterdir()) == ["neither.npz"]
    assert not piece().is_waiting(folder, CONFIGS)
    found = piece().read(folder, CONFIGS)
    np.testing.assert_array_equal(found.arrays["angles"], piece().compute(nothing, **piece().arguments)["angles"])
    assert (list(found.arrays), found.configs, found.seed) == (["angles"], [], 0)
    with pytest.raises(RunError, match=r"neither.npz: .*arguments.iterations was 3, is now 4; remove it, or choose"):
        piece(4).is_waiting(folder, CONFIGS)
    with pytest.raises(RunError, match=r"another computation: compute was .*open_loops.* is now .*products"):
        piece(compute=compute.products).is_waiting(folder, CONFIGS)
    with pytest.raises(RunError, match="must be the name of a run below"):
        piece(name="../elsewhere").is_waiting(folder, CONFIGS)


def test_a_piece_knows_the_configuration_it_starts_from(tmp_path):
    def started(*overrides):
        starts = (Run("fa_mechanism/bp_trw.yaml", "", (*DIGITS, *overrides)),)
        return Piece("expanded/seed0", compute.expanded, starts, {"moments": [1]})

    folder = str(tmp_path)
    started("seed=3").compute_and_keep(folder, CONFIGS)
    assert started("seed=3").read(folder, CONFIGS).seed == 3
    assert not started("seed=3", "runtime.steps_per_execution=5").is_waiting(folder, CONFIGS)  # Where, not what.
    with pytest.raises(RunError, match=r"configs.0.optimization.forward.learning_rate was 0.004, is now 0.01"):
        started("seed=3", "optimization.forward.learning_rate=0.01").read(folder, CONFIGS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY"])
def test_a_damaged_piece_is_one_line(tmp_path, content):
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "neither.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"neither.npz: is damaged: .*; remove it, and it is computed again") as error:
        piece().read(str(tmp_path), CONFIGS)
    assert "\n" not in str(error.value)


def test_pickled_objects_are_not_read(tmp_path):
    (tmp_path / "loop").mkdir()
    np.savez(tmp_path / "loop" / "neither.npz", angles=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RunError, match="is damaged"):
        piece().read(str(tmp_path), CONFIGS)


def test_a_piece_tells_how_far_it_is_and_a_stopped_one_leaves_nothing_half_done(tmp_path):
    seen = []

    def half(tell):
        tell(0.25)
        seen.append(piece().job(str(tmp_path), CONFIGS).progress())
        raise KeyboardInterrupt

    stopped = piece(compute=half, arguments={})
    with pytest.raises(KeyboardInterrupt):
        stopped.compute_and_keep(str(tmp_path), CONFIGS)
    assert seen == [0.0]  # Noted every two seconds, and at the start.
    (tmp_path / "loop" / "neither.progress").write_text("0.25")
    assert piece().job(str(tmp_path), CONFIGS).progress() == 0.25
    assert piece().is_waiting(str(tmp_path), CONFIGS)
    piece().compute_and_keep(str(tmp_path), CONFIGS)
    assert sorted(path.name for path in (tmp_path / "loop").iterdir()) == ["neither.npz"]


# The plan.


def all_cells():
    return [cell for item in fa_mechanism.FIGURES for cell in item.cells["lab"]]


def test_every_run_and_piece_of_the_plan_has_its_configuration():
    runs = unique(all_cells())
    assert len({run.name for run in runs}) == len(runs)
    seen = {}
    for cell in all_cells():
        for each in cell.runs():
            assert seen.setdefault(each.name, each) == each  # One name, one computation.
            starts = each.starts if isinstance(each, Piece) else [each]
            for start in starts:
                start.load(CONFIGS)


def test_what_is_claimed_has_its_seeds_and_its_epochs():
    cells = {cell.labels["condition"]: cell for cell in experiments.trained()}
    assert set(cells) == {"bp", "bp_w", "bp_w_slow", "bp_trw", "bp_trw_w", "bp_trw_b", "bp_trw_wb"}
    for name, cell in cells.items():
        assert len(cell.seeds) == 10
        config = configuration.load(f"{CONFIGS}/{cell.config}", cell.overrides)
        assert (config.epochs, config.evaluation.every_epochs) == (100, 1)
        norm = config.model.weight_norm
        normalised = experiments.CONDITIONS[name].normalised
        kernels = {"none": None, "w": "forward", "b": "backward", "wb": "both"}[normalised]
        assert (norm and norm.kernels) == kernels, name
        assert bool(config.rules) == (cell.labels["rule"] == "bp_trw")
        if name == "bp_w_slow":  # As in Figure 7E.
            assert (config.optimization.forward.learning_rate, norm.gamma) == (3e-4, 0.6)
    for cells, rate, epochs in (
        (experiments.relabelled(), 5e-4, 100),
        (experiments.relabelled_slowly(), 4e-4, 10),
    ):
        assert [cell.labels["fraction"] for cell in cells] == [0.0, 0.5, 1.0]
        for cell in cells:
            config = configuration.load(f"{CONFIGS}/{cell.config}", cell.overrides)
            assert config.optimization.forward.learning_rate == rate
            assert (config.epochs, config.data.replace_labels or 0, len(cell.seeds)) == (
                epochs, cell.labels["fraction"], 3
            )  # fmt: skip
    for cell in experiments.sensitivity():
        config = configuration.load(f"{CONFIGS}/{cell.config}", cell.overrides)
        assert config.optimization.forward.learning_rate == cell.labels["rate"]
        assert config.loss.label_smoothing == cell.labels["label_smoothing"]
        assert (config.model.weight_norm and config.model.weight_norm.gamma) == cell.labels["gamma"]


# Figures.


SIZES = {
    compute.observed: {"iterations": 70, "every": 7, "moments": [20, 64, 66], "orders": 62},
    compute.expanded: {"moments": [1, 5]},
    compute.disturbed: {"iterations": 6},
    compute.disturbed_terms: {"moments": [20, 64], "orders": 62},
    compute.taylor: {"moments": [1, 5]},
    compute.direct_parts: {"moments": [2, 5]},
    compute.lagged_similarities: {"moments": [61, 64], "bins": 12},
    compute.product_histograms: {"draws": 400, "parts": 2, "bins": 18},
    compute.similarities: {"iterations": 14, "examples": 120, "shown": 5, "bins": 12},
    compute.plane: {"iterations": 12, "every": 3, "side": 4, "examples": 50, "arrows": 3},
    compute.open_loops: {"runs": 2, "iterations": 30},
    compute.products: {"draws": 400, "parts": 2, "width": 45.0},
    compute.transformations: {"draws": 30, "units": 10},
}
"""Every kind of piece at a size for tests."""


def small(cell):
    """Returns a cell at that size, on the digits, with two seeds, of which one is computed; runs stay as they are."""
    if isinstance(cell, Cell):
        return cell
    pieces = []
    seeds = 2 if "condition" in cell.labels else 1
    compute = computed_once(cell.pieces[0].compute)
    for each in cell.pieces[:seeds]:
        starts = tuple(dataclasses.replace(run, overrides=(*DIGITS, *run.overrides)) for run in each.starts)
        arguments = {**each.arguments, **SIZES[each.compute]}
        pieces.append(dataclasses.replace(each, compute=compute, starts=starts, arguments=arguments))
    return Pieces(cell.labels, tuple(pieces))


def write_run(folder, cell, seed, error):
    """Writes a run directory as `train` leaves it, with two evaluations."""
    path = folder / cell.name / f"seed{seed}"
    path.mkdir(parents=True)
    config = configuration_of(cell.config, tuple(cell.overrides)).model_copy(update={"seed": seed})
    (path / "config.yaml").write_text(configuration.dump(config))
    (path / "status.json").write_text(json.dumps({"state": "finished", "versions": {}}))
    rows = [
        {"step": 60 * epoch, "epoch": epoch, "seconds": 9, "top1": "" if epoch == 0 else 1 - error / 100}
        for epoch in (0, config.epochs - 1, config.epochs)
    ]
    for number, row in enumerate(rows if config.rules else ()):  # Backpropagation has no such columns.
        row |= {f"weight_angle/{name}": 90 - 10 * number for name in LAYERS[1:]}
        row |= {f"pseudogradient_angle/{name}": 60 - number for name in LAYERS}
    with open(path / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All pieces at their small size, and runs whose results are known: error 4 + seed."""
    place = tmp_path_factory.mktemp("fa")
    cells = {cell.name if isinstance(cell, Cell) else cell.pieces[0].name: cell for cell in all_cells()}
    for cell in cells.values():
        if isinstance(cell, Cell):
            for seed in cell.seeds:
                write_run(place, cell, seed, 4 + seed)
            continue
        for each in small(cell).pieces:
            each.compute_and_keep(str(place), CONFIGS)
    return place


@functools.cache
def made(name, folder):
    item = find(commands.ITEMS, "figure", name)
    cells = [small(cell) for cell in item.cells["lab"]]
    return item.make(Source("lab", str(folder), CONFIGS, str(folder / "results"), cells))


FIGURES = [item.name for item in fa_mechanism.FIGURES]

DRAWN = [f"fa_mechanism/{name}" for name in ("2", "4_terms", "7", "note_1")]
"""Figures that `make test` draws; `make test-exhaustive` draws all of them."""


@pytest.mark.parametrize("name", exhaustive_unless(FIGURES, DRAWN))
def test_figures_are_grey(name, folder):
    assert grey(made(name, folder).figure)


@pytest.mark.parametrize("name", FIGURES)
def test_the_axes_of_figures_are_named_and_their_rows_known(name, folder):
    product = made(name, folder)
    assert product.rows
    assert set(product.columns) >= {key for row in product.rows for key in row}
    axes = [axis for axis in product.figure.axes if axis.get_label() != "<colorbar>" and axis.axison]
    assert all(axis.get_xlabel() or not axis.get_subplotspec().is_last_row() for axis in axes)
    assert all(axis.get_ylabel() or not axis.get_subplotspec().is_first_col() for axis in axes)
    numbers = [value for row in product.rows for value in row.values() if isinstance(value, float)]
    assert not any(math.isinf(value) for value in numbers)
    assert "nan" not in product.text
    rows = list(csv.DictReader(io.StringIO(csv_text(product.columns, product.rows))))
    assert len(rows) == len(product.rows)


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_of_a_figure_is_a_name_of_the_code(name, folder):
    """Subscripts are set as formulas; `M_sym` and `f^(2)` would be raw text."""
    texts = [text.get_text() for text in made(name, folder).figure.findobj(Text)]
    assert not [text for text in texts if re.search(r"_|\^", re.sub(r"\$[^$]*\$", "", text))]


def test_each_path_has_the_look_that_the_key_gives_to_its_condition(folder):
    figure = made("fa_mechanism/7_paths", folder).figure
    [legend] = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    shown = zip(labels, legend.get_lines(), strict=True)
    looks = {label: (line.get_linestyle(), line.get_marker()) for label, line in shown}
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert [axis.get_title() for axis in panels] == [
        "(C) BP against BP-TRW", "(F) BP-TRW against BP-TRW, W and B normalised",
    ]  # fmt: skip
    for axis, pair in zip(panels, normalisation.PATHS.values(), strict=True):
        paths = [line for line in axis.lines if len(line.get_xdata()) == 5]
        names = [experiments.CONDITIONS[condition].style.label for condition in pair]
        assert [line.get_label() for line in paths] == names
        assert [(line.get_linestyle(), line.get_marker()) for line in paths] == [looks[name] for name in names]
        assert all(line.get_markevery() == [-1] for line in paths)
    assert len({looks[experiments.CONDITIONS[name].style.label] for name in ("bp", "bp_trw", "bp_trw_wb")}) == 3


@pytest.mark.parametrize("name", FIGURES)
def test_notes_of_figures_give_the_number_of_seeds(name, folder):
    note = made(name, folder).figure.get_supxlabel()
    assert "over seeds" not in note
    assert all(re.search(r"\d (seeds|runs)", part) for part in re.findall(r"(?:means|medians) over [^.]*", note))


def test_different_numbers_of_seeds_are_given_as_a_range():
    assert figures.counted([0, 1, 2]) == "3 seeds"
    assert figures.counted({0, 1}, range(5), [0, 1, 2]) == "2 to 5 seeds"


@pytest.mark.parametrize("name", ["6_similarity", "S5", "S5_lags"])
def test_histograms_of_similarities_say_which_pairs_they_count(name, folder):
    figure = made(f"fa_mechanism/{name}", folder).figure
    assert "from the 0.5 % to the 99.5 % quantile" in figure.get_supxlabel()
    assert "means of all pairs" in figure.get_supxlabel()
    for axis in figure.axes:
        assert "pairs in the bins" in axis.get_ylabel() or not axis.get_subplotspec().is_first_col()
        assert any(text.get_text() for text in axis.get_yticklabels())


def test_variances_that_are_compared_have_one_scale(folder):
    images = [image for axis in made("fa_mechanism/S7", folder).figure.axes for image in axis.images]
    ranges = {}
    for image in images:
        ranges.setdefault(image.axes.get_title().partition(": ")[2], []).append((image.get_array(), image.get_clim()))
    assert {*ranges} == {"mean", "variance"}
    for (first, limits), (second, others) in ranges.values():
        assert limits == others == (min(first.min(), second.min()), max(first.max(), second.max()))


def test_the_curve_of_figure_s1_is_smooth_at_its_ends(folder):
    [curve] = [line for line in made("fa_mechanism/S1", folder).figure.axes[0].lines if line.get_label() == "arccos"]
    assert curve.get_ydata() == pytest.approx(np.degrees(np.arccos(curve.get_xdata())), abs=1e-4)
    assert np.abs(np.diff(curve.get_ydata())).max() < 2
    assert (curve.get_ydata().min(), curve.get_ydata().max()) == (0, 180)


def test_terms_at_all_moments_of_the_lab_are_drawn_in_greys_that_can_be_told_apart(monkeypatch):
    """The folder of the other tests has fewer moments."""
    moments = experiments.MOMENTS
    angles = np.linspace(70, 90, 5 * len(moments)).reshape(len(moments), 1, 5)
    results = [Result([], {"moment": np.array(moments), "term_angle": angles})]
    monkeypatch.setattr(tidy, "HIDDEN", [1])
    found = tidy.terms(results, moments)
    assert len(found) == 5 * len(moments)
    axis = new_figure(4, 4).subplots()
    [panel] = figures.term_panels(found)
    for mark in panel.marks:
        mark(axis)
    shades = [float(line.get_color()) for line in axis.get_lines()[: len(moments)]]
    assert shades == sorted(set(shades))
    assert shades[0] >= 0
    assert shades[-1] <= 0.75


def test_the_first_value_of_a_curve_of_weights_is_that_before_training_and_updates_are_averaged():
    """A turn that begins at a moving average would be too small."""
    angles = np.linspace(90, 70, 30)[:, None] * np.ones(5)
    arrays = {"iteration": 7 * np.arange(30), "weight_angle": angles[:, 1:], "update_angle": angles, "norm": angles}
    results = [Result([], arrays)]

    def first(measure):
        return [row["value"] for row in tidy.curves(results, measure, 10) if row["epoch"] == 0]

    assert first("weight_angle") == [90] * 4
    assert first("norm") == [90] * 5
    assert first("update_angle") == pytest.approx([angles[:5, 0].mean()] * 5)


@pytest.mark.parametrize("name", ["2_training", "7"])
def test_figures_with_moving_averages_say_so(name, folder):
    note = made(f"fa_mechanism/{name}", folder).figure.get_supxlabel() or ""
    titles = [legend.get_title().get_text() for legend in made(f"fa_mechanism/{name}", folder).figure.legends]
    assert "moving averages over 63 iterations" in " ".join([note, *titles])


@pytest.mark.parametrize("name", ["3", "S6", "4_terms"])
def test_all_rows_of_the_text_are_in_the_file(name, folder):
    product = made(f"fa_mechanism/{name}", folder)
    if name == "4_terms":
        assert {row["moment"] for row in product.rows} == {20, 64}
        assert {f"| {moment} |" in product.text for moment in (20, 64)} == {True}
    else:
        assert {row["part"] for row in product.rows} == {"alignment", "zero_degree", "remainder"}
        assert {row["measure"] for row in product.rows} == {tidy.NORM, tidy.ANGLE}


def test_every_disturbed_kernel_is_beside_its_control_up_to_the_end_of_the_control(folder):
    long = {"weight_angle": np.full((1801, 4), 90.0), "disturbed_angle": np.full((1801, 4), 70.0)}
    short = {name: angles[:121] for name, angles in long.items()}
    pieces = {"linear": long, "feedback": short, "none": short}

    class Stored(Source):
        def results(self, **labels):
            found = [({"how": how}, [Result([], arrays)]) for how, arrays in pieces.items()]
            return [each for each in found if labels.items() <= each[0].items()]

    product = figures.disturbed(Stored("lab", "", "", ""))
    for how, last in (("linear", 1800), ("feedback", 120)):
        moments = {
            kernel: [row["iteration"] for row in product.rows if (row["disturbance"], row["kernel"]) == (how, kernel)]
            for kernel in ("weight", "disturbed", "control")
        }
        assert max(moments["control"]) == 120
        assert max(moments["weight"]) == max(moments["disturbed"]) == last
        assert 120 in moments["disturbed"]
    assert "| (A) without nonlinearity | 1 | moved by undisturbed terms | 120 | 1 |" in product.text


def test_the_result_files_have_the_columns_that_were_agreed_on(folder):
    errors = made("fa_mechanism/7_errors", folder)
    columns = ["condition", "rule", "normalised", "gamma", "rate", "seed", "test_error_percent", "highest", "diverged"]
    assert list(errors.columns) == columns
    assert len(errors.rows) == 70
    assert {(row["rule"], row["normalised"], row["gamma"], row["rate"]) for row in errors.rows} == {
        ("bp", "none", None, 4e-4), ("bp", "w", 1, 4e-4), ("bp", "w", 0.6, 3e-4), ("bp_trw", "none", None, 5e-4),
        ("bp_trw", "w", 1, 5e-4), ("bp_trw", "b", 1, 5e-4), ("bp_trw", "wb", 1, 5e-4),
    }  # fmt: skip
    for row in errors.rows:
        assert row["test_error_percent"] == pytest.approx(4 + row["seed"])
    assert "| BP-TRW | 10 | 8.50 ± 3.03 | 7.84 ± 0.27 | 0 of 10 | 8.5 % |" in errors.text  # A median of maxima.
    loop = made("fa_mechanism/1b", folder)
    assert list(loop.columns) == ["condition", "rate", "run", "iteration", "angle_degrees"]
    assert {row["iteration"] for row in loop.rows} == {0, 20, 30}  # The last one is among them.


def test_the_result_files_have_a_line_per_seed(folder):
    rows = made("fa_mechanism/7E", folder).rows
    errors = {(row["condition"], row["seed"], row["epoch"]): row["test_error_percent"] for row in rows}
    assert len(errors) == len(rows) == 7 * 10 * 2
    assert errors["bp_w", 3, 100] == pytest.approx(7)
    expected = np.load(folder / "observed" / "bp_trw" / "seed1.npz")["term_angle"]
    terms = made("fa_mechanism/2", folder).rows
    found = [
        row["value"]
        for row in terms
        if (row["shuffled"], row["layer"], row["moment"], row["order"], row["seed"]) == (0, 2, 66, 5, 1)
    ]
    assert found == pytest.approx([expected[-1, 1, 4]])
    assert {row["seed"] for row in terms} == {0, 1}


@pytest.mark.parametrize(("name", "said"), [
    ("fa_mechanism/7_errors", "| BP | 2, 1 diverged | 47.50 ± 60.10 |"),
    ("fa_mechanism/S8", "1 diverged and count as chance."),
])  # fmt: skip
def test_runs_that_diverged_count_as_chance_and_are_counted(name, said, tmp_path):
    item = find(commands.ITEMS, "figure", name)
    for seed in (0, 1):
        write_run(tmp_path, item.cells["lab"][0], seed, 5)
    status = tmp_path / item.cells["lab"][0].name / "seed1" / "status.json"
    status.write_text('{"state": "diverged", "versions": {}}')
    product = item.make(Source("lab", str(tmp_path), CONFIGS, str(tmp_path / "results"), item.cells["lab"]))
    assert said in product.text
    assert [row["test_error_percent"] for row in product.rows if row["diverged"]] == [90]


def test_figure_s8_has_a_line_per_run(folder):
    product = made("fa_mechanism/S8", folder)
    assert len(product.rows) == sum(len(cell.seeds) for cell in experiments.sensitivity())
    row = next(row for row in product.rows if row["rule"] == "bp_trw" and row["seed"] == 2)
    assert row["test_error_percent"] == pytest.approx(6)
    assert row["update_angle_0"] == 58
    lines = [line for line in product.text.splitlines() if line.startswith("| bp |")]
    assert len(lines) == 12
    assert all(line.endswith("| 5.00 (4.00 to 6.00) | - | - | - | - |") for line in lines)


def test_figure_s8_without_runs_says_so(tmp_path):
    product = made("fa_mechanism/S8", tmp_path)
    assert product.rows == []
    assert product.text.startswith("0 runs of - epochs (the paper: 100), ")


def test_figures_of_one_size_need_no_option():
    item = find(commands.ITEMS, "figure", "fa_mechanism/1b")
    assert item.profile(lab=False) == item.profile(lab=True) == "lab"
    assert find(commands.ITEMS, "figure", "two_routes/3").profile(lab=False) == "paper"
    text = commands.listing("figure", 2)
    assert "| fa_mechanism/1b | open loop: alignment under imposed signals | 6 pieces, " in text
    assert "| fa_mechanism/S8 | sensitivity to rate, norm and label smoothing | 72 runs, " in text
