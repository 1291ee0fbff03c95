"""The pages of the site, with links that work on GitHub as well.

The Markdown files of the guide are written for GitHub: links lead to files of the repository. The site has the same
folders. A link to a file that is not a page of the guide adds a page with its text, and a link to a folder adds a page
that lists its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from website import notebooks

ROOT = Path(__file__).parent.parent

HOME, GLOSSARY, GALLERY, KEYS = "README.md", "docs/glossary.md", "docs/gallery.md", "docs/keys.md"

NAVIGATION: dict[str, dict[str, str]] = {
    "Guide": {
        "First run": "docs/first_run.md",
        "Training from a YAML file": "docs/training.md",
        "Your own model": "docs/keras.md",
        "Your own rule": "docs/plugins.md",
        "Layers": "docs/layers.md",
        "Optimizers": "docs/optimizers.md",
        "Data": "docs/data.md",
        "Searches": "docs/search.md",
        "Devices": "docs/devices.md",
        "SLURM clusters": "docs/clusters.md",
        "Cloud TPU": "docs/tpu.md",
        "Neural fits": "docs/neural_fit.md",
    },
    "Notebooks": {"Overview": "examples/README.md"},
    "Rules": {
        "How each rule works": "docs/how_rules_work.md",
        "Rules and primitives": "docs/rules.md",
        "Introduction to feedback alignment": "docs/feedback_alignment.md",
    },
    "Papers": {
        "Two routes": "docs/two_routes.md",
        "The mechanism of feedback alignment": "docs/fa_mechanism.md",
        "Wide networks": "docs/wide_networks.md",
        "Published code": "docs/published_code.md",
        "Accuracy and speed": "docs/results.md",
    },
    "Reference": {},
    "More": {
        "Contributing": "CONTRIBUTING.md",
        "Changelog": "CHANGELOG.md",
    },
}
"""Section -> title of a page -> its file. Further pages in `docs/` and notebooks are added with their own titles."""

GENERATED = {"Guide": {"All keys": KEYS}, "Papers": {"Gallery": GALLERY}, "More": {"Glossary": GLOSSARY}}
"""The same for pages that are not files of the repository."""

SEPARATE_PAGES = {GLOSSARY: (HOME, "Glossary"), KEYS: ("docs/training.md", "All keys")}
"""Page of the site that begins with a section of a file of the repository -> the file and the title of the section."""

LANGUAGES = {
    ".yaml": "yaml",
    ".cff": "yaml",
    ".py": "python",
    ".toml": "toml",
    ".txt": "text",
    ".sh": "bash",
    ".sbatch": "bash",
}
"""Extension of a file that is shown as a page of code -> its language. Files without extension are shown as text."""

LISTED = ("configs", "results")
"""Folders whose lists of files contain links to the files."""

LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


class MissingTargetError(Exception):
    """A link to a file or section that does not exist."""


def navigation() -> dict[str, dict[str, str]]:
    """Returns `NAVIGATION`, completed by further pages of `docs/` and by the notebooks, without missing pages."""
    named = {path for pages in NAVIGATION.values() for path in pages.values()}
    found = {folder: sorted((ROOT / folder).glob(kind)) for folder, kind in (("docs", "*.md"), ("examples", "*.ipynb"))}
    guide = {heading(path): path for path in found["docs"] if path.relative_to(ROOT).as_posix() not in named}
    added = {"Guide": guide, "Notebooks": {notebooks.title(path): path for path in found["examples"]}}
    sections = {}
    for name, pages in NAVIGATION.items():
        more = {title: path.relative_to(ROOT).as_posix() for title, path in added.get(name, {}).items()}
        there = [(title, path) for title, path in {**pages, **more}.items() if (ROOT / path).exists()]
        sections[name] = {**dict(there), **GENERATED.get(name, {})}
    return sections


def heading(page: Path) -> str:
    """Returns the first heading of a page."""
    return re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)[1]


def section(text: str, title: str) -> tuple[str, str]:
    """Returns a section of a Markdown text, and the text without it."""
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise MissingTargetError(f"no section {title!r}")
    return found[0], text.replace(found[0], "")


def slug(title: str) -> str:
    """Returns the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Returns the anchors of the headings of a Markdown text."""
    return {slug(title) for title in re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)}


def links(text: str) -> list[str]:
    """Returns the targets of the links of a Markdown text to files of the repository."""
    found = [match["target"] for match in LINK.finditer(CODE.sub("", text))]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def resolve(page: str, target: str) -> tuple[str, str]:
    """Returns the file or folder of the repository that a link of a page leads to, and the anchor.

    Raises:
        MissingTargetError: if there is none.
    """
    path, _, anchor = target.partition("#")
    found = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
    if path.startswith("/") or found.startswith(".."):
        raise MissingTargetError(f"{page}: {target} leads out of the repository")
    if not (ROOT / found).exists():
        raise MissingTargetError(f"{page}: there is no {found}")
    if anchor and anchor not in anchors((ROOT / found).read_text(encoding="utf-8")):
        raise MissingTargetError(f"{page}: {found} has no heading #{anchor}")
    return found, anchor


class Site:
    """Writes pages, and everything that they link to, into a folder.

    Args:
        folder: the folder with the Markdown of the site, which is emptied first by the caller.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.titles = {path: title for pages in navigation().values() for title, path in pages.items()}
        self.written: dict[str, str] = {}
        """File or folder of the repository -> its file on the site."""
        self.figures: set[str] = set()
        """Figures of notebooks, which are no files of the repository."""

    def add_guide(self) -> None:
        """Writes README, the glossary, and the pages of the guide that exist as files."""
        glossary, _ = section((ROOT / HOME).read_text(encoding="utf-8"), "Glossary")
        self.written[HOME] = "index.md"
        self.write(HOME, "index.md", f"---\nhide: [navigation]\n---\n\n{_rest(HOME)}")
        self.write(HOME, GLOSSARY, glossary.replace("## ", "# ", 1))
        for path in self.titles:
            if (ROOT / path).exists():
                self.add(path)

    def add(self, path: str) -> str:
        """Adds a file or folder of the repository, unless it is there; returns its file on the site."""
        if path not in self.written and os.path.basename(path) == "README.md":
            self.written[path] = self.add(os.path.dirname(path))
        if path not in self.written:
            self.written[path], write = self._form(path)
            write(path)
        return self.written[path]

    def _form(self, path: str) -> tuple[str, Callable[[str], None]]:
        """Returns the file on the site for a file or folder of the repository, and the method that writes it."""
        suffix = Path(path).suffix
        if (ROOT / path).is_dir():
            return f"{path}/index.md", self._list
        if suffix == ".md":
            return path, self._convert
        if suffix == ".ipynb":
            return f"{path}.md", self._run
        if suffix in LANGUAGES or not suffix:
            return f"{path}.md", self._show
        return path, self._copy

    def write(self, origin: str, name: str, text: str, finish: Callable[[str], str] = str) -> None:
        """Writes a page.

        Args:
            origin: the file of the repository from which links of the text are relative.
            name: the file on the site.
            text: Markdown.
            finish: changes the text outside of code at the end.
        """

        def changed(part: str) -> str:
            if part.startswith("```"):
                return part
            linked = LINK.sub(lambda link: self._link(origin, name, link), part)
            # A value and its deviation stay in one line of a cell.
            linked = linked.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
            return finish(spaced(escaped(linked)))

        parts = CODE.split(re.sub(r"^<!--.*?-->\n", "", text, flags=re.MULTILINE))
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(map(changed, parts)), encoding="utf-8")

    def _link(self, origin: str, name: str, link: re.Match) -> str:
        """Returns a link of a page as it must be on the site."""
        target, text = link["target"], link["text"]
        if re.match(r"[a-z]+:", target) or f"{os.path.dirname(name)}/{target}" in self.figures:
            return link[0]
        path, anchor = resolve(origin, target)
        own = [page for page, (file, title) in SEPARATE_PAGES.items() if (file, slug(title)) == (path, anchor)]
        place = own[0] if own else self.add(path)
        if path in self.titles and text == f"`{path}`":
            text = self.titles[path]
        target = os.path.relpath(place, os.path.dirname(name)) + (f"#{anchor}" if anchor else "")
        return f"{link['image']}[{text}]({target})"

    def _convert(self, path: str) -> None:
        """Writes a page from a Markdown file."""
        text = _rest(path)
        self.write(path, self.written[path], text if path in self.titles else _hidden(_titled(text, path)))

    def _show(self, path: str) -> None:
        """Writes a page with the text of a file."""
        text = (ROOT / path).read_text(encoding="utf-8")
        language = LANGUAGES.get(Path(path).suffix, "text")
        self.write(path, self.written[path], _hidden(f"# {path}\n\n```{language}\n{text.rstrip()}\n```\n"))

    def _run(self, path: str) -> None:
        """Writes a page from a notebook."""
        text, figures = notebooks.markdown(ROOT / path)
        for name, figure in figures.items():
            self.figures.add(f"{os.path.dirname(path)}/{name}")
            place = self.folder / os.path.dirname(path) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(figure)
        self.write(path, self.written[path], text, notebooks.with_formulas)

    def _list(self, path: str) -> None:
        """Writes a page with the README of a folder, if it has one, or the list of its files; both for `LISTED`."""
        names = sorted(each.name for each in (ROOT / path).iterdir() if not each.name.startswith((".", "__pycache__")))
        is_listed = path.split("/")[0] in LISTED and "runs" not in path.split("/")
        text = f"# {path}/\n\n"
        if "README.md" in names:
            text = (ROOT / path / "README.md").read_text(encoding="utf-8")
            text += f"\n## Files in {path}/\n\n" if is_listed else ""
            names = [name for name in names if is_listed and name != "README.md"]
        linked = [f"[`{each}`]({each})" if is_listed and each != "runs" else f"`{each}`" for each in names]
        lines = [link + _purpose(ROOT / path / each) for link, each in zip(linked, names, strict=True)]
        self.write(f"{path}/README.md", self.written[path], _hidden(text + "".join(f"- {line}\n" for line in lines)))

    def _copy(self, path: str) -> None:
        """Copies a file, such as a picture or a table of numbers."""
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((ROOT / path).read_bytes())


