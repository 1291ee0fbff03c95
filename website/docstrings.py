"""An extension of griffe, which reads the docstrings for mkdocstrings."""

from __future__ import annotations

from typing import Any

import griffe

from website.reference import markdown


class Prose(griffe.Extension):
    """Prepares docstrings for Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of an object that has been read."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
