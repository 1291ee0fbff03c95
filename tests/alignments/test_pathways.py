"""Centring and normalisation of a signal, by the definitions of Appendix B.1.3, in every dtype."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, center_batch, center_features, normalize_features, two_replicas

from neural_alignment.alignments.pathways import batch_center, feature_center, feature_normalize

DTYPES = ("float64", "float32", "bfloat16", "float16")
PAIRS = [
    (feature_center, center_features),
    (feature_normalize, normalize_features),
    (batch_center, center_batch),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5), (4, 2, 3, 5)])
@pytest.mark.parametrize(("ours", "reference"), PAIRS, ids=lambda f: f.__name__)
def test_each_is_its_definition_over_all_features_or_over_the_batch(rng, ours, reference, shape, dtype):
    signal = tf.cast(rng.normal(size=shape) + 0.5, dtype)
    result = ours(signal)
    assert result.dtype == dtype
    assert_close(tf.cast(result, tf.float64).numpy(), reference(tf.cast(signal, tf.float64).numpy()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_example_is_normalised_to_zero_with_a_finite_gradient(value, dtype):
    """As behind a ReLU that is off at every position."""
    signal = tf.fill([2, 3, 4], tf.cast(value, dtype))
    with tf.GradientTape() as tape:
        tape.watch(signal)
        result = feature_normalize(signal)
        total = tf.reduce_sum(result[:, :2])
    assert not np.any(tf.cast(result, tf.float32))
    gradient = np.asarray(tf.cast(tape.gradient(total, signal), tf.float64))
    # 1e6 times the centred upstream gradient: more than float16 holds.
    if tf.as_dtype(dtype) != tf.float16:
        assert_close(gradient[:, 0], np.full((2, 4), 1e6 / 3), dtype)
    assert not np.isnan(gradient).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_example_is_normalised_to_norm_one(dtype):
    """Its energy, 1.44 million, is beyond the largest number of float16."""
    signal = tf.constant([[300.0, -300.0] * 8], dtype)
    assert_close(np.linalg.norm(tf.cast(feature_normalize(signal), tf.float64)), 1.0, dtype)


def test_a_norm_below_a_millionth_is_not_blown_up():
    signal = np.array([[1e-8, -1e-8], [1.0, -1.0]])
    expected = [[1e-2, -1e-2], [0.5**0.5, -(0.5**0.5)]]
    assert_close(feature_normalize(tf.constant(signal)), expected)


@pytest.mark.parametrize("examples", [4, 3, 1])
def test_the_batch_is_centred_over_all_replicas_also_if_they_have_unequal_parts(rng, examples):
    """A batch of 4 has 2 examples on each of two replicas. A smaller last one has 2 and 1, or 1 and 0."""
    whole = rng.normal(size=(examples, 3)) + 5
    strategy = two_replicas()
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(whole).batch(4))

    @tf.function(autograph=False)
    def in_graph(iterator):
        return strategy.run(batch_center, args=(next(iterator),))  # The graph does not know the number of examples.

    (eager,) = (strategy.run(batch_center, args=(values,)) for values in batches)
    for centred in (eager, in_graph(iter(batches))):
        parts = strategy.experimental_local_results(centred)
        assert [len(part) for part in parts] == [-(-examples // 2), examples // 2]
        assert_close(np.concatenate(parts), center_batch(whole))