def _rest(path: str) -> str:
    """Returns the text of a file without the sections that are separate pages."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for file, title in SEPARATE_PAGES.values():
        if file == path:
            _, text = section(text, title)
    return text


def _purpose(path: Path) -> str:
    """Returns the first line of a configuration, which states its purpose; empty for other files."""
    first = path.read_text(encoding="utf-8").partition("\n")[0] if path.suffix == ".yaml" else ""
    return f": {first.removeprefix('# ')}" if first.startswith("# ") else ""


def _titled(text: str, path: str) -> str:
    """Returns a Markdown text that begins with a heading."""
    return text if text.startswith("# ") else f"# {path}\n\n{text}"


def _hidden(text: str) -> str:
    """Returns a page that the search of the site leaves out: the guide is found first."""
    return f"---\nsearch:\n  exclude: true\n---\n\n{text}"


def spaced(text: str) -> str:
    """Returns a Markdown text with a blank line before each list, as Python-Markdown requires."""
    return re.sub(r"^((?![-*|]|\d+\.|\s).+)\n(?=- |\d+\. )", r"\1\n\n", text, flags=re.MULTILINE)


def escaped(text: str) -> str:
    """Returns a Markdown text in which no `<` outside of code begins a tag, as in <B^T x, z>. Addresses in <> stay."""
    parts = re.split(r"(^```.*?^```$|``.+?``|`[^`]+`)", text, flags=re.MULTILINE | re.DOTALL)
    tag = re.compile(r"<(?=[A-Za-z/!?])(?!https?:)")
    return "".join(part if part.startswith("`") else tag.sub("&lt;", part) for part in parts)
