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
from typing import Any

from lightning_fisher.callbacks.multipass.state.records.names import Assigned, Namespace
from lightning_fisher.callbacks.multipass.state.records.record import Record

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
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return not any(folder in str(place) for place in places for folder in _INSTALLED)


def of_class(kind: type, name: str) -> Iterator[Record | tuple[str, Any]]:
    """The attributes of a class, which may count something, and its methods: a record, and values by name."""
    data = {
        key: inside
        for key, inside in vars(kind).items()
        if not key.startswith("__")
        and not isinstance(inside, (*CODE, types.FunctionType, functools.partial))
        and not hasattr(type(inside), "__get__")
    }
    if data:
        yield Assigned(kind, data)
    for key, inside in [*data.items(), *functions_of(kind)]:
        yield f"{name}.{key}", inside


def of_function(function: types.FunctionType, name: str) -> Iterator[Record | tuple[str, Any]]:
    """What a function reaches outside of its arguments: records, and values by name."""
    for variable, cell in cells(function):
        yield f"{name}.{variable}", cell
        yield f"{name}.{variable}", cell.cell_contents
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield name, value
    if function.__dict__:
        yield Namespace(function.__dict__)
        yield from ((f"{name}[{key!r}]", value) for key, value in function.__dict__.items())
    read, written = global_variables(function)
    if written:
        yield Namespace(function.__globals__, only=written)
    for variable in read:
        yield variable, function.__globals__.get(variable)


def of_namespace(module: types.ModuleType) -> Iterator[Record | tuple[str, Any]]:
    """The variables of a module of the user's that his functions name: a record, and values by name."""
    names = vars(module)
    own = [name for name, value in names.items() if not name.startswith("__") and not isinstance(value, CODE)]
    yield Namespace(names, only=own)
    yield from ((f"{module.__name__}.{name}", names[name]) for name in own)


def global_variables(function: types.FunctionType) -> tuple[list[str], set[str]]:
    """Names of the global variables that a function, or one defined in it, reads, and of those that it sets."""
    return _names(function.__code__)


@functools.cache
def _names(code: types.CodeType) -> tuple[list[str], set[str]]:
    read: dict[str, None] = {}
    written: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read[instruction.argval] = None
        elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(instruction.argval)
            read[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more, set_there = _names(constant)
            read.update(dict.fromkeys(more))
            written |= set_there
    return [name for name in read if name in written or not hasattr(builtins, name)], written


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
    for name, value in vars(kind).items():
        if isinstance(value, property):
            yield from ((name, f) for f in (value.fget, value.fset) if isinstance(f, types.FunctionType))
            continue
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType):
            yield name, function
