"""Memory, time of a step, file descriptors and threads over the steps of a long run, which must not grow.

Each contender is a run of `training.run.train` in a separate process, with evaluations and checkpoints. Plain Keras is
a `fit` of the same network with the same data. The values are read at each evaluation. All contenders run once in each
round, because the speed of a machine changes within the time of a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BASELINE,
    PLAIN,
    ROOT,
    Benchmark,
    Check,
    Report,
    Samples,
    UnavailableError,
    middle,
    progress,
    table,
)
from neural_alignment.training.callbacks import Progress

CONFIG = ROOT / "configs" / "quickstart.yaml"
WEIGHTS = {
    "symmetric": {"self_": 2e-3, "decay": 2e-3},
    "weight_mirror": {"amp": 1e-3, "decay": 1e-3, "input": {"noise": "normal", "stddev": 0.5}},
}
"""Options of the rules that require some."""
RULES = (PLAIN, BASELINE, "symmetric", "weight_mirror", "brsf", "align_ada")
TRAINED_B = ("symmetric", "weight_mirror")
FULL = {rule: {"epochs": 116, "every_epochs": 4, "rounds": 3} for rule in RULES}
SMALL = {name: {"epochs": 4, "every_epochs": 1, "rounds": 1} for name in (PLAIN, "symmetric")}
SLOWER = 1.10
"""Limit on the time of a step in the last third of the run, relative to the second third; median over rounds."""
MORE_MEMORY = 1.02
"""Limit on the resident size at the end of the run, relative to a third of the run."""
MIB = 2**20


def cases(sizes: dict[str, Any]) -> dict[str, int]:
    """Returns the number of rounds of each case, each a whole run."""
    return {rule: size["rounds"] for rule, size in sizes.items()}


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Runs each contender in a separate process.

    Raises:
        UnavailableError: if the system does not provide the numbers.
    """
    if not Path("/proc/self/fd").exists():
        raise UnavailableError("memory and files are read from /proc/self, which this system does not have; use Linux")
    rounds = cases(sizes)
    every = [(number, rule) for number in range(max(rounds.values())) for rule in sizes if number < rounds[rule]]
    missing = [rule for number, rule in every if number >= samples.rounds(rule)]
    with progress("runs", len(every), len(every) - len(missing)) as bar:
        for rule in missing:
            command = [sys.executable, "-m", "benchmarks.steps", rule, json.dumps(sizes[rule])]
            stderr = None if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3" else subprocess.DEVNULL
            ended = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
            samples.add(rule, json.loads(ended.stdout.splitlines()[-1]))
            bar.update()


class Watch(Progress):
    """Reads the resources of this process at each evaluation.

    Attributes:
        found: the values by the step of the evaluation.
    """

    def __init__(self):
        super().__init__(lambda line: None, lambda **options: _NoBar())
        self.found: dict[str, dict[str, float]] = {}
        self._made, self._seconds, self._cpu = 0, 0.0, 0.0
        self._begun = time.perf_counter(), time.process_time()

    def advance(self, steps: int) -> None:
        """Notes the time since the last evaluation or call."""
        self._made += steps
        self._seconds += time.perf_counter() - self._begun[0]
        self._cpu += time.process_time() - self._begun[1]
        self._begun = time.perf_counter(), time.process_time()

    def __call__(self, row: dict[str, Any]) -> None:
        """Reads the resources. The evaluation itself does not count as time of steps."""
        if self._made:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.found[str(int(row["step"]))] = {
                "seconds": self._seconds / self._made,
                "CPU seconds": self._cpu / self._made,
                "bytes": int(status["VmRSS"].split()[0]) * 1024,
                "threads": int(status["Threads"]),
                "file descriptors": len(os.listdir("/proc/self/fd")),
            }
        self._made, self._seconds, self._cpu = 0, 0.0, 0.0
        self._begun = time.perf_counter(), time.process_time()


