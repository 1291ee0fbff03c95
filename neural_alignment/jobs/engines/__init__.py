"""The engines, one per module. `registry` builds the engine that the command line selects."""
