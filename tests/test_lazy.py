"""The public names of every package: complete, at one place each, and imported when they are first used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import lightning_fisher
from lightning_fisher.lazy import declared

PACKAGES = [
    "lightning_fisher",
    *(
        found.name
        for found in pkgutil.walk_packages(lightning_fisher.__path__, "lightning_fisher.")
        if found.ispkg and not found.name.startswith("lightning_fisher.experiment")
    ),
]
EXPORTING = [name for name in PACKAGES if hasattr(importlib.import_module(name), "__all__")]


def modules_of(package: str) -> set[str]:
    return {found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__)}


def loaded_after(*lines: str) -> set[str]:
    """The modules that a new interpreter has loaded after some lines."""
    code = "\n".join([*lines, "import sys", "print(*sys.modules)"])
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_there_are_packages() -> None:
    assert {"lightning_fisher", "lightning_fisher.functional", "lightning_fisher.metrics"} <= set(EXPORTING)


@pytest.mark.parametrize("package", EXPORTING)
def test_every_public_name_is_there_and_listed(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert {*module.__all__, *modules_of(package)} - {"__main__"} <= set(dir(module))
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("package", EXPORTING)
def test_what_is_imported_for_type_checkers_is_what_is_public(package: str) -> None:
    module = importlib.import_module(package)
    imported = {name for name, source in declared(package).items() if source != package}
    assert imported == set(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_has_the_name_of_a_public_object(package: str) -> None:
    """Which of the two `package.name` is would depend on what was imported before."""
    public = getattr(importlib.import_module(package), "__all__", [])
    assert not modules_of(package) & set(public)


@pytest.mark.parametrize("package", EXPORTING)
def test_a_name_that_is_not_there(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from {package} import nothing")


@pytest.mark.parametrize("package", EXPORTING)
def test_a_package_loads_nothing_heavy(package: str) -> None:
    loaded = loaded_after(f"import {package}", f"dir({package})")
    assert not loaded & {"torch", "lightning", "torchmetrics", "numpy", "scipy", "torchvision", "hydra"}


def test_functions_load_torch_and_no_lightning() -> None:
    loaded = loaded_after("from lightning_fisher.functional import gram_matrix, regularized_gradient, kendall_tau")
    assert "torch" in loaded
    assert not loaded & {"lightning", "torchmetrics"}


def test_modules_are_attributes() -> None:
    """As they were when the packages imported everything."""
    code = "import lightning_fisher as l; l.functional.gram.matrix.gram_matrix; l.metrics.FisherMetric; l.data.images"
    assert "lightning_fisher.metrics.fisher" in loaded_after(code)


def test_a_public_name_is_the_object_of_its_module() -> None:
    from lightning_fisher.functional import gram_matrix
    from lightning_fisher.functional.gram import gram_matrix as nearer
    from lightning_fisher.functional.gram.matrix import gram_matrix as own

    assert gram_matrix is own
    assert nearer is own
