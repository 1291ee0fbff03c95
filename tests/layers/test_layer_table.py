"""Every Keras layer with weights is aligned, or the page says why not."""

from keras_layer_table import PAGE, REASONS, aligned_layers, layers_with_weights, table

from neural_alignment.papers.pages import table_in


def test_every_keras_layer_with_weights_is_aligned_or_has_a_reason():
    """A layer of a new release of Keras fails here by name."""
    assert layers_with_weights() - aligned_layers() - set(REASONS) == set()
    assert aligned_layers() & set(REASONS) == set()


def test_the_page_has_the_table():
    lines = table_in(PAGE)
    for line in table():
        assert line in lines
