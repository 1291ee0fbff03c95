"""Registration of the classes of the package with Keras."""

import keras

PACKAGE = "neural_alignment"
"""Prefix of the registered names in `.keras` files, as in `neural_alignment>Dense`."""

serializable = keras.saving.register_keras_serializable(package=PACKAGE)
"""Decorator: lets Keras load a class or function from a `.keras` file."""
