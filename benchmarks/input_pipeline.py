"""The ImageNet pipeline: CPU time of the fused decoder, and the time for which training waits for data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import Benchmark, Check, Report, Samples, UnavailableError, interleave, middle, progress, table

FULL = {
    "decoding": {"images": 1000, "image": 224, "rounds": 15},
    "training": {"image": 112, "width": 32, "batch": 32, "steps": 25, "rounds": 2},
}
SMALL = {
    "decoding": {"images": 20, "image": 32, "rounds": 2},
    "training": {"image": 32, "width": 4, "batch": 4, "steps": 4, "rounds": 1},
}
SPEEDUP = 1.25
"""Limit on the speed of the fused decoder relative to decoding the whole image."""
WAITING = 0.05
"""Limit on the 95th percentile of the waits, as a fraction of the step time."""
WHOLE = ", whole preprocessing"
"""Suffix of the names of decoders that are timed with the rest of the preprocessing."""
FOLDER = "IMAGENET_SAMPLE_DIR"
"""Environment variable with the folder of the images."""


def decode_then_crop(encoded: Any, window: Callable[[Any, Any], Any]) -> Any:
    """Returns the same as `neural_alignment.data.imagenet.decode_jpeg_window`, but decodes the whole image.

    Args:
        encoded: scalar string, the bytes of a JPEG file.
        window: a function of the image's height and width that returns `(top, left, height, width)` in pixels.

    Returns:
        `(height, width, 3)` uint8.
    """
    import tensorflow as tf

    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    shape = tf.shape(image)
    top, left, height, width = window(shape[0], shape[1])
    return tf.slice(image, [top, left, 0], [height, width, 3])


def measure(samples: Samples, sizes: dict[str, Any]) -> None:
    """Times decoding, then training.

    Raises:
        UnavailableError: if the images are unavailable.
    """
    files = str(folder() / "train-*")
    decoding, training = sizes["decoding"], sizes["training"]
    if samples.rounds("decoding") < decoding["rounds"]:
        interleave(samples, "decoding", decoders(files, decoding), decoding["rounds"], warm_up=1)
    done = samples.rounds("training")
    with progress("training", training["rounds"], done) as bar:
        for _ in range(done, training["rounds"]):
            samples.add("training", {"run": waits(files, training)})
            bar.update()


def folder() -> Path:
    """Returns the folder of ImageNet's TFRecords.

    Raises:
        UnavailableError: if there is none.
    """
    named = os.environ.get(FOLDER)
    if not named or not list(Path(named).glob("train-*")):
        raise UnavailableError(f"no images: set {FOLDER} to a folder of ImageNet's TFRecords, train-* and validation-*")
    return Path(named)


def decoders(files: str, size: dict[str, Any]) -> dict[str, Callable[[], dict[str, float]]]:
    """Returns, by name, functions that decode all images once and return the CPU seconds per image.

    The windows are drawn beforehand, except when the whole preprocessing is timed.
    """
    import tensorflow as tf

    from neural_alignment.data import imagenet

    encoded = _jpegs(files, size["images"])
    seeds = [tf.constant([0, place], tf.int64) for place in range(len(encoded))]
    windows = [
        tf.stack(imagenet.random_window(*tf.unstack(tf.io.extract_jpeg_shape(bytes_))[:2], seed))
        for bytes_, seed in zip(encoded, seeds, strict=True)
    ]
    images = tf.data.Dataset.from_tensor_slices((encoded, tf.stack(windows), tf.stack(seeds)))

    def pass_over(decode: Callable[..., Any], prepare: Callable[..., Any]) -> Callable[[], dict[str, float]]:
        # Everything else is the same for both, including the detection of JPEG files.
        with mock.patch.object(imagenet, "decode_jpeg_window", decode):
            decoded = images.map(prepare)

        def once() -> dict[str, float]:
            start = time.process_time()
            for _ in decoded.batch(50):
                pass
            return {"seconds": (time.process_time() - start) / len(encoded)}

        return once

    def decoding_only(bytes_: Any, window: Any, _: Any) -> Any:
        # Returns the shape, because crops of different sizes cannot form a batch.
        return tf.shape(imagenet.decode_window(bytes_, lambda *_: tf.unstack(window)))

    def whole(bytes_: Any, _: Any, seed: Any) -> Any:
        return imagenet.resnet_train(bytes_, seed, size["image"])

    functions = {"fused": imagenet.decode_jpeg_window, "decode then crop": decode_then_crop}
    return {name: pass_over(decode, decoding_only) for name, decode in functions.items()} | {
        f"{name}{WHOLE}": pass_over(decode, whole) for name, decode in functions.items()
    }


def _jpegs(files: str, images: int) -> list[bytes]:
    """Returns the first JPEG files in the TFRecords, without ImageNet's one PNG."""
    import tensorflow as tf

    feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    records = tf.data.TFRecordDataset(sorted(tf.io.gfile.glob(files)))
    encoded = records.map(lambda record: tf.io.parse_single_example(record, feature)["image/encoded"])
    return list(encoded.filter(tf.io.is_jpeg).take(images).as_numpy_iterator())


