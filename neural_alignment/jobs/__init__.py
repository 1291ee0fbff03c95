"""Jobs, which are runs to train or functions to call; the pool that hands them out; and the engines that run them."""

from neural_alignment import quiet

quiet.import_tensorflow()  # Worker processes, of Spark and SLURM as well, import this package before TensorFlow.
