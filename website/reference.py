"""The API reference: all public names, found in the source code without importing it.

Public are the names in `__all__` of the packages, and in `neural_alignment.analysis` and `neural_alignment.errors`,
which have no `__all__`, all names without a leading underscore. `__all__` of `alignments` contains every rule: the
classes with the decorator `register` in the modules from which the package imports all names.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from website.pages import ROOT, escaped, spaced

PACKAGES = ("neural_alignment", "optimizers")

WITHOUT_ALL = ("neural_alignment.analysis", "neural_alignment.errors")
"""Public modules without `__all__`."""

TOP = "neural_alignment"
"""The package whose `__all__` has names that it imports at their first use, and names of modules."""


RETURNED = re.compile(r"^(Returns|Yields):\n((?:(?: {4}.*)?(?:\n|\Z))+)", re.MULTILINE)
"""The section of a docstring about the values of a function."""


class Name(NamedTuple):
    """A public name, and where it is defined.

    Attributes:
        name: the name.
        module: the module that defines it.
        documented: whether it has a docstring.
    """

    name: str
    module: str
    documented: bool


def modules() -> dict[str, list[Name]]:
    """Returns every public module -> its public names, each defined name in the first module that has it.

    Modules are in alphabetical order, so a name of a package and of its subpackage belongs to the package.
    """
    found, seen = {}, set()
    for module in public_modules():
        names = [define(module, name) for name in sorted(public(module), key=str.lower)]
        found[module] = [each for each in names if (each.module, each.name) not in seen]
        seen |= {(each.module, each.name) for each in names}
    return found


def public_modules() -> list[str]:
    """Returns the packages with `__all__`, and those of `WITHOUT_ALL` with their modules."""
    inside = [f"{package}.{each}" for package in WITHOUT_ALL for each in _submodules(package)]
    return sorted({*(module for package in PACKAGES for module in _with_all(package)), *WITHOUT_ALL, *inside} - {TOP})


def top_names() -> dict[str, str]:
    """Returns the names that `neural_alignment` imports at their first use -> the module that each comes from."""
    tables = [node for node in _statements(TOP) if isinstance(node, ast.Assign) and node.targets[0].id == "_NAMES"]
    return {name: f"{TOP}.{room}" for name, room in ast.literal_eval(tables[0].value).items()}


def define(module: str, name: str) -> Name:
    """Finds the definition of a name, through imports.

    Raises:
        LookupError: if the module neither defines nor imports it.
    """
    body = _statements(module)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Name(name, module, bool(ast.get_docstring(node)))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in [getattr(target, "id", None) for target in targets]:
            return Name(name, module, isinstance(getattr(getattr(after, "value", None), "value", None), str))
        if isinstance(node, ast.ImportFrom):
            if name in _rules(node):
                return define(node.module, name)
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return define(node.module, alias.name)
    raise LookupError(f"{module} has no {name}")


def docstring(module: str) -> str:
    """Returns the docstring of a module."""
    return ast.get_docstring(_tree(module)) or ""


def page(module: str, names: list[Name]) -> str:
    """Returns the page of a module: its docstring, and a directive of mkdocstrings for each name."""
    options = ["members: false", "show_root_heading: false", "show_root_toc_entry: false"]
    lines = [f"# {module}", "", f"::: {module}", "    options:", *(f"      {option}" for option in options)]
    elsewhere = [name for name in public(module) if name not in {each.name for each in names}]
    for each in names:
        lines += ["", f"::: {module}.{each.name}"]
    if elsewhere:
        lines += ["", "## Documented on other pages", ""]
        homes = {(each.module, each.name): home for home, found in modules().items() for each in found}
        for name in sorted(elsewhere, key=str.lower):
            home = homes[define(module, name).module, name]
            lines.append(f"- [`{home}.{name}`]({home}.md#{home}.{name})")
    return "\n".join(lines) + "\n"


def front_page() -> str:
    """Returns the first page of the reference: the names of `neural_alignment`, and all modules."""
    lines = ["# Reference", "", docstring(TOP), "", "## Names of `neural_alignment`", "", "| name | is |", "|---|---|"]
    lines += [f"| `{TOP}.{name}` | [`{at}.{name}`]({at}.md#{at}.{name}) |" for name, at in top_names().items()]
    lines += [f"| `{TOP}.__version__` | the version of the package |", ""]
    lines += ["## Modules", "", "| module | content |", "|---|---|"]
    lines += [f"| [`{module}`]({module}.md) | {_summary(module)} |" for module in modules()]
    return "\n".join(lines) + "\n"


def markdown(text: str) -> str:
    """Returns a docstring in which griffe and Markdown change nothing.

    A `<` never begins a tag. The values of functions are described in sentences and lists: griffe would take the words
    before a colon for a type.
    """

    def titled(returned: re.Match) -> str:
        return f"**{returned[1]}:**\n\n{textwrap.dedent(returned[2])}\n\n"

    return spaced(escaped(RETURNED.sub(titled, text)))


def _summary(module: str) -> str:
    """Returns the first line of the docstring of a module, for a cell of a table."""
    return docstring(module).partition("\n")[0].replace("|", "\\|")


def public(module: str) -> list[str]:
    """Returns the public names of a module."""
    body = _tree(module).body
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            constants = [each.value for each in node.value.elts if isinstance(each, ast.Constant)]
            return [*constants, *(name for each in _statements(module) for name in _rules(each))]
    defined = [getattr(node, "name", "") for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [name for name in defined if not name.startswith("_")]


def _rules(statement: ast.stmt) -> list[str]:
    """Returns the classes with the decorator `register` of a module from which a statement imports everything."""
    if not isinstance(statement, ast.ImportFrom) or statement.names[0].name != "*":
        return []
    classes = [node for node in _tree(statement.module).body if isinstance(node, ast.ClassDef)]
    return [each.name for each in classes if "register" in map(ast.unparse, each.decorator_list)]


def _with_all(package: str) -> Iterator[str]:
    """Yields the packages below a package, and itself, that have `__all__`."""
    for path in sorted((ROOT / package.replace(".", "/")).rglob("__init__.py")):
        if "\n__all__ = " in path.read_text(encoding="utf-8"):
            yield ".".join(path.relative_to(ROOT).parent.parts)


def _submodules(package: str) -> list[str]:
    """Returns the names of the public modules of a package; none if it is a module."""
    return [path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py") if not path.stem.startswith("_")]


def _statements(module: str) -> list[ast.stmt]:
    """Returns the statements of a module, and those under `if TYPE_CHECKING`, which name later imports."""
    body = _tree(module).body
    return [*body, *(inner for node in body if isinstance(node, ast.If) for inner in node.body)]


@cache
def _tree(module: str) -> ast.Module:
    """Returns the syntax tree of a module or package."""
    place = ROOT / module.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))
