"""Metaparameter search: spaces and plans in YAML, proposals by hyperopt, trials that are ordinary run directories."""
