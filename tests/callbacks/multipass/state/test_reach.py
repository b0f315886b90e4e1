"""Whose code is read for what a step may change: the user's, and not that of installed packages, wherever they lie."""

from __future__ import annotations

import importlib
import itertools
import sys

import lightning as L
import pytest
import torch
from torch import nn

from lightning_fisher.callbacks import SharpnessAware
from lightning_fisher.callbacks.multipass.state.reach import is_users

number = itertools.count()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that modules are imported from, of a name that says nothing, with one installed package in it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {kind: f"{kind}_{next(number)}" for kind in ("installed", "single", "mine")}
    package = tmp_path / names["installed"]
    package.mkdir()
    (package / "__init__.py").write_text("calls = []\n")
    (tmp_path / f"{names['single']}.py").write_text("calls = []\n")
    (tmp_path / f"{names['mine']}.py").write_text("calls = []\n")
    record = tmp_path / f"{names['installed']}-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {names['installed']}\nVersion: 1.0\n")
    files = f"{names['installed']}/__init__.py", f"{names['single']}.py", f"{record.name}/RECORD"
    (record / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    yield {kind: importlib.import_module(name) for kind, name in names.items()}
    for name in names.values():
        sys.modules.pop(name, None)


def test_packages_installed_into_a_folder_of_any_name(folder):
    # `pip install --target`, as of functions in a cloud: beside them lies the user's own code.
    assert not is_users(folder["installed"].__name__)
    assert not is_users(folder["single"].__name__)
    assert is_users(folder["mine"].__name__)


def test_a_checkout_installed_as_such_is_the_users(tmp_path, monkeypatch):
    name = f"checkout_{next(number)}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    made = tmp_path / f"{name}.egg-info"  # by `pip install -e`
    made.mkdir()
    (made / "SOURCES.txt").write_text(f"{name}/__init__.py\n")
    (made / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module(name)
    assert is_users(name)


class FillsIn:
    """Gives itself an attribute once one is read, as lazy modules do."""

    def __init__(self, own):
        self.first, self.second = own, [1]


class Lazy:
    """A slot of it is read through a descriptor that fills in another attribute of its owner."""

    __slots__ = ("owner", "value")

    def __getattribute__(self, name):
        if name == "value":
            owner = object.__getattribute__(self, "owner")
            setattr(owner, f"filled_{len(vars(owner))}", [2])
            return [3]
        return object.__getattribute__(self, name)


class Net(L.LightningModule):
    """Holds such an object."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)
        lazy = Lazy()
        self.held = FillsIn(lazy)
        lazy.owner = self.held
        self.counted = []

    def training_step(self, batch, batch_idx):
        self.counted.append(batch_idx)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_attributes_that_appear_when_others_are_read():
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(8, 3), torch.randint(2, (8,)))
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=[SharpnessAware()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    module = Net()
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    assert module.counted == [0, 1]
