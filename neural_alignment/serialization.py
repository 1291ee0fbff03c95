"""The name under which Keras saves the classes of the package."""

import keras

PACKAGE = "neural_alignment"
"""Prefix of the registered names in `.keras` files, as in `neural_alignment>Dense`."""

serializable = keras.saving.register_keras_serializable(package=PACKAGE)
"""Class decorator: Keras can load the class, or function, from a `.keras` file."""
