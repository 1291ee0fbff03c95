"""The benchmarks: stored samples, counted operations, and a run of each at tiny sizes."""

import functools
import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import assert_close, assert_differs, exhaustive_unless, table_in

from benchmarks import (
    common,
    contenders,
    examples,
    growth,
    input_pipeline,
    memory,
    moments,
    networks,
    peer,
    replicas,
    run,
    step_time,
    steps,
)
from neural_alignment.alignments import RULES

FACTS = {"machine": {"processor": "x"}, "versions": {}, "sizes": {"case": {"rounds": 3}}, "source": "0"}


def clock(times):
    """Returns a step that takes each of `times` in turn."""
    times = iter(times)
    return lambda: {"seconds": next(times)}


# Raw samples.


def test_a_round_runs_one_step_of_each_contender_and_rounds_begin_with_different_ones(tmp_path):
    order = []
    steps = {name: lambda name=name: order.append(name) or {"seconds": 1.0} for name in "abc"}
    common.interleave(common.Samples(tmp_path, "x", FACTS), "case", steps, rounds=3, warm_up=0)
    assert order == list("abcbcacab")


def test_ratios_within_a_round_are_independent_of_the_drift_of_the_machine(tmp_path):
    samples = common.Samples(tmp_path, "x", FACTS)
    drift = np.array([1.0, 8.0, 2.0, 16.0, 4.0])
    steps = {"base": clock(drift), "rule": clock(1.5 * drift)}
    common.interleave(samples, "case", steps, rounds=5, warm_up=0)
    assert_close(samples.ratios("case", "rule", "base"), np.full(5, 1.5))
    shifted = np.array(samples.values("case", "rule")) / np.roll(samples.values("case", "base"), 1)
    assert_differs(shifted, np.full(5, 1.5))


