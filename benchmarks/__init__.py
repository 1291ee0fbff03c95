"""Speed and memory, measured against plain Keras and a public peer; `make bench` runs all of it."""
