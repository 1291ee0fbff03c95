"""Turns an error of pydantic into one line with the key path, the value that was found, and the allowed values."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from neural_alignment.errors import ArgumentError, as_written, nearest, shortened

if TYPE_CHECKING:
    import pydantic


MOST_LISTED = 25
"""The largest number of allowed names that a message lists. Of more names it lists those closest to the value."""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """The first mistake that pydantic found in plain data.

    Attributes:
        path: key path of the value, or of the key that is missing or unknown; empty for the data as a whole.
        reason: the problem, and the allowed values.
        lookup_path: key path by which to find the file or override at fault. It is `path`, except that a missing key
            is in no file: then it is the key path of the mapping that lacks the key.
        missing: whether a key is missing.
        unknown: whether a key is unknown.
    """

    path: str
    reason: str
    lookup_path: str
    missing: bool = False
    unknown: bool = False

    def line(self, origin: str = "") -> str:
        """Returns the problem in one line.

        Args:
            origin: start of the line, which names the file or override that contains the value.
        """
        return " ".join(f"{origin}{self.path}{': ' if self.path else ''}{self.reason}".split())


def first_mistake(error: pydantic.ValidationError, schema: Any, prefix: str = "") -> Mistake:
    """Returns the first mistake that pydantic found. Its reason includes the number of further mistakes.

    Args:
        error: the error that pydantic raised.
        schema: the pydantic model, or type, against which the data were validated.
        prefix: key path of the data within a larger configuration.
    """
    errors = error.errors(include_url=False)
    first = _first(errors)
    keys, node = _located(schema, first["loc"])
    kind, missing = first["type"], first["type"] in ("missing", "union_tag_not_found")
    cause = first.get("ctx", {}).get("error")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        keys.append(first["ctx"]["discriminator"].strip("'"))
    elif isinstance(cause, ArgumentError) and cause.value.name:
        keys += cause.value.name.split(".")
    reason = _reason(first, node)
    if kind == "extra_forbidden":
        _, inside = _located(schema, first["loc"][:-1])
        allowed, key = sorted(inside["fields"]), str(first["loc"][-1])
        reason += f"; allowed: {', '.join(allowed)}{_inner(schema, first['loc'], allowed) or nearest(key, allowed)}"
    path = ".".join([*([prefix] if prefix else []), *(shortened(key, 60) for key in keys)])
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    lookup_path = path.rpartition(".")[0] if missing else path
    return Mistake(path, f"{reason}{more}", lookup_path, missing, kind == "extra_forbidden")


def of_constructor(error: pydantic.ValidationError, options: type[pydantic.BaseModel]) -> ValueError:
    """Returns the first mistake in the arguments of a constructor, for Python callers.

    Args:
        error: the error that pydantic raised.
        options: the class that was called.
    """
    mistake, cause = first_mistake(error, options), _first(error.errors(include_url=False)).get("ctx", {}).get("error")
    if isinstance(cause, ArgumentError):
        return ArgumentError(mistake.path, cause.value.requirement, cause.value.found, cause.value.example)
    line = mistake.line()
    return ValueError(f"{options.__name__}: {line}{'' if line[-1] in '.?' else '.'} Example: {constructor(options)}.")


def constructor(options: type[pydantic.BaseModel]) -> str:
    """Returns a call of the constructor of a class of options with its required arguments, for messages."""
    required = ", ".join(f"{name}=..." for name, field in options.model_fields.items() if field.is_required())
    return f"{options.__name__}({required})"


def _first(errors: list[Any]) -> Any:
    """Returns the mistake to report.

    An unknown key is often a misspelt required key, which is then also missing. The misspelling is reported.
    """
    return next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])


def describe(error: pydantic.ValidationError, schema: Any, prefix: str = "") -> str:
    """Returns the first mistake in one line: key path, found value and allowed values.

    Args:
        error: the error that pydantic raised.
        schema: the pydantic model, or type, against which the data were validated.
        prefix: key path of the data within a larger configuration.
    """
    return first_mistake(error, schema, prefix).line()


def _located(schema: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Returns the key path of a pydantic location, and the pydantic core schema at that path.

    A location contains keys, indices and the tags of unions. A tag may equal a key (the optimizer `momentum` has a key
    `momentum`), so the schema is needed to distinguish them. The key `nullable` of the returned schema says whether
    null is allowed at the path.
    """
    import pydantic  # Imported here, because the command line imports this module before it shows its help.

    node, path, rest, definitions = pydantic.TypeAdapter(schema).core_schema, [], list(loc), {}
    nullable = False
    while True:
        kind = node["type"]
        nullable |= kind == "nullable"
        if kind == "definitions":
            definitions |= {each["ref"]: each for each in node["definitions"]}
            node = node["schema"]
        elif kind == "definition-ref":
            node = definitions[node["schema_ref"]]
        elif kind in ("model-fields", "list", "dict") and rest:
            key = rest.pop(0)
            path.append(str(key))
            field = node["fields"].get(key) if kind == "model-fields" else None
            inner = field["schema"] if field else node.get("items_schema") or node.get("values_schema")
            if inner is None:
                return path, {**node, "nullable": False}
            node, nullable = inner, False
        elif kind == "tagged-union" and rest:
            node = node["choices"][rest.pop(0)]
        elif kind != "tagged-union" and "schema" in node:
            node = node["schema"]
        else:  # A scalar, or a union without tags: the rest of the location are labels of its members.
            return path, {**node, "nullable": nullable}


