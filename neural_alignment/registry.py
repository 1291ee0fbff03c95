"""Registries of option classes: which name in a configuration selects which class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic

from neural_alignment.errors import ArgumentError, Words


def misfit(function: Callable[..., Any] | None, positional: Sequence[str] = (), named: Sequence[str] = ()) -> str:
    """Returns why a function of a registered class, such as one of a user, cannot be called; empty if it can be.

    The function is not called, so an error within it is not mistaken for this one.

    Args:
        function: the function, or None if the class does not define it.
        positional: the names of the positional arguments.
        named: the names of the keyword arguments.
    """
    if function is None:
        return "it is missing"
    try:
        inspect.signature(function).bind(*positional, **dict.fromkeys(named))
    except TypeError as error:
        return str(error)
    return ""


class Registry(MutableMapping[str, type[pydantic.BaseModel]]):
    """A mapping from names in a configuration to option classes.

    A class can be registered at any time, also from outside of the package. Configurations that are read afterwards
    accept it.

    Args:
        key: the field that holds the name, such as `source` in `data: {source: digits}`. Each class declares it as a
            `Literal` with one value.
    """

    def __init__(self, key: str):
        self.key = key
        self._classes: dict[str, type[pydantic.BaseModel]] = {}
        self._users: list[type[pydantic.BaseModel]] = []

    def register(self, options: type[pydantic.BaseModel]) -> type[pydantic.BaseModel]:
        """Class decorator: adds a class under its name.

        Raises:
            ArgumentError: if another class has this name. A class that is defined again, as in a notebook, replaces the
                previous one.
            ValueError: if the class does not declare its name.
        """
        name = self._name_of(options)
        taken = self._classes.get(name, options)
        if (taken.__module__, taken.__qualname__) != (options.__module__, options.__qualname__):
            found = Words(f"{name!r}, the name of {taken.__module__}.{taken.__qualname__}")
            raise ArgumentError(self.key, "must be a name that no other class has", found)
        self[name] = options
        return options

    def _name_of(self, options: type[pydantic.BaseModel]) -> str:
        """Returns the name that a class declares as a `Literal`."""
        field = options.model_fields.get(self.key)
        names = () if field is None or get_origin(field.annotation) is not Literal else get_args(field.annotation)
        if len(names) != 1:
            found = Words("no such field") if field is None else field.annotation
            example = f'{self.key}: Literal["{options.__name__.lower()}"] = "{options.__name__.lower()}"'
            raise ArgumentError(self.key, f"of {options.__name__} must be a `Literal` with one name", found, example)
        return names[0]

    def add_user(self, model: type[pydantic.BaseModel]) -> None:
        """Registers a pydantic model that has a field of the type `any_registered`.

        pydantic fixes the types of fields when it builds a model, so the model is rebuilt whenever a class is added.
        """
        self._users.append(model)

    @property
    def any_registered(self) -> Any:
        """The type of a field that holds options of any registered class."""
        return Annotated[Any, self]

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        """Returns the schema of the union of all classes, for pydantic."""
        union = Union[tuple(self._classes.values())]  # noqa: UP007 - the members are only known at run time
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

    # Registries are compared and hashed by identity, because `Annotated` types are hashable only if their metadata are.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _rebuild_users(self) -> None:
        for model in self._users:
            model.model_rebuild(force=True)