def waits(files: str, size: dict[str, Any]) -> dict[str, float]:
    """Trains ResNet-18 with the input pipeline of a run, and measures how long training waits for data.

    Returns:
        Seconds per batch: the pipeline without training, by the clock (`pipeline`) and summed over all cores (`pipeline
        CPU`); a step without the pipeline (`step`); a step during training (`step in training`); and the wait for a
        batch during training, its median (`wait`) and 95th percentile (`wait 95 %`).
    """
    import numpy as np

    from benchmarks import contenders
    from neural_alignment import data
    from neural_alignment.models import resnet

    dataset = data.load(
        "imagenet",
        batch_size=size["batch"],
        seed=0,
        train_files=files,
        validation_files=str(Path(files).with_name("validation-*")),
        image_size=size["image"],
        shuffle_buffer=100,
    )
    shape = (size["image"], size["image"], 3)
    model = contenders.aligned(
        lambda rule: resnet(18, 1, 1000, shape, rule, width=size["width"]), contenders.RULES["symmetric"].rule
    )
    step = contenders.stepper(model, next(iter(dataset.train())))
    step()
    step()
    without_pipeline = [step()["seconds"] for _ in range(max(size["steps"] // 5, 2))]
    wall, cpu = _drain(dataset, size["steps"])
    waited, stepped = [], []
    batches = iter(dataset.train())
    next(batches)
    model.train_on_batch(*next(batches))  # Trace now: `train_on_batch` uses another function than `fit`.
    for _ in range(size["steps"]):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        model.train_on_batch(*batch)
        waited.append(ready - start)
        stepped.append(time.perf_counter() - ready)
    return {
        "pipeline": wall,
        "pipeline CPU": cpu,
        "step": float(np.median(without_pipeline)),
        "step in training": float(np.median(stepped)),
        "wait": float(np.median(waited)),
        "wait 95 %": float(np.quantile(waited, 0.95)),
    }


def _drain(dataset: Any, batches: int) -> tuple[float, float]:
    """Returns the wall-clock and CPU seconds per batch of the pipeline without training."""
    iterator = iter(dataset.train())
    next(iterator)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(iterator)
    return (time.perf_counter() - wall) / batches, (time.process_time() - cpu) / batches


def report(samples: Samples, sizes: dict[str, Any]) -> Report:
    """Returns the tables of decoding and of training."""
    decoding, training = sizes["decoding"], sizes["training"]
    speedup, low, high = middle(samples.ratios("decoding", "decode then crop", "fused"))
    prepared = middle(samples.ratios("decoding", f"decode then crop{WHOLE}", f"fused{WHOLE}"))[0]
    rows = []
    for name in ("fused", "decode then crop", f"fused{WHOLE}", f"decode then crop{WHOLE}"):
        seconds = middle(samples.values("decoding", name))[0]
        rows.append([name, 1000 * seconds, f"{1 / seconds:.0f}"])
    text = (
        f"**Decoding**: {decoding['images']} JPEG files of the sample, with random crops drawn beforehand; "
        f"{samples.rounds('decoding')} rounds. Decoding only the crop is {speedup:.2f} times (quartiles {low:.2f} to "
        f"{high:.2f}) as fast as decoding the image and cropping; the limit is {SPEEDUP}. The whole preprocessing, "
        f"from drawing the crop to normalised pixels at {decoding['image']} x {decoding['image']}, is {prepared:.2f} "
        "times as fast.\n\n" + table(["decoder", "CPU time (ms per image)", "images per second and core"], rows)
    )
    checks = [Check("speed of the fused decoder over decode-then-crop", speedup, SPEEDUP, at_least=True)]
    training_text, check = _training(samples, training)
    return Report(f"{text}\n\n{training_text}", [*checks, check])


def _training(samples: Samples, size: dict[str, Any]) -> tuple[str, Check]:
    def seconds(quantity: str) -> float:
        return middle(samples.values("training", "run", quantity))[0]

    share = seconds("wait 95 %") / seconds("step in training")
    quantities = ("pipeline", "pipeline CPU", "step", "step in training", "wait", "wait 95 %")
    rows = [[quantity, 1000 * seconds(quantity), f"{size['batch'] / seconds(quantity):.0f}"] for quantity in quantities]
    text = (
        f"**Training**: ResNet-18 of width {size['width']} at {size['image']} pixels, batch {size['batch']}, symmetric "
        f"alignment, with the pipeline of a run (TFRecords, shuffled). The pipeline without training takes "
        f"{seconds('pipeline') / seconds('step'):.2f} of the time of a step without the pipeline. During training, "
        f"95 % of the waits for a batch are shorter than {share:.1%} of a step; the limit is {WAITING:.0%}.\n\n"
        + table(["quantity", "ms per batch", "images per second"], rows)
    )
    return text, Check("95 % of the waits for a batch over the time of a step", share, WAITING)


BENCHMARK = Benchmark("input_pipeline", "Input pipeline", 2, FULL, SMALL, measure, report)
