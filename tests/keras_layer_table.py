"""Makes the table of `docs/layers.md`, every Keras layer with weights: `python tests/keras_layer_table.py`."""

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
_CONSTANT = "its weights are statistics of the data, and are not trained"

REASONS = {
    "AdditiveAttention": "no aligned form: its scores are products with one vector",
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
    "JaxLayer": _FOREIGN,
    "LSTMCell": _CELL.format(layer="LSTM"),
    "LayerNormalization": _NORMALIZATION,
    "Normalization": _CONSTANT,
    "PReLU": _ELEMENTWISE,
    "Pipeline": "align the layers in it; use `keras.Sequential`",
    "RMSNormalization": _NORMALIZATION,
    "RNN": "runs any cell; align `SimpleRNN`, `LSTM` or `GRU`",
    "ReversibleEmbedding": "no aligned form: embedding and readout share one matrix; use `Embedding` and `Dense`",
    "STFTSpectrogram": "a fixed Fourier transform",
    "SimpleRNNCell": _CELL.format(layer="SimpleRNN"),
    "SpectralNormalization": "changes the kernel of the layer in it at each call",
    "StackedRNNCells": "stacks of cells; use several `SimpleRNN`, `LSTM` or `GRU` layers",
    "TFSMLayer": _FOREIGN,
    "TimeDistributed": "the layer in it is aligned; `layers.TimeDistributed` calls it once for all steps",
    "TorchModuleWrapper": _FOREIGN,
    "Wrapper": "a base class",
}
"""Keras layer that has weights or contains layers with weights -> the reason why it has no aligned form."""

WITHOUT_WEIGHTS = {
    "Activation", "ActivityRegularization", "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D",
    "AdaptiveAveragePooling3D", "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D", "Add",
    "AlphaDropout", "AugMix", "AutoContrast", "Average", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
    "CategoryEncoding", "CenterCrop", "Concatenate", "ContrastLimitedAdaptiveHistogramEqualization", "Cropping1D",
    "Cropping2D", "Cropping3D", "CutMix", "Discretization", "Dot", "Dropout", "ELU", "Equalization", "Flatten",
    "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "HashedCrossing", "Hashing", "Identity",
    "InputLayer", "IntegerLookup", "Lambda", "Layer", "LeakyReLU", "Masking", "MaxNumBoundingBoxes", "MaxPooling1D",
    "MaxPooling2D", "MaxPooling3D", "Maximum", "MelSpectrogram", "Minimum", "MixUp", "Multiply", "Permute",
    "RandAugment", "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomCrop",
    "RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue",
    "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation",
    "RandomSharpness", "RandomShear", "RandomTranslation", "RandomZoom", "ReLU", "RepeatVector", "Rescaling",
    "Reshape", "Resizing", "Softmax", "Solarization", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    "StringLookup", "Subtract", "TextVectorization", "UnitNormalization", "UpSampling1D", "UpSampling2D",
    "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
}  # fmt: skip
"""Keras layers that have no weights and contain no layers with weights. A new layer is in none of the lists."""


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


def table():
    """Returns the lines of the table."""
    aligned = aligned_layers()
    names = sorted(set(layers()) - WITHOUT_WEIGHTS)
    rows = [f"| `{name}` | {'aligned' if name in aligned else REASONS[name]} |" for name in names]
    return ["| layer of Keras | |", "|---|---|", *rows]


def main():
    """Replaces the table of the page."""
    replace_table(PAGE, table())


if __name__ == "__main__":
    main()
