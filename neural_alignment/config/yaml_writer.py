"""Writes YAML that loaders of YAML 1.1 and of YAML 1.2 read in the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from neural_alignment.config.yaml_reader import CORE_TAG, FLOAT, OCTAL_OR_HEXADECIMAL


class _Dumper(yaml.SafeDumper):
    """Quotes every string that a loader of YAML 1.1 or 1.2 would read as something else.

    The dumper of PyYAML quotes most text that YAML 1.1 reads as another type; the other cases are added below. It is
    used instead of the dumper of libyaml, so that files are the same on every machine.
    """

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True, so that a repeated value is written out each time."""
        return True

    def represent_str(self, data: str) -> yaml.Node:
        """Escapes the additional line breaks of YAML 1.1, which PyYAML would write unchanged and read as spaces."""
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar(f"{CORE_TAG}str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver(f"{CORE_TAG}bool", re.compile(r"^(?:y|Y|n|N)$"), list("yYnN"))
_Dumper.add_implicit_resolver(f"{CORE_TAG}int", re.compile(rf"^(?:{OCTAL_OR_HEXADECIMAL.pattern})$"), list("0"))
_Dumper.add_implicit_resolver(f"{CORE_TAG}float", re.compile(rf"^(?:{FLOAT.pattern})$"), list("-+.0123456789"))
# A float of YAML 1.1, whose specification allows any number of points.
_Dumper.add_implicit_resolver(
    f"{CORE_TAG}float", re.compile(r"^[-+]?[0-9_]*\.[0-9._]*(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def write(data: Mapping[str, Any]) -> str:
    """Returns plain data as YAML with one line per key, in the order of the keys."""
    return yaml.dump(data, Dumper=_Dumper, default_flow_style=False, sort_keys=False, allow_unicode=True)


def write_inline(value: Any) -> str:
    """Returns a value as YAML in one line, such as for the right side of `--set`."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.rstrip("\n")[1:-1]
