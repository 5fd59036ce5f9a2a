"""Modules without content, for what a client imports and the part under test does not need."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
import types
from typing import Any


class HollowModule(types.ModuleType):
    """Every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        empty = type(name, (), {"__init__": lambda self, *_, **__: None})
        empty.__class_getitem__ = classmethod(lambda cls, _: cls)
        setattr(self, name, empty)
        return empty


class HollowFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes hollow modules of these names and of everything below them."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == part or name.startswith(part + ".") for part in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        return HollowModule(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__path__ = []


def without_their_init(package: str, *below: str) -> None:
    """`package` and these packages below it are found, but their __init__.py is not run."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    place = found.submodule_search_locations[0]
    for dotted in (package, *(f"{package}.{name}" for name in below)):
        module = types.ModuleType(dotted)
        module.__path__ = [str(pathlib.Path(place, *dotted.split(".")[1:]))]
        sys.modules[dotted] = module
