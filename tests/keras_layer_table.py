"""Makes the table of `docs/layers.md`, every Keras layer with weights: `python tests/keras_layer_table.py`."""

import functools
import inspect
from pathlib import Path

import keras

from neural_alignment.layers import ALIGNED_FORMS
from neural_alignment.papers.pages import replace_table

PAGE = Path(__file__).parent.parent / "docs" / "layers.md"

_ELEMENTWISE = "its weights only scale each unit, so they act on the error as a diagonal matrix"
_NORMALIZATION = (
    "its weights only scale and shift each unit; the error also passes through the mean or variance over units or "
    "examples, without other weights"
)
_CELL = "a cell; align the layer `{layer}` that runs it over time"
_FOREIGN = "runs a network of another library, whose backward pass is not that of Keras"
_CONVOLUTIONAL_CELL = (
    "no aligned form: the aligned recurrent layers use matrix products in each time step, not convolutions"
)
_CONSTANT = "its weights are tables or statistics of the data, and are not trained"

_SIGNS = ("add_weight(", "self.layer =", "self.cell", "forward_layer", "EinsumDense(", "TFSMLayer", "torch_module")
"""Texts in the source of layers that create weights or contain another layer."""

REASONS = {
    "AdditiveAttention": _ELEMENTWISE,
    "Attention": "its only weight is a number that scales the scores",
    "BatchNormalization": _NORMALIZATION,
    "Bidirectional": "the recurrent layers in it are aligned",
    "ConvLSTM1D": _CONVOLUTIONAL_CELL,
    "ConvLSTM2D": _CONVOLUTIONAL_CELL,
    "ConvLSTM3D": _CONVOLUTIONAL_CELL,
    "Embedding": "its inputs are integers; no error passes through it",
    "FlaxLayer": _FOREIGN,
    "GRUCell": _CELL.format(layer="GRU"),
    "GroupNormalization": _NORMALIZATION,
    "IntegerLookup": _CONSTANT,
    "JaxLayer": _FOREIGN,
    "LSTMCell": _CELL.format(layer="LSTM"),
    "LayerNormalization": _NORMALIZATION,
    "Normalization": _CONSTANT,
    "PReLU": _ELEMENTWISE,
    "RMSNormalization": _NORMALIZATION,
    "RNN": "runs any cell; align `SimpleRNN`, `LSTM` or `GRU`",
    "ReversibleEmbedding": "no aligned form: embedding and readout share one matrix; use `Embedding` and `Dense`",
    "STFTSpectrogram": "a fixed Fourier transform",
    "SimpleRNNCell": _CELL.format(layer="SimpleRNN"),
    "SpectralNormalization": "changes the kernel of the layer in it at each call",
    "StackedRNNCells": "stacks of cells; use several `SimpleRNN`, `LSTM` or `GRU` layers",
    "StringLookup": _CONSTANT,
    "TFSMLayer": _FOREIGN,
    "TimeDistributed": "the layer in it is aligned; `layers.TimeDistributed` calls it once for all steps",
    "TorchModuleWrapper": _FOREIGN,
    "Wrapper": "a base class",
}
"""Keras layer that creates weights or contains another layer -> the reason why it has no aligned form."""


def layers():
    """Returns name -> class of the layers of Keras, each once: some have a second name."""
    kinds = {name: kind for name, kind in vars(keras.layers).items() if inspect.isclass(kind)}
    return {
        name: kind
        for name, kind in kinds.items()
        if issubclass(kind, keras.layers.Layer) and (name == kind.__name__ or kind.__name__ not in kinds)
    }


def aligned_layers():
    """Returns the names of the layers of Keras that have an aligned form."""
    return {name for name, kind in layers().items() if kind in ALIGNED_FORMS}


_source = functools.cache(inspect.getsource)


@functools.cache
def layers_with_weights():
    """Returns the names of the layers of Keras that create weights or contain another layer."""
    found = set()
    for name, kind in layers().items():
        bases = kind.__mro__[: kind.__mro__.index(keras.layers.Layer)]
        source = "".join(_source(base) for base in bases if base.__module__.startswith("keras."))
        if any(text in source for text in _SIGNS):
            found.add(name)
    return found


def table():
    """Returns the lines of the table."""
    aligned = aligned_layers()
    names = sorted(aligned | layers_with_weights())
    rows = [f"| `{name}` | {'aligned' if name in aligned else REASONS[name]} |" for name in names]
    return ["| layer of Keras | |", "|---|---|", *rows]


def main():
    """Replaces the table of the page."""
    replace_table(PAGE, table())


if __name__ == "__main__":
    main()
