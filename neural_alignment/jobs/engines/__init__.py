"""The engines, one per module; `registry` builds the one that the command line names."""
