"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package whose public names are imported when they are first used.

    The names and where they are defined stand in one place, the imports of the package's `__init__` under
    `if TYPE_CHECKING:`, which type checkers and editors read as they stand. Here they are read from its source. The
    modules of the package are attributes too.

    Args:
        package: The `__name__` of the package.

    Returns:
        `__getattr__` and `__dir__` of the package.

    Example:
        >>> import lightning_fisher
        >>> "FisherMetric" in dir(lightning_fisher)
        True
        >>> lightning_fisher.Nothing
        Traceback (most recent call last):
        AttributeError: module 'lightning_fisher' has no attribute 'Nothing'
    """

    def get(name: str) -> Any:
        module = None if name.startswith("__") else declared(package).get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if module == package:
            return importlib.import_module(f"{package}.{name}")
        found = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, found)  # the next use is a plain attribute
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *declared(package)})

    return get, names


@functools.cache
def declared(package: str) -> dict[str, str]:
    """The names that a package imports under `if TYPE_CHECKING:`, and its modules.

    Args:
        package: The dotted name of the package.

    Returns:
        By name, the module it is imported from: for a module of the package, the package.
    """
    spec = importlib.util.find_spec(package)
    loader: Any = spec.loader if spec is not None else None
    folders = spec.submodule_search_locations if spec is not None else None
    modules = {found.name: package for found in pkgutil.iter_modules(folders) if not found.name.startswith("_")}
    blocks = [node for node in ast.parse(loader.get_source(package)).body if isinstance(node, ast.If)]
    return modules | {
        alias.name: node.module
        for block in blocks
        if ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
