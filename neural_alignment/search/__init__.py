"""Metaparameter search: spaces and plans in YAML, proposals by hyperopt, trials that are ordinary run directories."""

from neural_alignment import quiet

quiet.import_tensorflow()  # Processes that run trials, of Spark as well, import this package before TensorFlow.
