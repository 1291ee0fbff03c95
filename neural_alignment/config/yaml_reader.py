"""Parses YAML text into values.

Values follow the core schema of YAML 1.2, which agrees with JSON:

| plain text | value |
|---|---|
| `null`, `Null`, `NULL`, `~`, no text | None |
| `true`, `True`, `TRUE`, `false`, `False`, `FALSE` | a boolean |
| `12`, `-3`, `017` (seventeen), `0o17` (fifteen), `0x1F` | an integer |
| `0.5`, `.5`, `5.`, `5e-3`, `-.inf`, `.NaN` | a float |
| everything else, such as `on`, `no`, `1_000`, `0b1`, `190:20:30`, `2001-01-01`, `=` | a string |

A file must contain one document, as UTF-8 text of at most `MAX_BYTES` bytes. Keys must be strings, and a mapping must
not repeat a key. Nesting, the number of values (with aliases expanded) and the size of integers are limited. These
limits are checked on the events of the parser, before a value is built. Merge keys (`<<`), and tags other than those of
the core schema, are rejected.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from neural_alignment.errors import ConfigError, one_line, shortened

MAX_BYTES = 1_000_000
"""Maximum size of a file in bytes."""

MAX_DEPTH = 64
"""Maximum nesting depth of mappings and sequences."""

MAX_VALUES = 20_000
"""Maximum number of scalars, sequences and mappings in a document. A value counts again at each alias that repeats
it."""

MAX_DIRECTIVES = 8
"""Maximum number of lines that begin with `%`, because libyaml compares each `%TAG` with all others."""

INTEGERS = range(-(2**63), 2**63)
"""Integers that TensorFlow and NumPy can hold."""

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The event parser: that of libyaml, or of PyYAML if it was built without libyaml."""

_NULL = re.compile(r"|~|null|Null|NULL")
_BOOLEAN = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INTEGER = re.compile(r"([-+]?)0*([0-9]+)")
OCTAL_OR_HEXADECIMAL = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY_OR_NAN = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_SURROGATE = re.compile(r"[\ud800-\udfff]")

CORE_TAG = "tag:yaml.org,2002:"
_TAGGED: dict[str, tuple[type, ...]] = {"null": (type(None),), "bool": (bool,), "int": (int,), "float": (float, int)}
"""Core tag of a scalar -> types of the values it allows."""


def parse(text: str, source: str) -> Any:
    """Returns the value of a YAML document, or None if it is empty.

    Args:
        text: the document.
        source: the file or option that it comes from, for messages.

    Raises:
        ConfigError: if the document is not valid; the message is one line.
    """
    try:
        if len(text.encode()) > MAX_BYTES:
            raise _Problem(f"it has more than {MAX_BYTES:,} bytes")
        if len(re.findall(r"^%", text, re.MULTILINE)) > MAX_DIRECTIVES:
            raise _Problem(f"more than {MAX_DIRECTIVES} lines begin with %")
        return _Composer().compose(yaml.parse(text, Loader=LOADER))
    except _Problem as problem:
        line = str(problem)
    except UnicodeEncodeError:
        line = "it is not text in UTF-8"
    except yaml.reader.ReaderError as error:
        line = f"the character {error.character if isinstance(error.character, str) else chr(error.character)!r}"
        line += f" at position {error.position + 1} is not allowed"
    except yaml.YAMLError as error:
        line = f"{getattr(error, 'problem', None) or error}{_place(getattr(error, 'problem_mark', None))}"
    except (ValueError, OverflowError) as error:  # An escape such as \\UFFFFFFFF, in PyYAML's own parser.
        line = str(error)
    raise ConfigError(f"{source}: not valid YAML: {one_line(line, 300)}")


class _Problem(Exception):  # noqa: N818 - of the document, not of the program
    """The document is not valid at an event of the parser."""

    def __init__(self, message: str, event: yaml.Event | None = None):
        super().__init__(f"{message}{_place(event.start_mark) if event else ''}")


def _place(mark: Any) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


@dataclasses.dataclass
class _Node:
    """A value and its size.

    Attributes:
        value: the value.
        count: number of values in it, including itself.
        height: number of nesting levels in it: 0 for a scalar.
    """

    value: Any
    count: int = 1
    height: int = 0


@dataclasses.dataclass
class _Open:
    """A mapping or sequence whose end has not been reached.

    Attributes:
        node: the part of the value that has been read.
        anchor: the name by which aliases refer to it.
        key: in a mapping, the key of the next value.
    """

    node: _Node
    anchor: str | None
    key: str | None = None


