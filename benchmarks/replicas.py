"""Time of a training step on two logical devices of one machine, relative to a step of the same batch on one.

The devices share the cores, so the products take as long as on one device. The additional time is that of replicas:
the sum of the gradients of W over both, that of the gradients of B for rules that learn B, and a second update of each.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from benchmarks.common import (
    BASELINE,
    PLAIN,
    Benchmark,
    Check,
    Report,
    Samples,
    UnavailableError,
    interleave,
    middle,
    table,
)
from benchmarks.step_time import CONVNET, RESNET18, network

RULES = ("feedback", "symmetric", "weight_mirror")
SUM = "sum of B over two"
"""The contender that only sums tensors of the size of all B over two devices."""
ALLOWANCE = 0.10
"""Allowed excess of the ratio of a rule over that of backpropagation, as a fraction."""
FULL = {"CIFAR ResNet-18": {"model": RESNET18, "image": 32, "batch": 64, "rounds": 9}}
SMALL = {"convnet": {"model": CONVNET, "image": 8, "batch": 4, "rounds": 2}}
MIB = 2**20


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times every contender on one device and on two.

    Raises:
        UnavailableError: if TensorFlow has been used already, with one device.
    """
    import keras
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow has been used; its devices may suffice.
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    if len(tf.config.list_logical_devices("CPU")) < 2:
        raise UnavailableError("TensorFlow already runs with one device; start the benchmark in a new process")
    for case, size in sizes.items():
        if samples.rounds(case) < size["rounds"]:
            interleave(samples, case, _steps(size), size["rounds"])
            keras.backend.clear_session()


def on(name: str, replicas: int) -> str:
    """Returns the name of a contender with its number of devices."""
    return f"{name}, {replicas} device{'s' if replicas > 1 else ''}"


def _steps(size: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    from benchmarks import contenders

    batch = contenders.batch_of((size["batch"], size["image"], size["image"], 3))
    build = functools.partial(network, size=size)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    steps = {}
    for replicas, scope in ((1, contextlib.nullcontext()), (2, mirrored.scope())):
        with scope:
            models = contenders.backpropagation(build)
            for model in models.values() if replicas > 1 else ():
                # A step of Keras itself cannot be traced on two devices before `fit` has created the metrics.
                model.fit(*batch, batch_size=size["batch"], verbose=0)
            models |= {name: contenders.aligned(build, contenders.RULES[name].rule) for name in RULES}
        for name, model in models.items():
            steps[on(name, replicas)] = _with_bytes(contenders.stepper(model, batch), model)
    steps[SUM] = contenders.timed(_sum_over(mirrored, kernel_shapes(build(contenders.RULES["symmetric"].rule))))
    return steps


def kernel_shapes(model: Any) -> list[Any]:
    """Returns the shapes of all backward kernels of a model."""
    return [weight.shape for weight in model.weights if weight.name == "backward_kernel"]


def _with_bytes(step: Any, model: Any) -> Any:
    """Returns the step with one more quantity: the bytes of the gradients that are summed over devices."""
    summed = sum(each.shape.num_elements() * each.value.dtype.size for each in model.trainable_variables)
    return lambda: {**step(), "bytes": summed}


def _sum_over(strategy: Any, shapes: list[Any]) -> Any:
    """Returns a function that sums tensors of some shapes over the devices, in one graph."""
    import tensorflow as tf

    def replica_sum() -> Any:
        replica = tf.distribute.get_replica_context()
        # Not constants, whose sum TensorFlow would compute beforehand.
        values = [tf.fill(shape, tf.random.uniform([])) for shape in shapes]
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, values)
        return tf.add_n([tf.reshape(each, [-1])[0] for each in total])

    @tf.function(autograph=False)
    def function() -> Any:
        return strategy.experimental_local_results(strategy.run(replica_sum))[0]

    return lambda: function().numpy()


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table for each case."""
    texts, checks = [], []
    for case, size in sizes.items():
        ratio = functools.partial(_ratio, samples, case)
        base, rows = ratio(BASELINE)[0], []
        names = [PLAIN] if samples.measured(case, [on(PLAIN, 1)]) else []
        for name in (*names, BASELINE, *RULES):
            median, low, high = ratio(name)
            seconds = [middle(samples.values(case, on(name, replicas)))[0] for replicas in (1, 2)]
            summed = samples.values(case, on(name, 2), "bytes")[0] / MIB
            limit = base * (1 + ALLOWANCE) if name in RULES else None
            rows.append([name, *seconds, median, f"{low:.2f} to {high:.2f}", summed, limit])
            if limit is not None:
                checks.append(Check(f"step time on two devices over one, {case}, {name}", median, limit))
        header = ["rule", "s on one device", "s on two", "two over one", "quartiles", "summed (MiB)", "limit"]
        texts.append(
            f"**{case}**, batch {size['batch']} in total, {samples.rounds(case)} rounds; two logical devices of one "
            "machine, which share its cores. The limit is backpropagation's ratio plus "
            f"{ALLOWANCE:.0%}. Only the sum of all B over two devices takes {middle(samples.values(case, SUM))[0]:.3f} "
            f"s.\n\n{table(header, rows)}"
        )
    return Report("\n\n".join(texts), checks)


def _ratio(samples: Samples, case: str, name: str) -> tuple[float, float, float]:
    return middle(samples.ratios(case, on(name, 2), on(name, 1)))


BENCHMARK = Benchmark("replicas", "Two devices", 6, FULL, SMALL, measure, report)
