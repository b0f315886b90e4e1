"""What docs/stability.md promises of names."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.pages import DOCS

PAGE = (DOCS / "stability.md").read_text(encoding="utf-8")
ROW = next(line for line in PAGE.splitlines() if line.startswith("| Python |"))
PACKAGES = [
    name if name.startswith("lightning_fisher") else f"lightning_fisher{name}"
    for name in re.findall(r"`([\w.]+)`", ROW.partition("these packages names:")[2].partition(";")[0])
]


def test_packages_are_named() -> None:
    assert len(PACKAGES) >= 10


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("name", re.findall(r"`(lightning_fisher\.module|\.datamodule|\.exceptions)`", ROW))
def test_modules_whose_classes_are_public(name: str) -> None:
    assert importlib.import_module(name if name.startswith("light") else f"lightning_fisher{name}")


def test_an_old_name_works_and_warns_with_the_new_one() -> None:
    from lightning_fisher.data import LabeledImages, images

    with pytest.warns(DeprecationWarning, match="`LabeledImages`"):
        assert images.LabelledImages is LabeledImages
    with pytest.raises(AttributeError, match="Pictures"):
        _ = images.Pictures
