"""The cost of a rule: the linear operations in the graph of R and of its gradient, beyond those of the layer itself."""

from collections import Counter

import pytest
import tensorflow as tf
from helpers import (
    CORRELATE,
    DENSE,
    LEARNING,
    PROJECT,
    RECONSTRUCT,
    RULE_CONFIGS,
    RULE_TABLE,
    SAME,
    TABLE_5,
    VALID,
    exhaustive_unless,
)

from neural_alignment.alignments import forward_pass, from_config

NOISE = {"input": {"noise": "normal", "stddev": 0.8}}
RANDOM = "random"

COSTS = {
    **{rule: (rule, {}, RULE_TABLE[rule].operations) for rule in RULE_CONFIGS},
    "activation, bias and relu": (
        "activation",
        {"forward_output": {"bias": True, "relu": True}, "backward_output": {"bias": True, "relu": True}},
        {PROJECT: 1, CORRELATE: 1},
    ),
    "activation, noise": ("activation", NOISE, {RANDOM: 1, PROJECT: 2, CORRELATE: 1}),
    "weight_mirror, noise": ("weight_mirror", NOISE, {RANDOM: 1, PROJECT: 1, CORRELATE: 1}),
    "WM": ("weight_mirror", TABLE_5["WM"], {RANDOM: 1, PROJECT: 1, CORRELATE: 1}),
    "WM+AD+OPS": ("weight_mirror", TABLE_5["WM+AD+OPS"], {RANDOM: 1, PROJECT: 2, CORRELATE: 1}),
    "information, noise": ("information", NOISE, {RANDOM: 1, PROJECT: 1, RECONSTRUCT: 1, CORRELATE: 1}),
    "information, batch-wise centred": (
        "information",
        {"input": {**NOISE["input"], "batch_center": True}, "forward_output": {"batch_center": True}},
        {RANDOM: 1, PROJECT: 1, RECONSTRUCT: 1, CORRELATE: 1},
    ),
    # The norm of B^T x needs the projection itself, and its gradient is another outer product.
    "IA": ("information", TABLE_5["IA"], {RANDOM: 1, PROJECT: 2, RECONSTRUCT: 1, CORRELATE: 2}),
}  # fmt: skip


def operations(tensors):
    """Returns the operations that some tensors of a graph depend on."""
    seen, stack = set(), [tensor.op for tensor in tensors if tensor is not None]
    while stack:
        operation = stack.pop()
        if operation not in seen:
            seen.add(operation)
            stack += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return seen


def is_inner_product(operation):
    """Returns whether a matrix product has a single entry: such a product of two kernels reads no batch."""
    return operation.type == "MatMul" and operation.outputs[0].shape.num_elements() == 1


def cost(case, config, linear=None):
    """Returns how many linear and random operations R and its gradient to B need beyond the layer's output.

    Also returns the gradients of R to the inputs and to W, which must not be in the graph.
    """
    layer = case.build(alignment=from_config(config), activation="relu", name="layer")
    captured = {}

    @tf.function
    def step(x):
        with tf.GradientTape(persistent=True) as tape, forward_pass(step=1) as state:
            tape.watch(x)
            outputs = layer(x, training=True)
        regulariser = state.losses.get("layer")
        to = {"B": layer._backward_kernel.value, "W": layer.kernel.value, "bias": layer.bias.value, "inputs": x}
        gradients = {k: None if regulariser is None else tape.gradient(regulariser, v) for k, v in to.items()}
        captured.update(outputs=outputs, regulariser=regulariser, gradients=gradients)
        return [t for t in (outputs, regulariser, gradients["B"]) if t is not None]

    step.get_concrete_function(tf.TensorSpec(case.input_shape, tf.float32))
    own = operations([captured["outputs"]])
    extra = operations([captured["regulariser"], captured["gradients"]["B"]]) - own
    # The key of the noise is drawn too; it is a scalar or a vector, the noise is not.
    kinds = Counter(
        RANDOM if op.type.startswith("StatelessRandom") and op.outputs[0].shape.rank not in (0, 1) else op.type
        for op in extra
        if not is_inner_product(op)
    )
    linear = linear or ((RANDOM, PROJECT, RECONSTRUCT, CORRELATE) if case is not DENSE else (RANDOM, "MatMul"))
    gradients = {k: v for k, v in captured["gradients"].items() if k != "B"}
    return {kind: kinds[kind] for kind in linear if kinds[kind]}, gradients, captured["gradients"]["B"]


@pytest.mark.parametrize(
    "case", exhaustive_unless([SAME, VALID], lambda case: case is VALID), ids=lambda case: case.name
)
@pytest.mark.parametrize("name", COSTS)
def test_a_convolution_computes_only_what_its_rule_needs(name, case):
    rule, options, expected = COSTS[name]
    found, gradients, to_b = cost(case, {**RULE_CONFIGS[rule], **options})
    assert found == expected
    assert set(gradients.values()) == {None}
    assert (to_b is None) == (rule not in LEARNING)


@pytest.mark.parametrize("name", COSTS)
def test_a_dense_layer_computes_only_what_its_rule_needs(name):
    rule, options, expected = COSTS[name]
    found, _, _ = cost(DENSE, {**RULE_CONFIGS[rule], **options})
    products = sum(count for kind, count in expected.items() if kind != RANDOM)
    assert found == {kind: count for kind, count in [(RANDOM, expected.get(RANDOM, 0)), ("MatMul", products)] if count}


@pytest.mark.parametrize(("rule", "transposed"), [("kolen_pollack", {}), ("symmetric", {"Transpose": 1})])
def test_r_of_kernels_alone_transposes_w_once_if_at_all(rule, transposed):
    """A kernel that is written out transposed costs as much as an optimizer's pass over it."""
    assert cost(DENSE, RULE_CONFIGS[rule], linear=("Transpose",))[0] == transposed
