"""Jobs (runs to train, functions to call), plans of jobs with stored results, and the pool and engines of jobs."""

from neural_alignment import quiet

quiet.import_tensorflow()  # Worker processes, of Spark and SLURM as well, import this package before TensorFlow.
