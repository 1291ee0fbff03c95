"""Every Keras layer with weights is aligned, or the page says why not."""

import inspect
import itertools

from helpers import table_in
from keras_layer_table import PAGE, REASONS, WITHOUT_WEIGHTS, aligned_layers, layers, table


def test_every_keras_layer_is_aligned_or_has_a_reason_or_has_no_weights():
    """A layer of a new release of Keras fails here by name."""
    lists = [aligned_layers(), set(REASONS), WITHOUT_WEIGHTS]
    assert set(layers()) - set().union(*lists) == set()
    assert [a & b for a, b in itertools.combinations(lists, 2)] == [set()] * 3


def test_layers_without_weights_create_none():
    kinds = {name: kind for name, kind in layers().items() if name in WITHOUT_WEIGHTS - {"Layer"}}
    assert len(kinds) > 80
    calls = ("add_weight(", "add_variable(", "Variable(")
    assert [name for name, kind in kinds.items() if any(call in inspect.getsource(kind) for call in calls)] == []


def test_the_page_has_the_table():
    lines = table_in(PAGE)
    for line in table():
        assert line in lines
