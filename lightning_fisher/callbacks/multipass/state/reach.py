"""What a user's functions reach outside of their arguments: global variables, closures, defaults.

Only code of the user's is read: neither of the standard library nor of installed packages, but for the package that the
LightningModule itself comes from.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_fisher.callbacks.multipass.state import places
from lightning_fisher.callbacks.multipass.state.caches import CACHED
from lightning_fisher.callbacks.multipass.state.records.names import Assigned, Namespace
from lightning_fisher.callbacks.multipass.state.records.record import Record

Found = Record | tuple[str, Any, places.Place | None]  # or a value: its name, itself, where it is held

CODE = (types.BuiltinFunctionType, types.ModuleType, property, staticmethod, classmethod)

_NOT_USERS = {"lightning_fisher", "torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"}
_INSTALLED = ("site-packages", "dist-packages")


def is_users(module_name: Any, own: str = "") -> bool:
    """Whether code of this module is the user's.

    Args:
        module_name: ``__module__`` of a function or class.
        own: Top-level package of the LightningModule.
    """
    top = str(module_name).partition(".")[0]
    return (top == own and top not in _NOT_USERS) or _is_local(top)


@functools.cache
def _is_local(top: str) -> bool:
    if top in _NOT_USERS or (top in sys.stdlib_module_names and top != "__main__"):
        return False
    module = sys.modules.get(top)
    if module is None:
        return True
    where = [str(place) for place in (getattr(module, "__file__", None) or "", *getattr(module, "__path__", ()))]
    if any(folder in place for place in where for folder in _INSTALLED):
        return False
    return not any(top in _installed_in(folder) for folder in {_root_of(place) for place in where if place})


def _root_of(place: str) -> str:
    """The folder that is searched for a top-level package or module, of the place of it."""
    path = Path(place)
    return str((path.parent if path.name == "__init__.py" else path).parent)


@functools.cache
def _installed_in(folder: str) -> set[str]:
    """Top-level names of what was installed into a folder of any name (``pip install --target``), by its records.

    Code that merely lies there, beside installed packages, is in none; nor is a checkout that is installed as such.
    """
    installed = [d for d in metadata.distributions(path=[folder]) if d.read_text("RECORD")]  # not a checkout's own
    return {file.parts[0].removesuffix(".py") for d in installed for file in d.files or ()}


def of_class(kind: type, name: str, own: str) -> Iterator[Found]:
    """The attributes of a class, which may count something, and its methods: a record, and values.

    Args:
        kind: The class.
        name: Its name.
        own: See `is_users`.
    """
    held = {
        key: inside
        for key, inside in list(vars(kind).items())
        if not key.startswith("__") and not isinstance(inside, (*CODE, types.FunctionType, functools.partial))
    }
    data = {key: inside for key, inside in held.items() if not hasattr(type(inside), "__get__")}
    if data:
        yield Assigned(kind, data)
    for key, inside in held.items():
        if key in data or isinstance(inside, CACHED):
            yield f"{name}.{key}", inside, places.attribute(kind, key)
        elif is_users(type(inside).__module__, own):  # a descriptor, which may hold the values itself
            yield f"{name}.{key}", inside, None
    for key, function in functions_of(kind):
        yield f"{name}.{key}", function, None
    if is_users(type(kind).__module__, own):
        yield type(kind).__name__, type(kind), None


def of_function(function: types.FunctionType, name: str) -> Iterator[Found]:
    """What a function reaches outside of its arguments: records, and values."""
    for variable, cell in cells(function):
        yield f"{name}.{variable}", cell, None
    if function.__defaults__:
        yield name, function.__defaults__, places.attribute(function, "__defaults__")
    for key, value in list((function.__kwdefaults__ or {}).items()):
        yield f"{name}.{key}", value, places.entry(function.__kwdefaults__, key)
    if function.__dict__:
        yield Namespace(function.__dict__)
        for key, value in list(function.__dict__.items()):
            yield f"{name}.{key}", value, places.entry(function.__dict__, key)
    read, written, imported = global_variables(function)
    names = function.__globals__
    if written:
        yield Namespace(names, only=written)
    for variable in read:
        if variable in names:
            yield variable, names[variable], places.entry(names, variable)
    for path in imported:
        found = sys.modules.get(path) or sys.modules.get(f"{names.get('__package__')}.{path}")
        if found is not None:
            yield path, found, None


def of_namespace(module: types.ModuleType) -> Iterator[Found]:
    """The variables of a module of the user's that his functions name: a record, and values."""
    names = vars(module)
    own = [name for name, value in list(names.items()) if not name.startswith("__") and not isinstance(value, CODE)]
    yield Namespace(names, only=own)
    for name in own:
        yield f"{module.__name__}.{name}", names[name], places.entry(names, name)


def global_variables(function: types.FunctionType) -> tuple[list[str], set[str], list[str]]:
    """Names of the global variables that a function, or one defined in it, reads; that it sets; of what it imports."""
    return _names(function.__code__)


@functools.cache
def _names(code: types.CodeType) -> tuple[list[str], set[str], list[str]]:
    read: dict[str, None] = {}
    written: set[str] = set()
    imported: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read[instruction.argval] = None
        elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(instruction.argval)
            read[instruction.argval] = None
        elif instruction.opname == "IMPORT_NAME":
            imported[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more, set_there, imported_there = _names(constant)
            read.update(dict.fromkeys(more))
            written |= set_there
            imported.update(dict.fromkeys(imported_there))
    return [name for name in read if name in written or not hasattr(builtins, name)], written, list(imported)


def cells(function: types.FunctionType) -> Iterator[tuple[str, types.CellType]]:
    """The variables of a closure that have a value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            cell.cell_contents  # noqa: B018
        except ValueError:  # not assigned yet
            continue
        yield name, cell


def functions_of(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods that a class defines itself."""
    for name, value in list(vars(kind).items()):  # what is found may import, or fill in, something
        if isinstance(value, property):
            yield from ((name, f) for f in (value.fget, value.fset) if isinstance(f, types.FunctionType))
            continue
        function = getattr(value, "__func__", getattr(value, "func", value))
        if isinstance(function, types.FunctionType):
            yield name, function