def _inner(schema: Any, loc: tuple[int | str, ...], fields: Iterable[str]) -> str:
    """Returns a suggestion if an unknown key is a key of options within the options, such as `noise` of `input`.

    Args:
        schema: as in `_located`.
        loc: the pydantic location of the unknown key.
        fields: the keys that are known there.
    """
    *around, key = loc
    found = [each for each in fields if key in _located(schema, (*around, each))[1].get("fields", ())]
    return f"; did you mean {' or '.join(repr(f'{each}.{key}') for each in found)}?" if found else ""


def _reason(error: Any, node: Any) -> str:
    """Returns the requirement and the found value.

    Args:
        error: an error of pydantic.
        node: the core schema at its location, as `_located` returns it.
    """
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind in ("missing", "union_tag_not_found"):
        return "this key is required and was not found"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "union_tag_invalid":
        tag, allowed = context["tag"], context["expected_tags"].replace("'", "").split(", ")
        found = value.get(context["discriminator"].strip("'"), tag) if isinstance(value, dict) else tag
        return f"must be one of {', '.join(allowed)}; found {shortened(as_written(found), 60)}{nearest(tag, allowed)}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        cause = context.get("error")
        return cause.value.reason if isinstance(cause, ArgumentError) else message
    hint = ""
    if kind == "literal_error":
        message, hint = _choice(context["expected"], str(value), node["nullable"])
    elif kind.endswith("_type"):
        if kind in _MAPPING_TYPES:
            message = f"must be a mapping {_form_of_mapping(node, value)}"
        elif kind == "bool_type":
            message = "input should be true or false"
        message += " or null" if node["nullable"] else ""
    return f"{message[0].lower()}{message[1:]}; found {shortened(as_written(value), 60)}{hint}"


_MAPPING_TYPES = ("dict_type", "model_type", "model_attributes_type")
"""pydantic's types of the error that a value is not a mapping."""


def _form_of_mapping(node: Any, value: Any) -> str:
    """Returns the form of a mapping, with an example or its keys.

    Args:
        node: the core schema of the mapping.
        value: the value that was found instead, which may be the name of one of several classes.
    """
    if node["type"] == "tagged-union":
        names = list(node["choices"])
        close = difflib.get_close_matches(str(value), names, n=1)
        return f"such as {{{node['discriminator']}: {(close or names)[0]}}}"
    if node["type"] == "model-fields":
        return f"with keys among {', '.join(sorted(node['fields']))}"
    return "such as {key: value}"


def _choice(expected: str, word: str, nullable: bool) -> tuple[str, str]:
    """Returns the requirement that a value is one of some values, and a suggestion.

    Args:
        expected: the values as pydantic lists them, such as "'a', 'b' or 'c'".
        word: the value that was found.
        nullable: whether null is allowed too.
    """
    allowed = expected.replace("'", "").replace(" or ", ", ").split(", ")
    if len(allowed) <= MOST_LISTED:
        values = f"{expected.replace(' or ', ', ')} or null" if nullable else expected
        return f"input should be {values}", nearest(word, allowed)
    similar = ", ".join(map(repr, difflib.get_close_matches(word, allowed, n=5, cutoff=0.0)))
    listed = "`neural-alignment schema` lists all"
    return f"input should be one of {len(allowed)} names, such as {similar}; {listed}", ""
