"""Builds the documentation site, serves it on this machine, or draws the pictures of the rules."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from website import checks, gallery, keys, pages, pictures, reference

HERE = Path(__file__).parent
BUILD = pages.ROOT / "build" / "website"
"""An ignored folder: `markdown/` is the input of MkDocs, `html/` is the site."""


def write_markdown() -> None:
    """Writes the Markdown of all pages, and the configuration of MkDocs with the navigation."""
    shutil.rmtree(BUILD, ignore_errors=True)
    site = pages.Site(BUILD / "markdown")
    site.add_guide()
    site.write(pages.GALLERY, pages.GALLERY, gallery.page())
    site.write(pages.SEPARATE_PAGES[pages.KEYS][0], pages.KEYS, keys.page())
    (BUILD / "markdown" / "reference").mkdir()
    texts = {module: reference.page(module, names) for module, names in reference.modules().items()}
    for name, text in {**texts, "index": reference.front_page()}.items():
        (BUILD / "markdown" / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    (BUILD / "markdown" / "assets").mkdir()
    for name in ("style.css", "iframe-worker.js"):
        shutil.copy(HERE / name, BUILD / "markdown" / "assets")
    sections = pages.navigation()
    modules = {name.removeprefix("neural_alignment."): f"reference/{name}.md" for name in texts}
    sections["Reference"] = {"Overview": "reference/index.md", **modules}
    navigation = [{"Home": "index.md"}]
    for name, found in ((name, found) for name, found in sections.items() if found):
        navigation.append({name: [{title: site.written.get(path, path)} for title, path in found.items()]})
    settings = {"INHERIT": str(HERE / "mkdocs.yml"), "docs_dir": "markdown", "site_dir": "html", "nav": navigation}
    (BUILD / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def build() -> None:
    """Builds the site in `build/website/html`, and checks it.

    Raises:
        SystemExit: if there is a warning, a broken link or anchor, or a public name without documentation.
    """
    write_markdown()
    environment = {**os.environ, "PYTHONPATH": str(pages.ROOT), "NO_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", BUILD / "mkdocs.yml"]
    subprocess.run(list(map(str, command)), check=True, env=environment)
    # The links of the page for wrong addresses would hold only at the root of a host.
    (BUILD / "html" / "404.html").unlink()
    found = checks.problems(BUILD / "html")
    if found:
        sys.exit("\n".join([*found, f"{len(found)} problems"]))
    print(f"{len(list((BUILD / 'html').rglob('*.html')))} pages in {BUILD / 'html'}")


def serve(port: int) -> None:
    """Builds the site and serves it on this machine until it is interrupted."""
    build()
    handler = partial(SimpleHTTPRequestHandler, directory=str(BUILD / "html"))
    print(f"http://localhost:{port}/")
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.serve_forever()


def main() -> None:
    """Runs one command."""
    parser = argparse.ArgumentParser(prog="python -m website", description=__doc__)
    parser.add_argument("command", choices=["build", "serve", "pictures"])
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    if arguments.command == "pictures":
        pictures.write()
    elif arguments.command == "build":
        build()
    else:
        serve(arguments.port)


if __name__ == "__main__":
    main()