def test_an_interrupted_run_keeps_complete_rounds_and_continues_after_them(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    first = common.Samples(tmp_path, "x", FACTS)
    first.add("case", {"a": {"seconds": 1.0}, "b": {"seconds": 2.0}})
    with pytest.raises(KeyboardInterrupt):
        common.interleave(first, "case", {"a": clock([3.0]), "b": stopped}, rounds=2, warm_up=0)
    again = common.Samples(tmp_path, "x", FACTS)
    assert again.rounds("case") == 1
    common.interleave(again, "case", {"a": clock([5.0, 7.0]), "b": clock([6.0, 8.0])}, rounds=3, warm_up=0)
    assert common.Samples(tmp_path, "x", FACTS).values("case", "a") == [1.0, 5.0, 7.0]
    assert again.values("case", "b") == [2.0, 6.0, 8.0]


@pytest.mark.parametrize("cut", [1, 3, 7, 20])
def test_an_incomplete_last_line_only_loses_its_round(tmp_path, cut):
    samples = common.Samples(tmp_path, "x", FACTS)
    for value in (1.0, 2.0):
        samples.add("case", {"a": {"seconds": value}, "b": {"seconds": 100 * value}})
    path = tmp_path / "x.csv"
    path.write_bytes(path.read_bytes()[:-cut])  # Of 200.0 a cut would leave 20, a number like any other.
    again = common.Samples(tmp_path, "x", FACTS)
    assert again.values("case", "a") == [1.0]
    again.add("case", {"a": {"seconds": 3.0}, "b": {"seconds": 300.0}})
    assert common.Samples(tmp_path, "x").values("case", "b") == [100.0, 300.0]


@pytest.mark.parametrize("changed", ["machine", "versions", "sizes", "source"])
def test_samples_of_other_conditions_are_replaced(tmp_path, changed):
    common.Samples(tmp_path, "x", FACTS).add("case", {"a": {"seconds": 1.0}})
    assert common.Samples(tmp_path, "x", FACTS).rounds("case") == 1
    assert common.Samples(tmp_path, "x", {**FACTS, changed: "another"}).rounds("case") == 0


def test_samples_of_other_conditions_stay_until_there_is_a_new_one(tmp_path):
    common.Samples(tmp_path, "x", FACTS).add("case", {"a": {"seconds": 1.0}})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    later = common.Samples(tmp_path, "x", {**FACTS, "source": "1"})
    later.note(missing="no images")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    later.note(missing=None)
    later.add("case", {"a": {"seconds": 2.0}})
    assert common.Samples(tmp_path, "x").facts == {**FACTS, "source": "1", "missing": None}
    assert common.Samples(tmp_path, "x").values("case", "a") == [2.0]


def test_the_date_and_the_load_are_those_of_the_last_sample(tmp_path):
    common.Samples(tmp_path, "x", FACTS, {"date": "2026-01-01", "load": 0.1}).add("case", {"a": {"seconds": 1.0}})
    common.Samples(tmp_path, "x", FACTS, {"date": "2026-01-02", "load": 0.2}).note(missing=None)
    assert common.Samples(tmp_path, "x").facts["date"] == "2026-01-01"  # The later one added none.
    common.Samples(tmp_path, "x", FACTS, {"date": "2026-01-03", "load": 0.3}).add("case", {"a": {"seconds": 2.0}})
    stored = common.Samples(tmp_path, "x")
    assert (stored.facts["date"], stored.facts["load"], stored.values("case", "a")) == ("2026-01-03", 0.3, [1.0, 2.0])


def test_quartiles_are_those_of_numpy():
    values = [5.0, 1.0, 9.0, 2.0, 7.0, 3.0]
    assert_close(common.middle(values), np.quantile(values, [0.5, 0.25, 0.75]))


@pytest.mark.parametrize(
    ("check", "held"),
    [
        (common.Check("x", 1.08, 1.08), True),
        (common.Check("x", 1.09, 1.08), False),
        (common.Check("x", 1.09, 1.08, at_least=True), True),
        (common.Check("x", 1.07, 1.08, at_least=True), False),
        (common.Check("x", math.nan, 1.08), False),
    ],
)
def test_a_check_compares_a_value_with_its_limit(check, held):
    assert check.held is held


# Counted operations.


def test_every_rule_of_the_first_paper_is_a_contender():
    # Align-prop is feedback by other backward kernels: a step of it is one of `feedback`.
    expected = {"feedback", "sign_symmetry", "weight_mirror", "information", "symmetric", "activation", "kolen_pollack"}
    assert {contender.rule.rule for contender in contenders.RULES.values()} == expected | {"frsf", "brsf", "pfa"}
    assert all(name in contenders.RULES for name in (*growth.RULES, *memory.LAYERWISE, *peer.COMPARED))


@pytest.mark.parametrize("name", contenders.RULES)
def test_a_rule_takes_no_more_products_than_its_floor_counts(name):
    from neural_alignment.training.costs import regulariser_products

    contender = contenders.RULES[name]
    assert regulariser_products(contender.rule) == contender.products


def test_the_floor_counts_multiplications():
    from neural_alignment.models import fc
    from neural_alignment.training.costs import layer_costs

    costs = layer_costs(fc([4], 2, (3,)))
    first, second = 3 * 4, 4 * 2  # multiplications of a product, an example
    backpropagation = (first + second) + (first + second) + second  # outputs; kernels' gradients; the error sent back
    assert contenders.floor(costs, 2) == (backpropagation + 2 * (first + second)) / backpropagation
    assert contenders.floor(costs, 2, "R") == 3 * (first + second) / backpropagation
    assert contenders.floor(costs, 2, "J") == contenders.floor(costs, 0) == 1.0
    assert contenders.floor(costs, 2) != 5 / 3  # with the error of the first layer, which is unused
    costs = layer_costs(fc([4], 2, (3,), alignment=contenders.ProductFeedback(decay=0.1, expansion=5)))
    weights = 3 * 20 * 4 + 2 * (4 * 10 * 2)  # The B of the first layer carries no error.
    assert contenders.floor(costs, 0, batch=6) == pytest.approx((backpropagation + weights / 6) / backpropagation)
    assert contenders.floor(costs, 0, "R", batch=6) == contenders.floor(costs, 0, "R")


def test_the_baseline_is_plain_keras_with_as_many_weights():
    import keras

    from benchmarks.step_time import CONVNET, network
    from neural_alignment.layers import AlignedLayer

    def build(rule):
        return network(rule, {"model": CONVNET, "image": 8})

    native = contenders.baseline(build)
    assert type(native).__module__.startswith("keras.")
    assert not any(isinstance(layer, AlignedLayer) for layer in native.layers)
    assert {type(layer) for layer in native.layers} >= {keras.layers.Conv2D, keras.layers.Dense}
    aligned = contenders.aligned(build, contenders.RULES["feedback"].rule)
    assert [tuple(w.shape) for w in native.trainable_variables] == [tuple(w.shape) for w in aligned.trainable_variables]
    assert len(native.losses) == len(aligned.losses) > 0


@pytest.mark.parametrize("norm", ["FusedBatchNormalization", "BatchAxisNormalization"])
def test_plain_keras_has_nothing_of_this_library(norm):
    import keras

    from neural_alignment import models

    def build(rule):
        inputs = keras.Input((4, 4, 2))
        x = getattr(models, norm)(name="norm", epsilon=1e-2)(inputs)
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))

    plain, baseline = contenders.plain(build), contenders.baseline(build)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    assert type(plain.get_layer("norm")) is keras.layers.BatchNormalization
    assert plain.get_layer("norm").epsilon == 1e-2
    assert type(baseline.get_layer("norm")) is getattr(models, norm)
    assert [tuple(w.shape) for w in plain.trainable_variables] == [tuple(w.shape) for w in baseline.trainable_variables]
    assert list(contenders.backpropagation(build)) == [common.BASELINE, common.PLAIN]


