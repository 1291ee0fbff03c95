"""Analyses of networks as pure functions on arrays."""