class _NoBar:
    """Stands in for a progress bar."""

    def update(self, steps: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def run(rule: str, size: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Trains one run in this process and returns its resources by step."""
    from neural_alignment import config as configuration
    from neural_alignment.training.run import train

    alignment = {"rule": rule, **WEIGHTS.get(rule, {})} if rule != BASELINE else None
    overrides = [f"alignment={json.dumps(alignment)}", f"epochs={size['epochs']}"]
    overrides.append(f"evaluation.every_epochs={size['every_epochs']}")
    if rule not in TRAINED_B:
        overrides.append("optimization.backward=null")
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        train(configuration.load(CONFIG, overrides), folder, progress=watch)
    return watch.found


def fit(size: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Trains the network of the configuration in plain Keras in this process and returns its resources by step."""
    import keras
    from sklearn.datasets import load_digits

    from benchmarks import contenders
    from neural_alignment import config as configuration
    from neural_alignment import models

    config, watch = configuration.load(CONFIG), Watch()
    images, labels = load_digits(return_X_y=True)
    images, held_out = images.reshape(-1, 8, 8, 1) / 16, len(images) // 5
    model = contenders.plain(lambda rule: models.convnet(config.model.filters, 10, images.shape[1:], rule))

    class Watched(keras.callbacks.Callback):
        """Passes steps and evaluations on."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            watch.advance(1)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if (epoch + 1) % size["every_epochs"] == 0:
                watch({"step": int(model.optimizer.iterations)})

    model.fit(
        images[held_out:],
        labels[held_out:],
        batch_size=config.batch_size,
        epochs=size["epochs"],
        validation_data=(images[:held_out], labels[:held_out]),
        validation_freq=size["every_epochs"],
        callbacks=[Watched()],
        verbose=0,
    )
    return watch.found


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns a table with the values after a third of each run and at its end."""
    rows, checks = [], []
    for rule in filter(samples.rounds, sizes):
        steps = sorted(samples.contenders(rule), key=int)
        second, last = steps[len(steps) // 3 : len(steps) * 2 // 3], steps[len(steps) * 2 // 3 :]

        def thirds(number: int, rule: str = rule, parts: tuple = (second, last)) -> list[float]:
            """Returns the median time of a step in the last two thirds of the run of a round."""
            return [middle([samples.values(rule, step, "seconds")[number] for step in part])[0] for part in parts]

        def edges(quantity: str, rule: str = rule, ends: tuple = (second[0], last[-1])) -> list[float]:
            """Returns the largest value of all rounds after a third of the run and at its end."""
            return [max(samples.values(rule, step, quantity)) for step in ends]

        times = [thirds(number) for number in range(samples.rounds(rule))]
        ratio, low, high = middle([late / earlier for earlier, late in times])
        memory = [each / MIB for each in edges("bytes")]
        row = [rule, int(steps[-1]), *(1000 * middle(each)[0] for each in zip(*times, strict=True)), ratio]
        row += [f"{low:.2f} to {high:.2f}", *memory]
        own = [
            Check(f"time of a step late in a long run over earlier, {rule}", ratio, SLOWER),
            Check(f"resident size late in a long run over earlier, {rule}", memory[1] / memory[0], MORE_MEMORY),
        ]
        for quantity in ("file descriptors", "threads"):
            first, end = edges(quantity)
            row.append(f"{first:.0f} and {end:.0f}")
            own.append(Check(f"additional {quantity} late in a long run, {rule}", end - first, 0.0))
        rows.append(row)
        checks += [] if rule == PLAIN else own
    rows.append(
        ["limit", None, None, None, SLOWER, None, None, f"{MORE_MEMORY - 1:.0%} more", "none more", "none more"]
    )
    header = ["rule", "steps", "ms per step, second third", "last third", "ratio", "quartiles"]
    header += ["MiB after a third", "at the end"]
    intro = (
        f"Runs of `{CONFIG.relative_to(ROOT)}` with other rules, one process each, with evaluations and checkpoints, "
        "in rounds in which every contender runs once; the two times and the ratio are separate medians over rounds, "
        "so the ratio is not the quotient of the two times; the other values are the largest; "
        "plain Keras is a `fit` of the same network with evaluations only. "
        "The steps of the first third are left out, because caches fill then. Limits: a step takes at most "
        f"{SLOWER:.2f} times as long in the last third as in the second, the resident size grows by at most "
        f"{MORE_MEMORY - 1:.0%}, and no file descriptor and no thread is added. Plain Keras has no limits.\n\n"
    )
    return Report(intro + table([*header, "file descriptors", "threads"], rows), checks)


BENCHMARK = Benchmark("steps", "Long runs", 13, FULL, SMALL, measure, report, cases)

if __name__ == "__main__":
    name, chosen = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(fit(chosen) if name == PLAIN else run(name, chosen)))