def test_without_batch_normalisation_backpropagation_is_plain_keras():
    from neural_alignment.models import fc

    assert list(contenders.backpropagation(lambda rule: fc([4], 2, (3,), rule))) == [common.BASELINE]


def test_alternating_steps_are_timed_separately():
    from benchmarks.step_time import CONVNET, network

    def build(rule):
        return network(rule, {"model": CONVNET, "image": 8})

    batch = contenders.batch_of((2, 8, 8, 3))
    model = contenders.aligned(build, contenders.RULES["symmetric"].rule, alternation=1)
    step = contenders.alternating(model, batch)
    assert set(step()) == {"J seconds", "R seconds", "J CPU seconds", "R CPU seconds"}
    forward = [w for w in model.trainable_variables if w.name == "kernel"]
    backward = [w for w in model.trainable_variables if w.name == "backward_kernel"]
    assert int(model.optimizer.iterations.numpy()) == 2
    one = contenders.stepper(model, batch)
    before = [w.numpy() for w in forward], [w.numpy() for w in backward]
    one()  # Step 2, an even one: of R.
    for variable, old in zip(forward, before[0], strict=True):
        assert_close(variable.numpy(), old)
    for variable, old in zip(backward, before[1], strict=True):
        assert not np.array_equal(variable.numpy(), old)


def test_the_exponent_is_that_of_a_power():
    sizes = [1, 2, 4, 8]
    assert_close(growth.exponent(sizes, [3 * size**1.7 for size in sizes]), 1.7)


def test_decoding_the_whole_image_gives_the_pixels_of_the_fused_decoder(rng):
    import tensorflow as tf

    from neural_alignment.data import imagenet

    coarse = tf.constant(rng.uniform(size=(6, 8, 3)), tf.float32)
    image = tf.image.convert_image_dtype(tf.image.resize(coarse, (90, 120)), tf.uint8)
    # If colour is stored at half the size, its interpolation stops at the border of the decoded part.
    encoded = tf.io.encode_jpeg(image, chroma_downsampling=False)
    for place in range(4):
        window, another = (
            functools.partial(imagenet.random_window, seed=tf.constant([0, number], tf.int64))
            for number in (place, place + 9)
        )
        fused = imagenet.decode_window(encoded, window).numpy()
        np.testing.assert_array_equal(input_pipeline.decode_then_crop(encoded, window).numpy(), fused)
        other = input_pipeline.decode_then_crop(encoded, another).numpy()
        assert other.shape != fused.shape or (other != fused).any()


# The peer.


class FakeWorker:
    """Stands in for a process of `peer`."""

    def __init__(self, parameters, seconds):
        self.facts = {"versions": {"torch": "0"}, "parameters": parameters}
        self._seconds = seconds

    def step(self, contender):
        """Returns the prescribed times."""
        return {"seconds": self._seconds, "CPU seconds": self._seconds}


def fake_workers(monkeypatch, ours, theirs):
    import contextlib

    monkeypatch.setattr(peer, "workers", lambda size: contextlib.nullcontext((ours, theirs)))


