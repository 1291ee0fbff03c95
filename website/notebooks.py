"""Pages of the site from notebooks with their stored outputs."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its figures: name of the file -> PNG.

    The figures are in a folder with the name of the notebook.
    """
    parts, figures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        language = "bash" if source.startswith("%%bash") else "python"
        parts.append(_fenced(source.removeprefix("%%bash"), language))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}/{len(figures) + 1}.png"
                figures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Figure {len(figures)}]({name})")
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]))
            else:
                parts.append(_fenced(_text(output), "text"))
    return "\n\n".join(part for part in parts if part) + "\n", figures


def title(path: Path) -> str:
    """Returns the first heading of a notebook."""
    return re.search(r"^# (.+)$", markdown(path)[0], re.MULTILINE)[1]


def with_formulas(text: str) -> str:
    """Returns Markdown in which formulas between dollar signs are MathML, which browsers draw without a script."""

    def drawn(formula: re.Match) -> str:
        block, inline = formula.groups()
        if block:
            return convert(html.unescape(block), display="block")
        # Python-Markdown would take a formula at the begin of a line for a paragraph.
        return f"<span>{convert(html.unescape(inline))}</span>"

    return MATH.sub(drawn, text)


def _text(output: dict[str, Any]) -> str:
    """Returns the text of an output; empty if it has none."""
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


def _fenced(text: str, language: str) -> str:
    """Returns a block of code; empty without text."""
    return f"```{language}\n{text.strip(chr(10))}\n```" if text.strip() else ""
