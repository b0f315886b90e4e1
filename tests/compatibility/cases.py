"""The table of cases."""

from __future__ import annotations

import functools
import importlib
import importlib.util

from tests.compatibility.case import Case

NEEDS = {  # module of cases -> what it is about, beyond what the library's own tests need
    "cases_setups": (),
    "cases_published": (),
    "cases_vision": ("torchvision", "timm", "segmentation_models_pytorch"),
    "cases_text": ("transformers",),
    "cases_graphs": ("torch_geometric",),
    "cases_lightning": ("pandas", "pytorch_forecasting"),
}


@functools.cache
def supported() -> list[Case]:
    """Cases that are trained."""
    return [case for module in _modules() for case in getattr(module, "CASES", [])]


@functools.cache
def refused() -> list[Case]:
    """Cases that are refused."""
    return [case for module in _modules() for case in getattr(module, "REFUSED", [])]


def _modules():
    return [importlib.import_module(f"tests.compatibility.{name}") for name in NEEDS if not missing(name)]


def missing(name: str) -> list[str]:
    """Packages of ``NEEDS`` that aren't installed."""
    return [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]


def missing_packages() -> list[str]:
    """All of them: the table is whole without."""
    return [package for name in NEEDS for package in missing(name)]
