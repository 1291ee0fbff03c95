"""The computations of the paper: networks trained for its tables and figures, each result kept as a piece."""
