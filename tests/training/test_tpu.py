"""Programs for a TPU's compiler, without the compiler; one test compiles if it is installed."""

import collections
import contextlib
import json
import math
import signal
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, exhaustive_unless
from tensorflow.compiler.xla.service import hlo_pb2

from neural_alignment import config as configuration
from neural_alignment.errors import ConfigError, InputError, Unavailable
from neural_alignment.training import AlignedModel, distribution, setup, step_modes, tpu
from neural_alignment.training.costs import part_of_r
from neural_alignment.training.model import connections
from neural_alignment.training.run import train
from neural_alignment.training.tpu import compilation, compiler, estimate
from neural_alignment.training.tpu.chips import CORES, GIB
from optimizers import philox

ROOT = Path(__file__).parent.parent.parent
LIMITS = compilation.Limits(minutes=2, gib=3)
OPTIMIZERS = "optimization={forward: {name: sgd, learning_rate: 0.1}, backward: {name: sgd, learning_rate: 0.1}%s}"


def small(*overrides, more=""):
    """Returns the configuration of a small network with symmetric alignment on scikit-learn's digits."""
    model = ("model={name: fc, hidden: [16]}", "alignment={rule: symmetric, decay: 0.1}", "batch_size=64", "epochs=3")
    return configuration.load(ROOT / "configs" / "quickstart.yaml", (*model, OPTIMIZERS % more, *overrides))


# The types of TPUs.


@pytest.mark.parametrize(
    ("name", "replicas"), [("v2-8", 8), ("v3-8", 8), ("v3-32", 32), ("v4-8", 4), ("v5litepod-4", 4), ("v6e-1", 1)]
)
def test_a_type_gives_the_number_of_replicas(name, replicas):
    assert tpu.Slice.named(name).replicas == replicas


@pytest.mark.parametrize("name", ["v1-8", "v3", "v3-0", "v3-x", "v4-3", "", "v3-8-8"])
def test_a_wrong_type_is_one_line_with_the_allowed_ones(name):
    with pytest.raises(InputError) as error:
        tpu.Slice.named(name)
    assert str(error.value).startswith("--tpu: must be one of v2, v3, v4, v5litepod, v6e with a number of cores")
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


# The numbers of steps.


@pytest.mark.parametrize(
    "more",
    ["", ", alternation: 1", ", alternation: 3", ", delay_epochs: 1", ", alternation: 2, delay_epochs: 0.7"],
)
@pytest.mark.parametrize("limit", [(), ("max_steps=25",)])
def test_the_counted_steps_are_those_of_the_rate_scheduler(more, limit):
    config = small(*limit, more=more)
    facts = setup.data_facts(config)
    optimizer = setup.build_optimizer(config, facts.steps_per_epoch)
    total = 25 if limit else facts.steps_per_epoch * 3 * config.optimization.turns
    names = {(True, True): "J + R", (True, False): "J", (False, True): "R"}
    expected = {}
    for step in range(total):
        name = names[tuple(bool(rate) for rate in optimizer.rates(step))]
        expected[name] = expected.get(name, 0) + 1
    assert tpu.turns(config, facts) == expected


def count_changes(monkeypatch):
    """Returns a counter of the steps that are trained from now on, by the losses whose kernels change in them."""
    counts, own_compile, own_step = collections.Counter(), AlignedModel.compile, AlignedModel._replica_step

    def compile_eagerly(model, *arguments, **options):
        own_compile(model, *arguments, **{**options, "run_eagerly": True, "jit_compile": False})

    def step(model, *arguments):
        of_r = [each for each in connections(model) if each.alignment.learns]
        kernels = [model.trainable_variables[0], *(each.stored_backward_kernel for each in of_r)]
        before = [kernel.numpy() for kernel in kernels]
        result = own_step(model, *arguments)
        j, *r = (not np.array_equal(old, new.numpy()) for old, new in zip(before, kernels, strict=True))
        due = sorted({each.alignment.interval for each, changed in zip(of_r, r, strict=True) if changed})
        name = "J + R" if j and due else "J" if j else "R" if due else "none"
        partly = due and not all(r)
        counts[f"{name} (every {', '.join(map(str, due))})" if partly else name] += 1
        return result

    monkeypatch.setattr(AlignedModel, "compile", compile_eagerly)
    monkeypatch.setattr(AlignedModel, "_replica_step", step)
    return counts


