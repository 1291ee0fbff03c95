"""Tables in pages of the guide that are made by a script, between two comments."""

from neural_alignment.papers.pages import replace_table, table_in

__all__ = ["replace_table", "table_in"]
