"""Worker of `peer` for this library: runs single steps on TensorFlow on request through a pipe."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys


def main() -> None:
    """Reports the network's size, then runs and times a step for each name of a contender it reads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("width", "image", "batch", "threads"):
        parser.add_argument(f"--{option}", type=int, required=True)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    tf.get_logger().setLevel("ERROR")

    from benchmarks import contenders, peer
    from neural_alignment.models import resnet

    shape = (options.image, options.image, 3)
    build = functools.partial(resnet, 18, 1, 10, shape, stem="cifar", width=options.width)
    batch = contenders.batch_of((options.batch, *shape))
    models = {rule: contenders.aligned(build, contenders.RULES[rule].rule) for rule in peer.COMPARED}
    models |= contenders.backpropagation(build)
    steps = {name: contenders.stepper(model, batch) for name, model in models.items()}
    parameters = sum(weight.shape.num_elements() for weight in models[contenders.BASELINE].trainable_variables)
    facts = {"versions": {"tensorflow": tf.__version__}, "parameters": parameters, "contenders": list(steps)}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(steps[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