SYMMETRIC = "rule: symmetric, self_: 1, decay: 1"


def until(epoch):
    """Returns a loss rate that falls to 0 at an epoch."""
    return f"{{value: 1, schedule: {{kind: polynomial, end_epoch: {epoch}}}}}"


NOISE = "optimization.backward.noise={variance: 0.01}"


RUNS = [
    (("max_steps=25",), ""),
    (("max_steps=8",), ", alternation: 1"),
    (("epochs=1",), ", alternation: 3"),
    (("max_steps=25",), ", delay_epochs: 0.3"),
    (("max_steps=17",), ", alternation: 2, delay_epochs: 0.5"),
    (("max_steps=25", f"alignment={{{SYMMETRIC}, every: 4}}"), ""),
    (("max_steps=20", f"alignment={{{SYMMETRIC}, every: 4}}", NOISE), ", delay_epochs: 0.26"),
    (("max_steps=14", f"alignment=[{{layers: dense2, {SYMMETRIC}, every: 4}}, {{{SYMMETRIC}, every: 6}}]"), ""),
    (("max_steps=30", f"alignment=[{{layers: dense1, {SYMMETRIC}, every: 4}}, {{{SYMMETRIC}, every: 6}}]"), ""),
    (("max_steps=25", f"alignment=[{{layers: dense2, {SYMMETRIC}}}, {{{SYMMETRIC}, every: 6}}]"), ""),
    (("max_steps=25", f"alignment=[{{layers: dense2, rule: feedback}}, {{{SYMMETRIC}, every: 6}}]"), ""),
    (("max_steps=25",), ", loss_rates: {forward: 0}"),
    (("max_steps=25",), ", loss_rates: {backward: 0}"),
    (("max_steps=8",), ", loss_rates: {backward: 0}, alternation: 1"),
    (("epochs=1",), f", loss_rates: {{backward: {until(0.5)}}}"),
    (("epochs=1",), f", loss_rates: {{forward: {until(0.7)}, backward: {until(0.4)}}}"),
    (("epochs=1", f"alignment={{{SYMMETRIC}, every: 3}}"), f", loss_rates: {{forward: {until(0.6)}}}"),
    (("max_steps=25", NOISE), ", alternation: 1"),
    (("max_steps=25",), ", alternation: 1, skip_idle: false"),
    (("max_steps=25", "alignment={rule: feedback}", "optimization.backward=null"), ""),
    (("max_steps=25", "alignment={rule: dfa}", "optimization.backward=null"), ""),
    (("max_steps=25", "alignment=null", "optimization.backward=null"), ""),
    (
        (
            *("max_steps=6", "alignment={rule: kolen_pollack, decay: 0.1}"),
            *("weight_decay=0.1", "optimization.backward=null"),
        ),
        "",
    ),
]
"""Overrides of a configuration, and options of its optimization."""

OFTEN = [RUNS[place] for place in (6, 15)]
"""R at some steps only, and rates that end. The other runs take a second each."""


