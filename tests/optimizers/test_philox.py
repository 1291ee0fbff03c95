"""Random words for TPUs: equality with an independent Philox in NumPy and with the generators of TensorFlow and XLA."""

import contextlib
import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers import exhaustive_unless

from optimizers import noise, philox

COUNTERS = (0, 5, 2**32 - 3, 2**33 - 1, 2**40 - 2, 2**63)


def numpy_words(pair, counter, blocks):
    """Returns the words of Philox 4x32-10 (Salmon et al. 2011, section 3.3) in Python integers."""
    words = []
    for block in range(blocks):
        place = (counter + block) % 2**64
        state = [place % 2**32, place // 2**32, 0, 0]
        keys = [int(part) % 2**32 for part in pair]
        for _ in range(10):
            first, second = 0xD2511F53 * state[0], 0xCD9E8D57 * state[2]
            state = [
                *(second // 2**32 ^ state[1] ^ keys[0], second % 2**32),
                *(first // 2**32 ^ state[3] ^ keys[1], first % 2**32),
            ]
            keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
        words += state
    return np.array(words, np.uint32)


@functools.cache
def own_function(examples, blocks, jit_compile):
    """Returns a graph of our words, compiled by XLA or not."""

    @tf.function(jit_compile=jit_compile)
    def words(pair, counter):
        return philox.words(pair, counter, tf.constant(examples), tf.constant(blocks))

    return words


def own_words(pair, counter, blocks, jit_compile=False, examples=1):
    found = own_function(examples, blocks, jit_compile)(pair, tf.constant(counter, tf.uint64))
    assert found.shape == (examples, 4 * blocks)
    return found.numpy().ravel()


@functools.cache
def kernel_function(blocks, jit_compile):
    """Returns a graph of the words of TensorFlow's generator, or of XLA's."""

    @tf.function(jit_compile=jit_compile)
    def words(pair, counter):
        return tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[4 * blocks],
            key=tf.bitcast(pair, tf.uint64)[None],
            counter=tf.stack([counter, tf.zeros([], tf.uint64)]),
            alg=tf.random.Algorithm.PHILOX.value,
            dtype=tf.uint32,
        )

    return words


def kernel_words(pair, counter, blocks, jit_compile=False):
    """Returns the words of TensorFlow's generator, or of XLA's."""
    return kernel_function(blocks, jit_compile)(pair, tf.constant(counter, tf.uint64)).numpy()


@pytest.mark.parametrize("counter", COUNTERS)
def test_words_are_those_of_philox_in_numpy(counter):
    pair = noise.key(3, "layer", 7)
    expected = numpy_words(pair.numpy(), counter, 10)
    for words in (own_words, kernel_words):
        for jit_compile in (False, True):
            np.testing.assert_array_equal(words(pair, counter, 10, jit_compile), expected)


def test_words_are_those_that_the_authors_publish():
    """The file kat_vectors of Random123: all bits of key and counter are 0."""
    words = own_words(tf.zeros(2, tf.int32), 0, 1)
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


SIZES = itertools.product((1, 3, 128, 256), (1, 127, 128, 129, 1000, 12_345), (False, True))
OFTEN = [(1, 1, False), (3, 127, False), (128, 128, True), (1, 129, False), (3, 1000, True)]


@pytest.mark.parametrize(("examples", "blocks", "jit_compile"), exhaustive_unless(SIZES, OFTEN))
def test_any_number_of_blocks_is_in_the_order_of_the_kernel(examples, blocks, jit_compile):
    pair = noise.key(1, "layer", 2**31 - 1)
    expected = kernel_words(pair, 2**32 - 100, examples * blocks)
    np.testing.assert_array_equal(own_words(pair, 2**32 - 100, blocks, jit_compile, examples), expected)


DRAWS = {kind: lambda shape, pair, first, kind=kind: noise.draw(kind, shape, pair, 0.7, first=first)
         for kind in noise.DISTRIBUTIONS}  # fmt: skip
DRAWS["resample"] = lambda shape, pair, first: noise.resample(tf.reshape(tf.range(np.prod(shape)), shape), pair)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", [(6, 4, 4, 8), (3, 33), (1, 1), (5,)])
def test_noise_for_a_tpu_is_the_noise_of_other_devices(draw, shape):
    def drawn(step, first):
        return DRAWS[draw](shape, noise.key(5, "layer", step), first)

    for step, first in ((4, 0), (2**40 + 1, 12)):
        expected = drawn(step, first)
        with philox.program_for_tpu():
            np.testing.assert_array_equal(drawn(step, first), expected)
            parts = [drawn(step, first + begin)[:2] for begin in range(0, 4, 2)]
        if draw != "resample" and shape[0] >= 4:
            np.testing.assert_array_equal(np.concatenate(parts), expected[:4])


@pytest.mark.exhaustive
@pytest.mark.parametrize("draw", exhaustive_unless(["uniform", "sign", "resample"], ("uniform", "resample")))
def test_compiled_noise_for_a_tpu_is_the_noise_of_eager_execution(draw):
    shape = (6, 4, 4, 8)
    expected = DRAWS[draw](shape, noise.key(5, "layer", 9), 3)

    def compiled(step):
        with philox.program_for_tpu():
            return DRAWS[draw](shape, noise.key(5, "layer", step), 3)

    found = tf.function(compiled, jit_compile=True)(tf.constant(9))
    np.testing.assert_allclose(found, expected, rtol=3e-7)  # XLA rounds the product with the standard deviation anew.


def operations(context):
    """Returns the kinds of operations of a draw that is traced in a context."""
    pair = noise.key(1, "layer", 2)
    with context:
        function = tf.function(lambda: noise.draw("normal", (4, 8), pair, 1.0)).get_concrete_function()
    return {operation.type for operation in function.graph.get_operations()}


def test_only_programs_for_a_tpu_use_it():
    generator = "StatelessRandomUniformFullIntV2"
    assert generator in operations(contextlib.nullcontext())
    assert generator not in operations(philox.program_for_tpu())
    assert generator in operations(contextlib.nullcontext())


def test_steps_under_a_tpu_strategy_use_it(monkeypatch):
    assert not philox.is_for_tpu()
    strategy = tf.distribute.TPUStrategy.__new__(tf.distribute.TPUStrategy)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    assert philox.is_for_tpu()
