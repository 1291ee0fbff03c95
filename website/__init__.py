"""The documentation site: `python -m website build` makes it from the guide, the docstrings and the results."""