@pytest.mark.parametrize(
    ("overrides", "more"),
    exhaustive_unless(RUNS, OFTEN),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_the_counted_steps_are_those_that_a_run_makes(overrides, more, tmp_path, monkeypatch):
    config = small("model.hidden=[16, 12]", "evaluation.probe_examples=0", *overrides, more=more)
    expected = tpu.turns(config, setup.data_facts(config))
    found = count_changes(monkeypatch)
    train(config, tmp_path / "run")
    assert expected == found


def test_steps_in_which_some_rules_are_due_are_counted_apart():
    first, rest = (f"{SYMMETRIC}, every: {number}" for number in (4, 6))
    rules = f"alignment=[{{layers: dense2, {first}}}, {{{rest}}}]"
    config = small("model.hidden=[16, 12]", rules, "max_steps=25", more=", delay_epochs: 0.1")
    facts = setup.data_facts(config)
    delay = -(-facts.steps_per_epoch // 10)
    counts = collections.Counter((step % 4 == 0, step % 6 == 0) for step in range(delay, 25))
    assert tpu.turns(config, facts) == {
        "J + R": counts[True, True],
        "J + R (every 4)": counts[True, False],
        "J + R (every 6)": counts[False, True],
        "J": counts[False, False],
        "R": delay,
    }


def test_a_rule_that_learns_nothing_has_only_steps_of_j():
    config = small("alignment={rule: feedback}", "optimization.backward=null")
    assert set(tpu.turns(config, setup.data_facts(config))) == {"J"}


@pytest.mark.exhaustive
def test_a_long_run_is_counted_in_parts(monkeypatch):
    config = small(more=", alternation: 2, delay_epochs: 0.3")
    facts = setup.data_facts(config)
    whole = tpu.turns(config, facts)
    monkeypatch.setattr(step_modes, "_COUNTED_AT_ONCE", 7)
    assert tpu.turns(config, facts) == whole


# The programs.


def program(losses, *overrides, more=""):
    return hlo_pb2.HloModuleProto.FromString(tpu.lower(small(*overrides, more=more), 8, losses))


def products(module):
    """Counts the products of matrices."""
    found = [i for c in module.computations for i in c.instructions if i.opcode == "dot"]
    return sum(len(product.shape.dimensions) == 2 for product in found)


def shapes(module):
    return [tuple(shape.dimensions) for shape in module.host_program_shape.parameters]


def test_a_program_has_the_part_of_the_batch_of_one_core_and_updates_all_variables_in_place():
    module = program("J + R")
    assert (8, 8, 8, 1) in shapes(module)
    assert (64, 8, 8, 1) not in shapes(module)
    updated = {entry.parameter_number for entry in module.input_output_alias.entries}
    kernels = [number for number, shape in enumerate(shapes(module)) if shape in ((64, 16), (16, 10), (10, 16))]
    assert len(kernels) == 3  # Two W, and a B for the second layer.
    assert set(kernels) <= updated
    assert len(updated) == len(module.host_program_shape.result.tuple_shapes)  # No output takes new memory.


def test_a_step_of_one_loss_leaves_out_the_other():
    both, (j, r) = program("J + R"), (program(losses, more=", alternation: 1") for losses in "JR")
    assert products(r) < products(j) <= products(both)
    assert len(j.input_output_alias.entries) < len(both.input_output_alias.entries)


def test_a_step_of_some_rules_leaves_out_the_others():
    rules = f"alignment=[{{layers: dense2, {SYMMETRIC}, every: 4}}, {{{SYMMETRIC}, every: 6}}]"
    both, first, none = (
        program(losses, "model.hidden=[16, 12]", rules) for losses in ("J + R", "J + R (every 4)", "J")
    )
    updated = [len(each.input_output_alias.entries) for each in (both, first, none)]
    assert updated[0] > updated[1] > updated[2]
    with pytest.raises(ValueError, match=r"kind of step: 'J \+ R'\. Received 'R'"):
        program("R")


ACTIVATION = "alignment={{rule: activation, amp: 1, sparse: 0.1, examples: {}}}"


def sizes_of_products(module):
    """Returns the dtype, the shape and the number of terms of each element of the products of matrices."""
    found = []
    for computation in module.computations:
        known = {each.id: each.shape.dimensions for each in computation.instructions}
        for each in computation.instructions:
            if each.opcode == "dot" and len(each.shape.dimensions) == 2:
                [place] = each.dot_dimension_numbers.lhs_contracting_dimensions
                terms = known[each.operand_ids[0]][place]
                found.append((each.shape.element_type, tuple(each.shape.dimensions), terms))
    return sorted(found)


COUNTS = [(8, 0.125, 1), (20, 0.375, 1), (32, 0.5, 2), (1, 0.25, 2)]


@pytest.mark.parametrize(("count", "fraction", "minibatches"), exhaustive_unless(COUNTS, COUNTS[1:3]))
def test_a_count_of_examples_is_divided_among_the_cores_and_minibatches(count, fraction, minibatches):
    """Of the 8 examples of a core each of its minibatches uses ceil(count / parts)."""
    parts = f"optimization.minibatches={minibatches}"
    found, expected, whole = (
        sizes_of_products(program("J + R", ACTIVATION.format(number), parts)) for number in (count, fraction, 1.0)
    )
    assert found == expected
    assert found != whole


def test_a_model_is_traced_for_training_after_it_is_traced_for_one_of_several_cores():
    config = small(ACTIVATION.format(16))
    facts = setup.data_facts(config)
    model = setup.compiled_model(config, facts, contextlib.nullcontext())
    batch = tuple(tf.TensorSpec((64, *spec.shape), spec.dtype) for spec in facts.example_spec)
    mode = model.step_modes.named("J + R")
    first, _, again = (
        sizes_of_products(hlo_pb2.HloModuleProto.FromString(model.hlo(batch, mode, cores))) for cores in (1, 8, 1)
    )
    assert first == again


HLO_FLOAT32 = 11


@pytest.mark.parametrize(("rule", "losses", "more"), [
    ("{rule: activation, amp: 1, sparse: 0.1}", "J + R", ""),
    ("{rule: activation, amp: 1, sparse: 0.1, examples: 0.25}", "J + R", ""),
    ("{rule: activation, amp: 1, sparse: 0.1, examples: 16}", "J + R", ""),
    ("{rule: weight_mirror, amp: 1, decay: 0.1}", "R", ", alternation: 1"),
    ("{rule: weight_mirror, amp: 1, decay: 0.1}", "J", ", alternation: 1"),
    ("{rule: symmetric, self_: 1, decay: 0.1}", "J + R", ""),
])  # fmt: skip
def test_the_part_of_r_is_that_of_the_float32_products_of_a_program_in_bfloat16(rule, losses, more):
    overrides = (f"alignment={rule}", "runtime.precision=mixed_bfloat16", "model.hidden=[16, 12]")
    operations = collections.Counter()
    for dtype, shape, terms in sizes_of_products(program(losses, *overrides, more=more)):
        if shape not in ((1, 1), (8, 64)):  # Sums of squares, and the error of the images, which the compiler removes.
            operations[dtype == HLO_FLOAT32] += math.prod(shape) * terms
    expected = operations[True] / sum(operations.values())
    assert_close(part_of_r(small(*overrides, more=more), 8, losses), expected)


def test_a_program_computes_random_words_in_the_form_for_tpus(monkeypatch):
    mirror = "alignment={rule: weight_mirror, amp: 1, decay: 0.1, input: {noise: normal}}"
    opcodes = [{i.opcode for c in program("J + R", mirror).computations for i in c.instructions}]
    monkeypatch.setattr(philox, "is_for_tpu", lambda: False)
    opcodes += [{i.opcode for c in program("J + R", mirror).computations for i in c.instructions}]
    assert ["rng-bit-generator" in each for each in opcodes] == [False, True]


UNSHARED = {
    "batch": ((), 24, "batch_size: is shared by 24 replicas and must be a multiple of 24; found 64"),
    "minibatches": (
        ("optimization.minibatches=4",), 32, "batch_size: is shared by 32 replicas of 4 minibatches and must be a mult"
    ),
    "evaluation": (("evaluation={batch_size: 100}",), 8, "evaluation.batch_size: is shared by 8 replicas"),
    "statistics of the batch": (
        ("model={name: wide_cnn, design: kmnist, width: 2}",), 8, "it uses the statistics of the whole batch"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSHARED)
def test_a_batch_that_the_cores_cannot_share_is_one_line(case):
    overrides, cores, line = UNSHARED[case]
    config = small(*overrides)
    with pytest.raises(ConfigError, match=line):
        tpu.lower(config, cores, "J + R")
    with pytest.raises(InputError, match=line):  # As for a run.
        distribution.Distribution(mock.Mock(num_replicas_in_sync=cores, extended=mock.Mock(spec=[]))).check(config)


# The compiler's process.


def test_copies_become_barriers_and_nothing_else_changes():
    text = """
    %0 = stablehlo.add %arg0, %arg1 : tensor<2xf32>
    %1 = mhlo.copy %0 : tensor<2xf32>
    %2 = mhlo.copy %arg2 {mhlo.sharding = "x"} : tensor<bf16>
    %3:2 = "mhlo.copy_start"(%2) : (tensor<bf16>) -> tensor<bf16>
"""
    assert compiler.without_copies(text).splitlines() == [
        "",
        "    %0 = stablehlo.add %arg0, %arg1 : tensor<2xf32>",
        "    %1 = stablehlo.optimization_barrier %0 : tensor<2xf32>",
        "    %2 = stablehlo.optimization_barrier %arg2 : tensor<bf16>",
        '    %3:2 = "mhlo.copy_start"(%2) : (tensor<bf16>) -> tensor<bf16>',
    ]


def done(code, output="", errors=""):
    return subprocess.CompletedProcess([], code, output, errors)


FACTS = {name: number for number, name in enumerate(tpu.Compiled._fields[:6], 1)}


def test_the_facts_of_a_compiled_program_are_read():
    result = compilation.result(done(0, f"a message\n{json.dumps(FACTS)}\n"), LIMITS)
    assert result == tpu.Compiled(1, 2, 3, 4, 5, 6)
    assert result.memory == 3


@pytest.mark.parametrize(
    ("process", "reason", "stopped"),
    [
        (done(0, json.dumps({"reason": "RESOURCE_EXHAUSTED: Ran\nout" + 500 * "."})), "RESOURCE_EXHAUSTED: Ran", False),
        (done(-signal.SIGXCPU), "stopped after 2 minutes", True),
        (done(-signal.SIGKILL), "stopped after 2 minutes", True),
        (done(-signal.SIGABRT, "", "std::bad_alloc\n"), "the compiler needs more than 3 GiB", True),
        (done(-signal.SIGABRT, "", "first\nlast line\n\n"), "the compiler ended with signal 6: last line", False),
        (done(1, "", "Traceback\nImportError: no jax\n"), "the compiler ended with exit code 1: ImportError", False),
    ],
)
def test_a_failure_of_the_compiler_is_a_reason_in_one_line(process, reason, stopped):
    result = compilation.result(process, LIMITS)
    assert result.reason.startswith(reason)
    assert "\n" not in result.reason
    assert len(result.reason) <= 240
    assert result.stopped == stopped


def script(tmp_path, text):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_compiler_gets_the_program_the_topology_and_the_limits(tmp_path, monkeypatch):
    text = f"""cat "$3" > {tmp_path}/program; echo "$4 $5 $6" > {tmp_path}/words; echo '{json.dumps(FACTS)}'"""
    monkeypatch.setenv(compilation.INTERPRETER, script(tmp_path, text))
    assert tpu.compile_program(b"program", "v3:2x2x1", LIMITS).flops == FACTS["flops"]
    assert (tmp_path / "program").read_bytes() == b"program"
    assert (tmp_path / "words").read_text() == "v3:2x2x1 2 3\n"


def test_the_versions_of_the_environment_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv(compilation.INTERPRETER, script(tmp_path, "echo 0.1 0.2"))
    assert compilation.installed() == {"jax": "0.1", "libtpu": "0.2"}
    monkeypatch.setenv(compilation.INTERPRETER, script(tmp_path, "exit 1"))
    with pytest.raises(Unavailable, match=f"{compilation.INTERPRETER}: must have jax and libtpu"):
        compilation.installed()


def test_a_missing_environment_is_one_line_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.delenv(compilation.INTERPRETER, raising=False)
    monkeypatch.setattr(compilation, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="make tpu-environment") as error:
        tpu.describe(small(), tpu.Slice.named("v3-8"))
    assert "\n" not in str(error.value)
    monkeypatch.setenv(compilation.INTERPRETER, str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="cannot be run: No such file"):
        tpu.compile_program(b"", "v3:2x2x1", LIMITS)


# Estimates.


def test_the_bound_is_the_larger_of_arithmetic_and_traffic():
    v3 = tpu.Slice.named("v3-8")
    compiled = tpu.Compiled(flops=615_000_000_000, bytes_accessed=900_000_000)
    assert_close(tpu.Estimate.of(compiled, v3, "mixed_bfloat16", of_r=0.0), [0.01, 0.002])
    assert_close(tpu.Estimate.of(compiled, v3, "float32", of_r=0.0).seconds, 0.06)  # Six passes.
    much = compiled._replace(bytes_accessed=18 * 10**9)
    assert_close(tpu.Estimate.of(much, v3, "mixed_bfloat16", of_r=0.0).seconds, 0.04)
    # Half of the products are R's, with six passes; in float32 all have six.
    assert_close(tpu.Estimate.of(compiled, v3, "mixed_bfloat16", of_r=0.5).seconds, 0.035)
    assert_close(tpu.Estimate.of(compiled, v3, "float32", of_r=0.5).seconds, 0.06)


def test_hours_add_the_steps_of_each_loss():
    bounds = {"J": tpu.Estimate(0.01, 0.02), "R": tpu.Estimate(0.005, 0.001)}
    assert_close(estimate.hours(bounds, {"J": 180_000, "R": 360_000}), 1.0 + 0.5)


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345, "0.0123"), (1.0, "1.00"), (12.345, "12.3"), (99.96, "100"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits(value, text):
    assert estimate.digits(value) == text


def test_two_cores_have_what_a_chip_has():
    assert CORES["v3"].memory == 16 * GIB
    assert_close(2 * CORES["v3"].arithmetic / 1e12, 123.0)
    assert_close(2 * CORES["v2"].bandwidth / 1e9, 700.0)


def test_describe_says_what_the_compiler_found(tmp_path, monkeypatch):
    facts = {**FACTS, "argument_bytes": GIB, "temporary_bytes": GIB, "flops": 615 * 10**9, "bytes_accessed": 10**9}
    monkeypatch.setenv(compilation.INTERPRETER, script(tmp_path, f"echo '{json.dumps(facts)}'"))
    config = small(more=", alternation: 1")
    total = sum(tpu.turns(config, setup.data_facts(config)).values())
    assert tpu.describe(config, tpu.Slice.named("v3-8")).splitlines() == [
        "TPU v3-8: 8 examples per core, float32",
        *(
            f"{losses} step      compiles; 2.00 of 16 GiB per core, 615 GFLOP, 1.00 GB of traffic, at least 60.0 ms "
            "(arithmetic)"
            for losses in "JR"
        ),
        f"run         at least {estimate.digits(total * 0.06 / 3600)} h for {total} steps, without the sum over the "
        "cores, reading of data, evaluation and compilation",
    ]
    monkeypatch.setenv(compilation.INTERPRETER, script(tmp_path, """echo '{"reason": "too large"}'"""))
    assert tpu.describe(config, tpu.Slice.named("v3-8")).splitlines()[1:] == [
        "J step      does not compile: too large",
        "R step      does not compile: too large",
    ]


def test_a_precision_that_tpus_do_not_have_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match=r"runtime\.precision: must be float32 or mixed_bfloat16 on a TPU; found"):
        tpu.describe(small("runtime.precision=float64"), tpu.Slice.named("v3-8"))


def test_a_small_step_compiles_for_a_tpu():
    try:
        compilation.interpreter()
    except Unavailable as error:
        pytest.skip(str(error))
    config = small("runtime.precision=mixed_bfloat16")
    result = tpu.compile_program(tpu.lower(config, 8, "J + R"), CORES["v3"].topology)
    assert result.reason == ""
    kernels = 4 * (64 * 16 + 2 * 16 * 10)
    assert kernels < result.aliased_bytes <= result.argument_bytes
    assert result.memory < 2**24
    products = 2 * 8 * (2 * 64 * 16 + 3 * 16 * 10)
    assert products <= result.flops < 4 * products
