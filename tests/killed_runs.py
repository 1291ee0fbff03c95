"""Kills runs with SIGKILL, resumes them, and compares them with uninterrupted runs.

`make resume-test` runs all of it; the tests run a short version:

    python tests/killed_runs.py --kills 20 --seed 0

Each attempt is a separate process, forked after the imports. It is killed after a number of steps, before or after a
file operation, or at a random time after the start of a checkpoint write. (The write is one call into TensorFlow, so it
can only be interrupted by time.)
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import numpy as np
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment import files
from neural_alignment.training import checkpoints, run, stepping

STEPS_PER_EPOCH = 6

MOMENTUM = {"name": "momentum", "learning_rate": 0.02, "schedule": {"warmup_epochs": 1, "drop_epochs": [3]}}
ADAM = {"name": "adam", "learning_rate": 1e-2}
NOISE = {"noise": "normal"}

KINDS = {
    "simultaneous": {
        "alignment": {"rule": "symmetric", "self_": 2e-3, "decay": 2e-3},
        "optimization": {"forward": MOMENTUM, "backward": {**ADAM, "schedule": {"drop_epochs": [2]}}},
        # 4 divides neither the number of steps per epoch nor that between checkpoints.
        "runtime": {"steps_per_execution": 4},
    },
    "alternating with delay": {
        "epochs": 3,
        "alignment": {"rule": "activation", "amp": 1e-2, "sparse": 1e-2},
        "optimization": {
            "forward": {**MOMENTUM, "schedule": {"drop_epochs": [2]}},
            "backward": ADAM,
            "alternation": 1,
            "delay_epochs": 1,
        },
    },
    "noise rule": {
        "alignment": {"rule": "information", "amp": 1e-2, "decay": 1e-2, "null": 1e-2, "input": NOISE},
        "optimization": {"forward": MOMENTUM, "backward": ADAM},
        "checkpoints": {"keep": 2},
    },
    "noisy updates": {
        "alignment": {"rule": "kolen_pollack", "decay": 1e-3},
        "weight_decay": 1e-3,
        "optimization": {"forward": {**MOMENTUM, "noise": {"variance": 1e-3, "only": "backward_kernel"}}},
    },
}
"""The configurations, by kind of run."""


def write_records(folder: Path, classes: int = 4) -> None:
    """Writes small JPEGs in the layout of ImageNet: three shards for training, one for validation."""
    generator = np.random.default_rng(7)
    for name, count in {"train-0": 18, "train-1": 17, "train-2": 16, "validation-0": 14}.items():
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for _ in range(count):
                pixels = generator.integers(0, 256, (14, 12, 3), np.uint8)
                features = {
                    "image/encoded": tf.train.BytesList(value=[tf.io.encode_jpeg(pixels).numpy()]),
                    "image/class/label": tf.train.Int64List(value=[1 + int(generator.integers(classes))]),
                }
                wrapped = {
                    key: tf.train.Feature(**{"bytes_list" if "encoded" in key else "int64_list": value})
                    for key, value in features.items()
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=wrapped)).SerializeToString())


def plan(kind: str, folder: Path) -> configuration.Config:
    """Returns the configuration of a kind of run, with shuffled and augmented data."""
    base = {
        "seed": 3,
        "epochs": 4,
        "batch_size": 8,
        "data": {
            "source": "imagenet",
            "train_files": str(folder / "train-*"),
            "validation_files": str(folder / "validation-*"),
            "image_size": 8,
            "classes": 4,
            "shuffle_buffer": 16,
        },
        "model": {"name": "convnet", "filters": [3]},
        "evaluation": {"probe_examples": 4},
        "logging": {"tensorboard": False},
        "checkpoints": {"every_minutes": 0, "every_steps": 3},
    }
    return configuration.parse(configuration.merge(base, KINDS[kind]))


def print_line(line: str) -> None:
    """Prints a line and flushes it, because the next process is forked from this one."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def kill_this_process() -> None:
    """Ends this process in a way that no handler can catch."""
    os.kill(os.getpid(), signal.SIGKILL)


