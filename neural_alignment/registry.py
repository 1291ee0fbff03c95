"""Registries of option classes: which name in a configuration selects which class."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any, Union, get_args

import pydantic


class Registry(MutableMapping[str, type[pydantic.BaseModel]]):
    """Option classes by the name that selects one of them.

    A class can be registered at any time, also outside of the package. Configurations that are read later accept it.

    Args:
        key: the field that holds the name, such as `source` in `data: {source: digits}`. Each class declares it as a
            `Literal` with one value.
    """

    def __init__(self, key: str):
        self.key = key
        self._classes: dict[str, type[pydantic.BaseModel]] = {}
        self._users: list[type[pydantic.BaseModel]] = []

    def register(self, options: type[pydantic.BaseModel]) -> type[pydantic.BaseModel]:
        """Adds a class under its name; to be used as a decorator."""
        (name,) = get_args(options.model_fields[self.key].annotation)
        self[name] = options
        return options

    def add_user(self, model: type[pydantic.BaseModel]) -> None:
        """Notes a model with a field of the type `any_registered`, which is built again for each new class."""
        self._users.append(model)

    @property
    def any_registered(self) -> Any:
        """The type of a field that holds options of any registered class."""
        return Annotated[Any, self]

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        """Returns the schema of the union of all classes, for pydantic."""
        union = Union[tuple(self._classes.values())]  # noqa: UP007 - of a registry
        return handler.generate_schema(Annotated[union, pydantic.Field(discriminator=self.key)])

    def __getitem__(self, name: str) -> type[pydantic.BaseModel]:
        return self._classes[name]

    def __setitem__(self, name: str, options: type[pydantic.BaseModel]) -> None:
        self._classes[name] = options
        self._rebuild_users()

    def __delitem__(self, name: str) -> None:
        del self._classes[name]
        self._rebuild_users()

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    # Two registries are never the same, so that a type can hold one.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _rebuild_users(self) -> None:
        for model in self._users:
            model.model_rebuild(force=True)
