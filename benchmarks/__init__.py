"""Benchmarks of speed and memory, compared with plain Keras and a public library. `make bench` runs all of them."""
