"""The page with all keys of a configuration, made from its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from neural_alignment import config
from website.pages import KEYS, ROOT, SEPARATE_PAGES, section

Node = dict[str, Any]
"""A part of the JSON Schema."""

REQUIRED = "required"
"""Key of a property that has no default; `json_schema` does not say which these are."""

READING = (
    "Dots lead to the keys of a mapping, as in `--set`. If the default of a key is empty, its description names it; if "
    "the description names none, the key is not set (null), and the keys of a mapping have their own defaults.\n\n"
)
"""How the tables are read."""

WORDS = {"string": "text", "boolean": "true or false", "object": "mapping"}
"""Types of JSON Schema that a reader of YAML calls by other words."""

LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Mapping(NamedTuple):
    """A mapping in a configuration, and its places.

    Attributes:
        kinds: names of the option classes that it may have.
        paths: key paths of the mapping; the first one is that of its section.
    """

    kinds: tuple[str, ...]
    paths: list[str]


class Keys:
    """The keys of a configuration.

    Args:
        schema: the JSON Schema of a configuration.
    """

    def __init__(self, schema: Node):
        self.schema, self.classes = schema, schema["$defs"]
        self.mappings: dict[tuple[str, ...], Mapping] = {}
        """Names of classes -> the mapping, in the order in which a reader meets them."""
        self._find("", schema)

    def _find(self, prefix: str, node: Node) -> None:
        """Adds the mappings in a mapping, and those in them."""
        for key, value in node["properties"].items():
            kinds, path = self.kinds(value), f"{prefix}{key}"
            if kinds in self.mappings:
                self.mappings[kinds].paths.append(path)
            elif kinds:
                self.mappings[kinds] = Mapping(kinds, [path])
                for kind in kinds:
                    self._find(f"{path}.", self.classes[kind])

    def members(self, node: Node) -> Iterator[Node]:
        """Yields the alternatives of a value."""
        if "anyOf" in node:
            for each in node["anyOf"]:
                yield from self.members(each)
        else:
            yield node

    def kinds(self, node: Node) -> tuple[str, ...]:
        """Returns the names of the classes of a value that is a mapping or a list of mappings; empty for others."""
        members = [*self.members(node)]
        members += [each for member in members for each in self.members(member.get("items", {}))]
        return tuple(dict.fromkeys(each["$ref"].rpartition("/")[2] for each in members if "$ref" in each))

    def page(self) -> str:
        """Returns the tables: of the top level, and of each mapping."""
        parts = ["## Top level", *table(self.schema["properties"], "", self)]
        for mapping in self.mappings.values():
            parts += self.section(mapping)
        return "\n".join(parts) + "\n"

    def section(self, mapping: Mapping) -> list[str]:
        """Returns the section of a mapping: its common keys, and those of each class."""
        path, *others = dict.fromkeys(mapping.paths)
        lines = ["", f"## `{path}`", ""]
        if others:
            lines += [f"The same keys: {', '.join(f'`{each}`' for each in others)}.", ""]
        classes = [self.classes[kind] for kind in mapping.kinds]
        if len(classes) == 1:
            return [*lines, plain(classes[0]["description"]), *table(classes[0]["properties"], f"{path}.", self)]
        common, choice = shared(classes), discriminator(classes)
        if common:
            lines += [f"Keys of every `{choice}`:", *table(common, f"{path}.", self)]
        for each in classes:
            own = {
                key: value for key, value in each["properties"].items() if key != choice and common.get(key) != value
            }
            lines += ["", f"### `{choice}: {each['properties'][choice]['const']}`", "", plain(each["description"])]
            lines += table(own, f"{path}.", self) if own else []
        return lines


def discriminator(classes: list[Node]) -> str:
    """Returns the key whose value chooses one of several classes."""
    names = (key for key, value in classes[0]["properties"].items() if "const" in value)
    return next(key for key in names if all("const" in each["properties"].get(key, {}) for each in classes))


def shared(classes: list[Node]) -> dict[str, Node]:
    """Returns the keys that all classes have, in the form that most of them have."""
    found = {}
    for key in classes[0]["properties"]:
        forms = [each["properties"][key] for each in classes if key in each["properties"]]
        if len(forms) == len(classes) and "const" not in forms[0]:
            found[key] = max(forms, key=forms.count)
    return found


def table(properties: dict[str, Node], prefix: str, keys: Keys) -> list[str]:
    """Returns a table with a row for each key.

    Args:
        properties: name of the key -> its schema.
        prefix: the key path of the mapping, with a dot.
        keys: all keys.
    """
    lines = ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name, value in properties.items():
        kinds = keys.kinds(value)
        own = keys.classes[kinds[0]].get("description", "") if len(kinds) == 1 else ""
        meaning = plain(value.get("description") or own.partition("\n")[0])
        cells = [f"`{prefix}{name}`", type_of(value, keys), default_of(value), meaning]
        lines.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
    return lines


def type_of(node: Node, keys: Keys) -> str:
    """Returns the type of a value, with its limits or allowed values."""
    members = [each for each in keys.members(node) if each.get("type") != "null"]
    words = [_type(each, keys) for each in members if "$ref" not in each]
    if len(words) < len(members):
        words.append(f"mapping (see `{keys.mappings[keys.kinds(node)].paths[0]}`)")
    return "; or ".join(dict.fromkeys(words))


def _type(node: Node, keys: Keys) -> str:
    """Returns the type of one alternative of a value that is not a mapping."""
    if "const" in node or "enum" in node:
        return ", ".join(f"`{_yaml(each)}`" for each in node.get("enum", [node.get("const")]))
    if node["type"] == "array" and keys.kinds(node):
        return "list of mappings"
    if node["type"] == "array":
        return f"list, each {type_of(node['items'], keys)}"
    limits = [f"{sign} {_yaml(node[name])}" for name, sign in LIMITS.items() if name in node]
    return ", ".join([WORDS.get(node["type"], node["type"]), *limits])


def default_of(node: Node) -> str:
    """Returns the default of a key.

    It is empty if it is null, if the description says it, or if it is a mapping, whose keys have their own defaults.
    """
    if REQUIRED in node:
        return "required"
    if "Default" in node.get("description", ""):
        return ""
    default = node.get("default", {"array": []}.get(node.get("type")))
    if isinstance(default, dict) and len(default) == 1:
        [default] = [f"{key}: {_yaml(value)}" for key, value in default.items()]
    return "" if default is None or isinstance(default, dict) else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    """Returns a value as it is written in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def plain(text: str) -> str:
    """Returns a docstring as one line of Markdown, in which asterisks are no emphasis."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part.replace("*", "\\*") if index % 2 == 0 else part for index, part in enumerate(parts))


def page() -> str:
    """Returns the page: the section of the guide about the keys, and the tables."""
    path, title = SEPARATE_PAGES[KEYS]
    introduction, _ = section((ROOT / path).read_text(encoding="utf-8"), title)
    return introduction.replace("## ", "# ", 1) + READING + Keys(schema()).page()


def schema() -> Node:
    """Returns the JSON Schema of a configuration with a mark at the keys that have no default."""
    found, strict = config.json_schema(), config.Config.model_json_schema()
    pairs = [(found, strict), *((node, strict["$defs"][name]) for name, node in found["$defs"].items())]
    for node, own in pairs:
        for key in own.get("required", ()):
            node["properties"][key][REQUIRED] = True
    return found
