"""An extension of griffe, the reader of docstrings: our docstrings are text, in which `<` never begins a tag."""

from __future__ import annotations

from typing import Any

import griffe

from website.pages import escaped


class PlainText(griffe.Extension):
    """Escapes docstrings for Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of an object that has been read."""
        if obj.docstring:
            obj.docstring.value = escaped(obj.docstring.value)
