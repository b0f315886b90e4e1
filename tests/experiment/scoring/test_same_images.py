"""Which two networks may be compared: those that were trained on the same images, whatever their options look like."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.scoring.network import check_same_images


def compare(first: dict[str, Any], second: dict[str, Any]) -> None:
    check_same_images(*(SimpleNamespace(data=OmegaConf.create(data)) for data in (first, second)))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["train_size", "confusion_size", "label_noise"])
def test_the_seed_counts_where_it_draws(key: str) -> None:
    data = {"name": "digits", "train_size": None, "confusion_size": 0, "label_noise": 0.0}
    compare(data | {"seed": 0}, data | {"seed": 1})
    with pytest.raises(ConfigError, match=r"data.seed \(0 and 1\)"):
        compare(data | {"seed": 0}, data | {"seed": 1, key: 0.5})


def test_the_place_does_not_count(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 0), ("c", 1)):
        np.savez(tmp_path / name, train_images=np.full((2, 2), value))
    a, b, c = ({"name": "arrays", "path": str(tmp_path / f"{name}.npz")} for name in "abc")
    compare(a, b)
    with pytest.raises(ConfigError, match=r"data.path"):
        compare(a, c)
    compare({"name": "cifar10", "data_dir": "data"}, {"name": "cifar10", "data_dir": "elsewhere", "download": False})
