"""Computations of the tables and figures of Kunin et al. 2020."""
