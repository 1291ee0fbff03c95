"""Jobs (runs to train or functions to call), the pool and the engines that run them, and plans with stored results."""

from neural_alignment import quiet

quiet.import_tensorflow()  # Worker processes, also those of Spark and SLURM, import this package before TensorFlow.