def test_the_peer_is_compared_step_by_step(tmp_path, monkeypatch):
    fake_workers(monkeypatch, FakeWorker(100, 2.0), FakeWorker(100, 4.0))
    samples = common.Samples(tmp_path, "peer", {"sizes": peer.SMALL})
    peer.measure(samples, peer.SMALL)
    checks = peer.report(samples, peer.SMALL).checks
    assert [(check.value, check.held) for check in checks] == [(0.5, True)] * 8  # 4 rules on one thread and on two.


def test_a_step_that_takes_almost_as_long_as_that_of_the_peer_misses_its_limit(tmp_path, monkeypatch):
    fake_workers(monkeypatch, FakeWorker(100, 1.9), FakeWorker(100, 2.0))
    samples = common.Samples(tmp_path, "peer", {"sizes": peer.SMALL})
    peer.measure(samples, peer.SMALL)
    assert not any(check.held for check in peer.report(samples, peer.SMALL).checks)


def test_a_different_network_is_rejected_as_peer(tmp_path, monkeypatch):
    fake_workers(monkeypatch, FakeWorker(100, 1.0), FakeWorker(99, 1.0))
    with pytest.raises(RuntimeError, match="the networks differ"):
        peer.measure(common.Samples(tmp_path, "peer", {"sizes": peer.SMALL}), peer.SMALL)


def test_a_worker_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="ended with code 3"):
        peer.Worker([sys.executable, "-c", "raise SystemExit(3)"], {"width": 1, "image": 1, "batch": 1, "threads": 1})


