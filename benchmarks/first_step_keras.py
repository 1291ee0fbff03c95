"""The same start in plain Keras: the networks, data and optimizer of the runs of `first_step`, without our library.

The pipeline of CIFAR-10 is that of TensorFlow Datasets' guide for Keras: all images are cached and shuffled.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 128


def residual_network(width: int) -> Any:
    """Returns ResNet-18 for CIFAR-10 with weight decay (He et al. 2016)."""
    import keras
    from keras import layers

    def convolved(inputs: Any, filters: int, size: int, strides: int) -> Any:
        decay = keras.regularizers.L2(1e-4)
        convolution = layers.Conv2D(filters, size, strides, "same", use_bias=False, kernel_regularizer=decay)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(convolution(inputs))

    inputs = keras.Input((32, 32, 3))
    outputs = layers.ReLU()(convolved(inputs, width, 3, 1))
    for stage in range(4):
        filters = width * 2**stage
        for block in range(2):
            strides = 2 if stage and not block else 1
            shortcut = outputs if strides == 1 else convolved(outputs, filters, 1, strides)
            outputs = layers.ReLU()(convolved(outputs, filters, 3, strides))
            outputs = layers.ReLU()(layers.Add()([convolved(outputs, filters, 3, 1), shortcut]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(outputs)))


def cifar10() -> Any:
    """Returns shuffled and augmented batches of CIFAR-10."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def augmented(image: Any, label: Any) -> Any:
        image = (tf.cast(image, tf.float32) - [125.3, 123.0, 113.9]) / [63.0, 62.1, 66.7]
        image = tf.image.random_crop(tf.pad(image, [[4, 4], [4, 4], [0, 0]]), (32, 32, 3))
        return tf.image.random_flip_left_right(image), label

    data, info = tfds.load("cifar10", split="train", as_supervised=True, with_info=True)
    data = data.cache().shuffle(info.splits["train"].num_examples).map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(BATCH).prefetch(tf.data.AUTOTUNE)


def dense_network(width: int) -> Any:
    """Returns a network with one hidden layer for the digits of scikit-learn."""
    import keras
    from keras import layers

    return keras.Sequential([keras.Input((64,)), layers.Dense(width, "relu"), layers.Dense(10)])


def digits() -> Any:
    """Returns shuffled batches of the digits of scikit-learn."""
    import tensorflow as tf
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return tf.data.Dataset.from_tensor_slices((images / 16, labels)).shuffle(len(labels)).batch(BATCH)


TASKS = {"cifar10": (residual_network, cifar10), "digits": (dense_network, digits)}
"""Data set -> functions that return the network and the batches."""


def train(path: Path, start: float, task: str, width: int) -> None:
    """Makes one step, writes the times to a file, and exits."""
    marks = {"start": start}

    def mark(name: str) -> None:
        marks[name] = time.time()

    import keras

    mark("imports")
    network, batches = TASKS[task]
    data = batches()
    mark("data")
    model = network(width)
    mark("model")
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(5)],
    )
    mark("optimizer")

    class FirstStep(keras.callbacks.Callback):
        """Records the end of the first step."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            mark("step")
            times = os.times()
            names = list(marks)
            stages = {name: marks[name] - marks[last] for last, name in itertools.pairwise(names)}
            seconds = {"seconds": marks["step"] - start, "cpu": times.user + times.system}
            path.write_text(json.dumps({**seconds, "tracing": 0.0, "evaluation": 0.0, **stages}) + "\n")
            os._exit(0)

    model.fit(data, callbacks=[FirstStep()], verbose=0)


if __name__ == "__main__":
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As the command line of our library sets it.
    train(Path(os.environ["FIRST_STEP_FILE"]), float(os.environ["FIRST_STEP_START"]), sys.argv[1], int(sys.argv[2]))
