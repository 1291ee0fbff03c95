"""docs/published_code.md names keys and options that exist, for every option of the published script."""

import re
from pathlib import Path

import typer
from helpers import for_each

from neural_alignment import cli
from neural_alignment import config as configuration

PAGE = (Path(__file__).parent.parent / "docs" / "published_code.md").read_text()
ROWS = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in PAGE.splitlines() if line.startswith("| `")]
SCHEMA = configuration.json_schema()
OPTIONS = 112
"""Flags of the published script."""


def alternatives(node):
    """Returns the mappings that a node of the schema may stand for."""
    if "$ref" in node:
        return alternatives(SCHEMA["$defs"][node["$ref"].rpartition("/")[2]])
    parts = [*node.get("anyOf", []), *node.get("allOf", [])]
    if "items" in node:
        parts.append(node["items"])
    return [node, *(each for part in parts for each in alternatives(part))]


def has_key(path):
    """Whether the schema has a key, whichever of the alternatives it belongs to."""
    nodes = alternatives(SCHEMA)
    for name in path.split("."):
        found = [node["properties"][name] for node in nodes if name in node.get("properties", {})]
        if not found:
            return False
        nodes = [each for node in found for each in alternatives(node)]
    return True


def has_option(text):
    """Whether a command of the command line has an option."""
    command, option = text.split()
    parameters = typer.main.get_command(cli.app).commands[command].params
    return any(option in parameter.opts for parameter in parameters)


def test_every_option_of_the_published_script_has_one_row():
    names = [name for name, _, _ in ROWS]
    assert len(names) == len(set(names)) == OPTIONS


@for_each("name, here, remark", ROWS)
def test_each_row_names_existing_keys_or_gives_a_reason(name, here, remark):
    assert re.fullmatch(r"`\w+`", name)
    if here == "none":
        assert len(remark.split()) > 4
        return
    for each in here.split(", "):
        assert re.fullmatch(r"`[^`]+`", each), each
        text = each.strip("`")
        assert has_option(text) if " " in text else has_key(text), text


def test_the_check_finds_missing_keys_and_options():
    assert has_key("optimization.backward.schedule.warmup_epochs")
    assert has_key("alignment.input.noise")
    for wrong in ("optimization.backward.schedule.warmup", "optimisation", "alignment.input.noise.kind", "epochs.more"):
        assert not has_key(wrong)
    assert has_option("train --run-dir")
    assert not has_option("train --run-directory")