# The command.


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder for raw samples. Data and the peer are unavailable unless a test sets them."""
    for name in (peer.INTERPRETER, input_pipeline.FOLDER, "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "results"


@pytest.fixture
def here(results, monkeypatch):
    """Returns a function that measures and reports a benchmark in this process, which has TensorFlow already."""
    import keras

    monkeypatch.setattr(keras.backend, "clear_session", lambda: None)  # Other tests share this process.

    def measure(name):
        assert run.main(["--small", "--measure", name, "--results", str(results)]) == 0
        assert run.main(["--small", "--report-only", "--results", str(results), name]) == 0

    return measure


OTHERS = ("examples", "networks", "memory", "first_step", "growth", "replicas", "steps", "wide")
"""Benchmarks that are run like the first one."""


@pytest.mark.parametrize("name", exhaustive_unless(("step_time", *OTHERS), ("step_time",)))
def test_a_benchmark_measures_and_reports(results, here, monkeypatch, name):
    in_a_process = memory._in_a_process

    def one_of_two(contender, size):
        return (memory.peak if contender == "symmetric" else in_a_process)(contender, size)

    monkeypatch.setattr(memory, "_in_a_process", one_of_two)
    if name == "step_time":
        monkeypatch.setattr(step_time, "ALTERNATING", step_time.ALTERNATING[:1])
        few = ("feedback", *step_time.ALTERNATING)
        monkeypatch.setattr(contenders, "RULES", {rule: contenders.RULES[rule] for rule in few})
    here(name)
    benchmark = run.load(name)
    sizes = json.loads((results / f"{name}.json").read_text())["sizes"]
    assert sizes == json.loads(json.dumps(benchmark.small))
    section = (results.parent / "RESULTS.md").read_text().split(f"## {benchmark.title}\n")[1].split("\n## ")[0]
    assert "| limit" in section
    assert "nan" not in section


def test_fewer_examples_have_a_floor_and_limits_at_a_quarter(results):
    samples = common.Samples(results, "examples", common.facts(examples.SMALL))
    seconds = {examples.contender(n, f): 1 + 0.8 * f for n in examples.rules() for f in examples.FRACTIONS}
    for scale in (1.0, 3.0):
        steps = {examples.BASELINE: 1.0, examples.PLAIN: 1.1} | seconds
        samples.add("convnet", {n: {"seconds": scale * value, "CPU seconds": value} for n, value in steps.items()})
    report = examples.report(samples, examples.SMALL)
    assert {check.line.split(", ")[2]: check.held for check in report.checks} == {
        "weight_mirror": True, "activation": True, "information": True
    }  # fmt: skip
    assert {check.line.split(", ")[-1] for check in report.checks} == {"R from 2 examples"}
    rows = [line.split(" | ") for line in report.text.splitlines() if line.startswith("| ")]
    assert rows[2][:3] == ["| plain Keras", "", "1.10"]
    floors = {row[0][2:]: [float(r[4]) for r in rows if r[0] == row[0]] for row in rows[3:]}
    for values in floors.values():
        extra = np.array(values) - 1
        assert_close(extra / extra[0], [1, 0.5, 0.25, 0.125], "bfloat16")
    assert floors["information, Table 5"][0] > floors["information"][0] > floors["activation"][0]


def test_optimizers_are_compared_with_adam_in_the_same_round(results):
    names = list(moments.optimizers())
    samples = common.Samples(results, "moments", common.facts(moments.SMALL))
    for value in (1.0, 3.0):
        steps = {name: {"seconds": value * (1.2 if name == "radam" else 1.0), "CPU seconds": value} for name in names}
        samples.add("convnet", steps)
    report = moments.report(samples, moments.SMALL)
    assert report.text.endswith("Not measured yet: plain Keras.")
    checks = report.checks
    assert {check.line: check.held for check in checks} == {
        f"step time, convnet, {name}": name != "radam" for name in names if name != moments.BASELINE
    }
    made = {name: make() for name, make in moments.optimizers().items()}
    assert {type(optimizer).__name__ for optimizer in made.values()} == {"Adam", "RAdam", "SWATS"}


def test_existing_samples_are_not_measured_again(results, monkeypatch):
    sizes = {**peer.SMALL}
    samples = common.Samples(results, "peer", common.facts(sizes))
    for case in np.repeat(list(sizes), 2).tolist():
        samples.add(case, {name: {"seconds": 1.0, "CPU seconds": 1.0} for name in peer.COMPARED})
    before = (results / "peer.csv").read_bytes()
    monkeypatch.setattr(peer, "interpreter", lambda: pytest.fail("a worker was started"))
    assert run.main(["--small", "--measure", "peer", "--results", str(results)]) == 0
    assert (results / "peer.csv").read_bytes() == before


def test_the_growth_is_drawn(results):
    samples = common.Samples(results, "growth", common.facts(growth.SMALL))
    for case, rounds in growth.cases(growth.SMALL).items():
        point = int(case.split()[-1])
        for _ in range(rounds):
            samples.add(case, {name: {"seconds": point**1.5} for name in (growth.BASELINE, *growth.RULES)})
    assert run.main(["--small", "--report-only", "--check", "--results", str(results), "growth"]) == 0
    assert (results / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "(results/growth.png)" in (results.parent / "RESULTS.md").read_text()


def test_the_growth_names_the_rules_that_earlier_samples_lack(results):
    samples = common.Samples(results, "growth", common.facts(growth.SMALL))
    lacking = {"fc, width 2": ("frsf",), "fc, width 4": ("frsf", "brsf")}
    for case, rounds in growth.cases(growth.SMALL).items():
        for _ in range(rounds):
            names = [name for name in (growth.BASELINE, *growth.RULES) if name not in lacking[case]]
            samples.add(case, {name: {"seconds": 1.0} for name in names})
    assert samples.note_of_missing(lacking, growth.RULES) == "\n\nNot measured yet: frsf, brsf."
    assert samples.note_of_missing(["fc, width 2"], growth.RULES) == "\n\nNot measured yet: frsf."
    assert samples.note_of_missing(lacking, ["symmetric"]) == ""


def test_a_rule_that_grows_faster_misses_its_limit(results, capsys):
    samples = common.Samples(results, "growth", common.facts(growth.SMALL))
    for case, rounds in growth.cases(growth.SMALL).items():
        point = int(case.split()[-1])
        for _ in range(rounds):
            measured = {name: {"seconds": point**1.5} for name in (growth.BASELINE, *growth.RULES)}
            samples.add(case, {**measured, "symmetric": {"seconds": point**1.6}})
    assert run.main(["--small", "--report-only", "--check", "--results", str(results), "growth"]) == 1
    missed = capsys.readouterr().out.split("missed limits:\n")[1]
    assert missed == "exponent of fc, width, symmetric: 1.600, at most 1.550\n"


def test_samples_without_the_contenders_of_today_are_reported(results):
    samples = common.Samples(results, "growth", common.facts(growth.SMALL))
    networks_samples = common.Samples(results, "networks", common.facts(networks.SMALL))
    for case, rounds in growth.cases(growth.SMALL).items():
        for _ in range(rounds):
            samples.add(case, {name: {"seconds": 1.0} for name in (common.BASELINE, "feedback")})
    for _ in range(2):
        networks_samples.add("convnet", {name: {"seconds": 1.0} for name in (common.BASELINE, "feedback")})
    checks = growth.report(samples, growth.SMALL).checks + networks.report(networks_samples, networks.SMALL).checks
    assert [check.held for check in checks] == [True, True]


def test_plain_keras_is_a_row_without_a_limit(results):
    names = (common.BASELINE, common.PLAIN, *growth.RULES)
    samples = common.Samples(results, "growth", common.facts(growth.SMALL))
    for case, rounds in growth.cases(growth.SMALL).items():
        for _ in range(rounds):
            samples.add(case, {name: {"seconds": 1.0 + (name == common.PLAIN)} for name in names})
    report = growth.report(samples, growth.SMALL)
    assert f"| {common.PLAIN} | 0.00" in report.text
    assert len(report.checks) == len(growth.RULES)


def test_the_peak_of_a_rule_may_contain_its_own_variables(results):
    sizes = {"case": {"batch": 1, "rules": ["lean", "wasteful"], "rounds": 1}}
    samples = common.Samples(results, "memory", common.facts(sizes))
    mebibytes = {common.PLAIN: (150, 30), common.BASELINE: (100, 30), "lean": (146, 70), "wasteful": (148, 70)}
    measured = {n: {"bytes": p * 2**20, "variable bytes": v * 2**20} for n, (p, v) in mebibytes.items()}
    samples.add("case", measured)
    checks = memory.report(samples, sizes).checks
    assert [(check.value, round(check.limit, 6), check.held) for check in checks] == [
        (146.0, 147.0, True),
        (148.0, 147.0, False),
    ]


def test_the_memory_of_every_rule_is_measured():
    measured = [name for size in memory.FULL.values() for name in memory.measured_rules(size)]
    assert sorted(measured) == sorted(RULES)
    assert all(memory.rules()[name].rule == name for name in measured)


def test_a_replica_counts_the_gradients_it_sums(results):
    samples = common.Samples(results, "replicas", common.facts(replicas.SMALL))
    for _ in range(2):
        measured = {replicas.SUM: {"seconds": 0.1}}
        for name in (common.BASELINE, *replicas.RULES):
            two = 1.3 if name == "symmetric" else 1.0
            measured[replicas.on(name, 1)] = {"seconds": 1.0, "bytes": 2**20}
            measured[replicas.on(name, 2)] = {"seconds": two, "bytes": 2**20}
        samples.add("convnet", measured)
    checks = replicas.report(samples, replicas.SMALL).checks
    assert {check.line.split(", ")[-1]: check.held for check in checks} == {
        name: name != "symmetric" for name in replicas.RULES
    }


@pytest.mark.parametrize("growing", ["bytes", "seconds", "threads", "file descriptors", None])
def test_a_long_run_may_not_grow(results, growing):
    samples = common.Samples(results, "steps", common.facts(steps.SMALL))
    flat = {"seconds": 1.0, "CPU seconds": 1.0, "bytes": 2.0**20, "threads": 10, "file descriptors": 20}
    measured = {}
    for number in range(1, 10):
        late = 1.0 + 0.05 * number
        measured[str(100 * number)] = {name: value * (late if name == growing else 1) for name, value in flat.items()}
    samples.add("symmetric", measured)
    samples.add(steps.PLAIN, measured)
    held = [check.held for check in steps.report(samples, steps.SMALL).checks]
    assert held.count(False) == (growing is not None)


def test_the_ratio_of_a_long_run_is_the_median_over_rounds(results):
    samples = common.Samples(results, "steps", common.facts(steps.SMALL))
    for slower in (1.3, 1.0, 1.05):
        values = {"CPU seconds": 1.0, "bytes": 2.0**20, "threads": 10, "file descriptors": 20}
        run = {str(step): {**values, "seconds": slower if step > 6 else 1.0} for step in range(1, 10)}
        samples.add("symmetric", run)
    report = steps.report(samples, steps.SMALL)
    assert [check.held for check in report.checks] == [True] * 4
    assert "| symmetric | 9 | 1000.00 | 1050.00 | 1.05 | 1.02 to 1.18 |" in report.text


def test_long_runs_are_measured_in_rounds(results, monkeypatch):
    order = []

    def ended(command, **options):
        order.append(command[3])
        values = {"seconds": 1.0, "bytes": 1, "threads": 1, "file descriptors": 1}
        return SimpleNamespace(stdout=json.dumps({"100": values}))

    monkeypatch.setattr(steps.subprocess, "run", ended)
    sizes = {name: {"epochs": 1, "every_epochs": 1, "rounds": 2} for name in ("a", "b")}
    samples = common.Samples(results, "steps", common.facts(sizes))
    samples.add("a", {"100": {"seconds": 1.0}})
    steps.measure(samples, sizes)
    assert order == ["b", "a", "b"]


@pytest.mark.exhaustive
def test_the_pipeline_is_measured_on_records(results, here, tmp_path, monkeypatch, rng):
    import tensorflow as tf

    from neural_alignment import models

    def record():
        pixels = tf.constant(rng.integers(0, 256, (40, 50, 3)), tf.uint8)
        image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.io.encode_jpeg(pixels).numpy()]))
        label = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
        features = tf.train.Features(feature={"image/encoded": image, "image/class/label": label})
        return tf.train.Example(features=features).SerializeToString()

    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            for _ in range(12):
                writer.write(record())

    def network(depth, version, classes, shape, rule, width):
        """A network that is traced faster than a ResNet-18: the waits are those for its batches."""
        return models.convnet([width], classes, shape, rule)

    monkeypatch.setattr(models, "resnet", network)
    monkeypatch.setenv(input_pipeline.FOLDER, str(tmp_path))
    here("input_pipeline")
    assert len(common.Samples(results, "input_pipeline").values("training", "run", "wait")) == 1


def test_missing_data_are_reported_and_miss_the_limits(results, capsys):
    assert run.main(["--small", "--results", str(results), "input_pipeline"]) == 0
    assert f"Not measured: no images: set {input_pipeline.FOLDER}" in capsys.readouterr().out
    assert run.main(["--small", "--report-only", "--check", "--results", str(results), "input_pipeline"]) == 1
    assert "input_pipeline: no values" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["input_pipeline", "peer"])
def test_a_benchmark_that_is_unavailable_keeps_earlier_samples(results, monkeypatch, capsys, name):
    monkeypatch.setattr(peer, "ENVIRONMENT", results / "none")
    common.Samples(results, name, FACTS).add("case", {"a": {"seconds": 1.0}})
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    assert run.main(["--small", "--measure", name, "--results", str(results)]) == 0
    assert f"{name}: " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before


def test_an_unknown_name_is_a_one_line_error():
    command = [sys.executable, "-m", "benchmarks.run", "step_tim"]
    ended = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "did you mean 'step_time'?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_module_with_a_benchmark_is_run():
    modules = {path.stem for path in Path(run.__file__).parent.glob("*.py")} - {"peer_torch"}  # Needs torch.
    found = {name for name in modules if hasattr(importlib.import_module(f"benchmarks.{name}"), "BENCHMARK")}
    assert found == set(run.NAMES)


def test_a_report_without_step_times_leaves_the_page(tmp_path, monkeypatch):
    """As after a measurement that was stopped in its first benchmark."""
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    assert run.main(["--report-only", "wide"]) == 0
    assert "Not measured yet." in (tmp_path / "RESULTS.md").read_text()
    assert not (tmp_path / "page.md").exists()


def test_the_step_times_on_pages_are_those_of_the_results():
    """`make bench` writes those of `docs/results.md`; the sentence of the README is changed by hand."""
    table = table_in(run.PAGE, "benchmarks/step_time")
    results = (common.ROOT / "benchmarks" / "RESULTS.md").read_text().splitlines()
    assert [line for line in table if line not in results] == []
    ratios = {line.split("|")[1].strip(): float(line.split("|")[2]) for line in table if re.match(r"\| .* \| \d", line)}
    assert {"feedback", "symmetric", "information"} <= {*ratios}
    readme = " ".join((common.ROOT / "README.md").read_text().split())
    for rule, said in (
        ("symmetric", "A step of symmetric alignment takes {:.2f} times as long as one of backpropagation"),
        ("information", "a step of information alignment {:.1f} times"),
    ):
        assert said.format(ratios[rule]) in readme
    [row] = [line.split(" | ") for line in results if line.startswith("| information, Table 5 | 64 |")]
    assert f"the paper's operations on its signals (Table 5) {float(row[2]):.1f} times" in readme
    assert f"a step with J and R takes {row[2]} times as long as" in " ".join(run.PAGE.read_text().split())