class Kill:
    """The moment at which a process is killed.

    Args:
        event: the counted event, one of `EVENTS`.
        count: number of the event at which the process is killed.
        delay: seconds after the start of a checkpoint write.
    """

    EVENTS = ("step", "before a file operation", "after a file operation", "inside a save")

    def __init__(self, event: str, count: int, delay: float = 0.0):
        self.event, self.count, self.delay = event, count, delay

    @classmethod
    def drawn(cls, generator: random.Random) -> Kill:
        """Draws a random moment; two fifths of them are inside a checkpoint write."""
        event = generator.choice([*cls.EVENTS, "inside a save"])
        most = {"step": 12, "inside a save": 4}.get(event, 60)
        return cls(event, generator.randint(1, most), generator.uniform(0, 0.03))

    def __str__(self) -> str:
        delay = f", after {1000 * self.delay:.1f} ms" if self.event == "inside a save" else ""
        return f"{self.event} {self.count}{delay}"

    def arm(self) -> None:
        """Sets this process to be killed at the moment."""
        if self.event == "step":
            self._after(stepping.Stepper, "__call__")
        elif self.event == "inside a save":
            self._inside_saves()
        else:
            from tensorflow.python.lib.io import file_io
            from tensorflow.python.ops import gen_io_ops, io_ops

            for owner, name in (
                (tf.io.gfile, "rename"),
                (tf.io.gfile, "makedirs"),
                (tf.io.gfile.GFile, "write"),
                (tf.io.gfile.GFile, "close"),
                (file_io, "rename_v2"),
                (file_io, "delete_file_v2"),
                (file_io, "atomic_write_string_to_file"),
                (io_ops, "save_v2"),
                (gen_io_ops, "merge_v2_checkpoints"),
                (files, "_write_local"),
                (files, "sync"),
                (files, "remove"),
            ):
                self._after(owner, name)

    def _after(self, owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            self.count -= 1
            if not self.count and self.event.startswith("before"):
                kill_this_process()
            result = original(*args, **kwargs)
            if not self.count:
                kill_this_process()
            return result

        setattr(owner, name, counted)

    def _inside_saves(self) -> None:
        original = checkpoints.CheckpointStore.save

        def save(*args):
            self.count -= 1
            if not self.count:
                threading.Thread(target=lambda: (time.sleep(self.delay), kill_this_process()), daemon=True).start()
            return original(*args)

        checkpoints.CheckpointStore.save = save


def attempt(kind: str, folder: Path, run_dir: Path, kill: Kill | None) -> str:
    """Starts or resumes a run in a new process. Returns its end: "killed", "done", or the exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if kill is not None:
                kill.arm()
            run.train(plan(kind, folder), run_dir, resume=True)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    return "done" if status == 0 else f"exit code {os.waitstatus_to_exitcode(status)}"


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a saved model, including optimizer slots, read without Keras."""
    arrays = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with zipfile.ZipFile(run_dir / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r") as file:
        file.visititems(note)
    return arrays


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Returns the rows of metrics.csv as text, without the seconds."""
    with open(run_dir / "metrics.csv") as file:
        return [{key: cell for key, cell in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def differences(one: Path, other: Path) -> list[str]:
    """Returns the differences of two finished runs: arrays, rows and file names."""
    found = []
    ours, theirs = weights(one), weights(other)
    if ours.keys() != theirs.keys():
        found.append("the names of the weights")
    found += [name for name in ours if ours[name].tobytes() != theirs.get(name, np.empty(0)).tobytes()]
    if rows(one) != rows(other):
        found.append("the rows of metrics.csv")
    left = [{str(path.relative_to(each)) for path in each.rglob("*")} for each in (one, other)]
    return [*found, *(f"the file {name}" for name in sorted(left[0] ^ left[1]))]


def trial(kind: str, folder: Path, kills: int, generator: random.Random) -> list[str]:
    """Runs a kind with and without kills, prints every attempt, and returns the errors."""
    whole, killed = folder / kind / "whole", folder / kind / "killed"
    if attempt(kind, folder, whole, None) != "done":
        return [f"{kind}: the uninterrupted run failed"]
    count = 0
    while count < kills:
        kill = Kill.drawn(generator)
        moment = str(kill)
        end = attempt(kind, folder, killed, kill)
        last = killed / "checkpoints" / "last"
        entries = sorted(os.listdir(last)) if last.is_dir() else []
        print_line(f"{kind}: {moment}: {end}; checkpoints/last holds {entries}")
        if end == "killed":
            count += 1
        elif end == "done":
            # The run finished before the moment. The remaining kills apply to another run.
            wrong = differences(whole, killed)
            if wrong:
                return [f"{kind}: after {count} kills differs in {', '.join(wrong)}"]
            shutil.rmtree(killed)
        else:
            return [f"{kind}: {moment}: {end}"]
    if attempt(kind, folder, killed, None) != "done":
        return [f"{kind}: the last attempt failed"]
    wrong = differences(whole, killed)
    steps = [int(row["step"]) for row in rows(killed)]
    print_line(f"{kind}: {count} kills; {len(weights(killed))} arrays compared; rows of steps {steps}")
    return [f"{kind}: differs in {', '.join(wrong)}"] if wrong else []


def main() -> int:
    """Runs all kinds and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="number of kills per kind of run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="run only this kind; can be repeated")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = os.fork()  # TensorFlow must not have run in this process before it forks.
        if writer == 0:
            write_records(folder)
            os._exit(0)
        os.waitpid(writer, 0)
        wrong = [line for kind in options.kind or KINDS for line in trial(kind, folder, options.kills, generator)]
    print_line(json.dumps({"seed": options.seed, "kills of each kind": options.kills, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
