"""Checks of the finished site: links and anchors, nothing from other hosts, known HTML tags, every public name."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from website import reference

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""Tag -> the attribute with the address of something that a browser loads with the page."""

TAGS = {
    *("a", "article", "aside", "b", "base", "blockquote", "body", "br", "button", "code", "dd", "del"),
    *("details", "div", "dl", "dt", "em", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head"),
    *("header", "hr", "html", "i", "img", "input", "kbd", "label", "li", "link", "main", "mark", "meta"),
    *("nav", "noscript", "ol", "p", "path", "pre", "script", "section", "small", "span", "strong", "style"),
    *("sub", "summary", "sup", "svg", "table", "tbody", "td", "th", "thead", "title", "tr", "ul"),
    *("math", "mfrac", "mi", "mn", "mo", "mover", "mrow", "mspace", "msub", "msubsup", "msup", "mtext", "munder"),
}
"""The tags that pages contain. Others are text that was read as a tag."""


class Page(HTMLParser):
    """Collects the anchors, links, loaded files and unknown tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.unknown: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Reads one tag."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if LOADED.get(tag) in values:
            self.loaded.append(values[LOADED[tag]])
        if tag not in TAGS:
            self.unknown.add(tag)


def problems(site: Path) -> list[str]:
    """Returns a line for each problem of the site in a folder."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        found += [f"{where}: <{tag}> is no tag of a page" for tag in sorted(page.unknown)]
        for address in page.loaded:
            if urlsplit(address).netloc:
                found.append(f"{where}: loads {address} from another host")
        for address in {*page.links, *page.loaded}:
            found += [f"{where}: {address}: {reason}" for reason in _broken(path, address, pages)]
    return found + _undocumented(site, pages)


def _broken(path: Path, address: str, pages: dict[Path, Page]) -> list[str]:
    """Returns why the target of a link does not exist; none if it does, or is on another host."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return []
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return ["no such file"]
    anchor = unquote(parts.fragment)
    known = pages[target].anchors if target in pages else {anchor}
    return [] if not anchor or anchor in known | {"__top"} else ["no such anchor"]


def _undocumented(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Returns a line for each public name without an entry in the reference."""
    found = []
    for module, names in reference.modules().items():
        page = pages.get(site / "reference" / f"{module}.html")
        anchors = page.anchors if page else set()
        found += [f"reference: no {module}.{name.name}" for name in names if f"{module}.{name.name}" not in anchors]
    return found
