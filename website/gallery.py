"""The gallery: every figure in `results/`, with its caption and the command that makes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from neural_alignment.papers.commands import ITEMS
from neural_alignment.papers.registry import Item
from website.pages import ROOT, heading

RESULTS = ROOT / "results"


class Picture(NamedTuple):
    """A figure.

    Attributes:
        path: its file in the repository.
        title: one line.
        command: the command that makes it.
        caption: the text of its Markdown file, without tables.
    """

    path: Path
    title: str
    command: str
    caption: str


def pictures() -> dict[str, list[Picture]]:
    """Returns the folders with figures -> their figures.

    Raises:
        LookupError: if neither the tables and figures of the papers nor the README of its folder has its command.
    """
    found = sorted((path.relative_to(RESULTS) for path in RESULTS.rglob("*.png")), key=_order)
    folders = sorted({path.parts[0] for path in found}, key=lambda name: ("_" not in name, name))
    return {name: [_picture(RESULTS / path) for path in found if path.parts[0] == name] for name in folders}


def page() -> str:
    """Returns the page of all figures. Its links are relative to `docs/`."""
    lines = ["# Gallery", "", "All figures in [`results/`](../results), each with the command that makes it.", ""]
    for folder, found in pictures().items():
        lines += [f"## {heading(RESULTS / folder / 'README.md')}", ""]
        lines += [f"[`results/{folder}`](../results/{folder}) describes the runs.", ""]
        for each in found:
            place = f"../{each.path.relative_to(ROOT).as_posix()}"
            lines += [f"### {each.title}", "", f"![{each.title}]({place})", ""]
            lines += [each.caption, ""] if each.caption else []
            lines += ["```bash", each.command, "```", ""]
            made = [each.path.with_suffix(suffix) for suffix in (".md", ".csv")]
            files = [f"[`{path.name}`](../{path.relative_to(ROOT).as_posix()})" for path in made if path.exists()]
            lines += [f"Numbers: {', '.join(files)}", ""] if files else []
    return "\n".join(lines)


def _order(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts figures by their numbers, and those of a supplement last."""
    parts = re.findall(r"\d+|[^\d]+", path.with_suffix("").as_posix())
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _picture(path: Path) -> Picture:
    """Returns the figure of a file."""
    text = path.with_suffix(".md")
    caption = _prose(text.read_text(encoding="utf-8")) if text.exists() else ""
    name = path.relative_to(RESULTS).with_suffix("").as_posix()
    for item in ITEMS:
        if f"{item.paper}/{item.file}" == name:
            caption += f"\n\nIt needs {item.needs}." if item.needs else ""
            return Picture(path, _title(item), f"neural-alignment {item.kind} {item.name}{_options(item)}", caption)
    title = name.partition("/")[2].replace("/", ", ").replace("_", " ").capitalize()
    return Picture(path, title, _command(path), caption)


def _title(item: Item) -> str:
    """Returns the number of a figure, if it has one, and its title."""
    number = item.name.partition("/")[2].replace("_", ", ")
    return f"Figure {number}: {item.title}" if re.match(r"S?\d", number) else item.title[:1].upper() + item.title[1:]


def _options(item: Item) -> str:
    """Returns the options with which a figure is made from committed files."""
    if item.needs:
        # The last alternative, without the remark in brackets.
        return " " + item.needs.rpartition(", or ")[2].partition(" (")[0]
    runs = f"results/{item.paper}/runs"
    committed = f" --runs {runs}" if (ROOT / runs).is_dir() else ""
    return f"{' --lab' if item.profile(lab=False) != 'lab' else ''}{committed}" if "lab" in item.cells else ""


def _prose(text: str) -> str:
    """Returns the paragraphs of a Markdown text that are not tables or headings, without introductions of tables."""
    lines = [line for line in text.splitlines() if not line.startswith(("|", "#", "<!--"))]
    prose = re.sub(r"(^|(?<=[.:] ))[^.:\n]*:$", "", "\n".join(lines), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", prose).strip()


def _command(path: Path) -> str:
    """Returns the command in the paragraph or row of the folder's README that names a file, where `*` is any text."""
    folder, _, name = path.relative_to(RESULTS).as_posix().partition("/")
    parts = re.split(r"\n\n|\n(?=\|)", (RESULTS / folder / "README.md").read_text(encoding="utf-8"))
    for part in parts:
        patterns = [name.replace(".", r"\.").replace("*", ".*") for name in re.findall(r"`([\w*/]+\.[\w*]+)`", part)]
        commands = re.findall(r"`((?:neural-alignment|make) [^`]+)`", part)
        if commands and any(re.fullmatch(pattern, name) for pattern in patterns):
            return commands[0]
    raise LookupError(f"results/{folder}/README.md names no command for {name}")
