"""Compiles training steps for Cloud TPU and keeps the results in compiled.csv."""