class _Composer:
    """Builds a value from events without recursion, and checks keys, tags and limits while doing so."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, _Node | None] = {}  # None while the node is still open.
        self._count = 0
        self._root: _Node | None = None

    def compose(self, events: Iterator[yaml.Event]) -> Any:
        """Returns the value of the only document."""
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
                raise _Problem("a second document begins; a file holds one", event)
            if isinstance(event, yaml.ScalarEvent):
                self._add(self._anchored(event, _Node(self._scalar(event))), event)
            elif isinstance(event, yaml.AliasEvent):
                self._add(self._repeated(event), event)
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._begin(event)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                ended = self._open.pop()
                if ended.anchor is not None:
                    self._anchors[ended.anchor] = ended.node
                self._add(ended.node, event, counted=True)
        return self._root.value if self._root else None

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", CORE_TAG + ("map" if mapping else "seq")):
            raise _Problem(f"the tag {_shown(event.tag)} is not allowed", event)
        if self._expects_key():
            raise _Problem("keys must be strings; found a mapping or a sequence", event)
        if len(self._open) >= MAX_DEPTH:
            raise _Problem(f"more than {MAX_DEPTH} mappings and sequences are nested", event)
        self._count_values(1, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._open.append(_Open(_Node({} if mapping else []), event.anchor))

    def _expects_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].node.value, dict) and self._open[-1].key is None

    def _count_values(self, count: int, event: yaml.Event) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            raise _Problem(f"it holds more than {MAX_VALUES:,} values, aliases expanded", event)

    def _anchored(self, event: yaml.ScalarEvent, node: _Node) -> _Node:
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _repeated(self, event: yaml.AliasEvent) -> _Node:
        """Returns a copy of the node that an alias refers to."""
        if event.anchor not in self._anchors:
            raise _Problem(f"the alias *{_shown(event.anchor)} has no anchor before it", event)
        node = self._anchors[event.anchor]
        if node is None:
            raise _Problem(f"the alias *{_shown(event.anchor)} is part of the value that it repeats", event)
        if len(self._open) + node.height > MAX_DEPTH:
            raise _Problem(f"more than {MAX_DEPTH} mappings and sequences are nested", event)
        self._count_values(node.count - 1, event)  # The node itself is counted when it is added.
        return dataclasses.replace(node, value=copy.deepcopy(node.value))

    def _add(self, node: _Node, event: yaml.Event, counted: bool = False) -> None:
        """Adds a node to the innermost open mapping or sequence.

        Args:
            node: a scalar, a copy made for an alias, or a mapping or sequence that has just ended.
            event: the event at which the node ends.
            counted: whether `_begin` has already counted it.
        """
        if not counted:
            self._count_values(1, event)
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        if self._expects_key():
            parent.key = self._key(node.value, parent.node.value, event)
        elif isinstance(parent.node.value, dict):
            parent.node.value[parent.key] = node.value
            parent.key = None
        else:
            parent.node.value.append(node.value)
        parent.node.count += node.count
        parent.node.height = max(parent.node.height, node.height + 1)

    def _key(self, key: Any, mapping: Mapping[str, Any], event: yaml.Event) -> str:
        plain = isinstance(event, yaml.ScalarEvent) and event.tag is None and event.implicit[0]
        if plain and event.value == "null":
            key = "null"  # The weight of the null primitive.
        if not isinstance(key, str):
            found = getattr(event, "value", key)
            raise _Problem(f"keys must be strings; found {_shown(str(found))}: put it in quotes", event)
        if plain and key == "<<":
            raise _Problem("merge keys (<<) are not part of YAML 1.2; repeat the keys, or use `base`", event)
        if key in mapping:
            raise _Problem(f"found duplicate key {_shown(key)}", event)
        return key

    @staticmethod
    def _scalar(event: yaml.ScalarEvent) -> Any:
        """Returns the value of a scalar according to the core schema."""
        tag = event.tag
        if _SURROGATE.search(event.value):  # From an escape such as \ud83d. libyaml rejects it itself.
            raise _Problem("found invalid Unicode character escape code", event)
        if tag is None:
            return _resolved(event.value, event) if event.implicit[0] else event.value
        if tag in ("!", f"{CORE_TAG}str"):
            return event.value
        allowed = _TAGGED.get(tag.removeprefix(CORE_TAG)) if tag.startswith(CORE_TAG) else None
        if allowed is None:
            raise _Problem(f"the tag {_shown(tag)} is not allowed", event)
        value = _resolved(event.value, event)
        if type(value) not in allowed:
            raise _Problem(f"{_shown(event.value)} is not of its tag {_shown(tag)}", event)
        return float(value) if float in allowed else value


def _resolved(text: str, event: yaml.Event) -> Any:
    """Returns the value of unquoted text according to the core schema."""
    if _NULL.fullmatch(text):
        return None
    if match := _BOOLEAN.fullmatch(text):
        return match[1] is not None
    if match := _INTEGER.fullmatch(text):
        # An integer of 64 bits has at most 19 digits, and Python refuses to convert thousands of digits.
        return _bounded(int(match[1] + match[2]) if len(match[2]) <= 19 else None, text, event)
    if OCTAL_OR_HEXADECIMAL.fullmatch(text):
        return _bounded(int(text[2:], 8 if text[1] == "o" else 16), text, event)
    if FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITY_OR_NAN.fullmatch(text):
        return float(f"{match[1] or ''}inf" if match[2] else "nan")
    return text


def _bounded(value: int | None, text: str, event: yaml.Event) -> int:
    if value is None or value not in INTEGERS:
        raise _Problem(f"integers must lie between -2**63 and 2**63 - 1; found {_shown(text)}", event)
    return value


def _shown(text: str) -> str:
    return repr(shortened(text, 60))
