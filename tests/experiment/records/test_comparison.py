"""What a run of the comparison of methods takes: a trial, a seed, the chosen value, epochs by the budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.compose import CONFIG_DIR
from lightning_fisher.experiment.records.comparison import CHOOSING_SEED, compared
from lightning_fisher.experiment.records.result import FORMAT
from tests.experiment.config.test_configs import composed

GRID = [0.01, 0.05, 0.1]


def root(job: str, folder: Path, **node: object) -> object:
    comparison = {"job": job, "name": "sam", "parameter": "reg.rho", "grid": GRID, "cost": 2, "epochs": 20, "budget": 2}
    return OmegaConf.create(
        {
            "comparison": {**comparison, **node},
            "data": {"label_noise": 0.4},
            "hydra": {"mode": "RunMode.MULTIRUN", "sweep": {"dir": str(folder)}},
        }
    )


def tried(folder: Path, errors: list[float], name: str = "sam", noise: float = 0.4) -> None:
    for number, error in enumerate(errors):
        run = folder / f"{name}{noise}{number}"
        run.mkdir()
        config = {"comparison.name": name, "comparison.job": f"choose{number}", "data.label_noise": noise}
        (run / "result.json").write_text(json.dumps({"format": FORMAT, "config": config, "val_error": error}))


@pytest.mark.parametrize(("number", "value"), [(0, 0.01), (2, 0.1), (4, 0.05)])
def test_trials_take_the_values_in_turn(tmp_path: Path, number: int, value: float) -> None:
    assert compared("value", _root_=root(f"choose{number}", tmp_path)) == value
    assert compared("seed", _root_=root(f"choose{number}", tmp_path)) == CHOOSING_SEED


@pytest.mark.parametrize("kind", ["epochs", "evaluations"])
def test_the_value_of_the_least_validation_error(tmp_path: Path, kind: str) -> None:
    tried(tmp_path, [9.0, 7.0, 8.0])
    tried(tmp_path, [1.0, 9.0, 9.0], name="asam")
    tried(tmp_path, [1.0, 9.0, 9.0], noise=0.0)
    assert compared("value", _root_=root(f"{kind}3", tmp_path)) == 0.05
    assert compared("seed", _root_=root(f"{kind}3", tmp_path)) == 3


def test_of_equal_ones_the_first(tmp_path: Path) -> None:
    tried(tmp_path, [9.0, 7.0, 7.0])
    assert compared("value", _root_=root("epochs0", tmp_path)) == 0.05


def test_without_all_trials_it_is_refused(tmp_path: Path) -> None:
    tried(tmp_path, [9.0, 7.0])
    with pytest.raises(ConfigError, match=r"every value of reg.rho.*none for \[0.1\]"):
        compared("value", _root_=root("epochs0", tmp_path))


@pytest.mark.parametrize(
    ("job", "cost", "epochs"), [("epochs0", 2, 20), ("evaluations0", 1, 40), ("evaluations0", 6, 7)]
)
def test_epochs_by_the_budget(tmp_path: Path, job: str, cost: float, epochs: int) -> None:
    assert compared("epochs", _root_=root(job, tmp_path, cost=cost)) == epochs


def test_another_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"comparison.job.*test1"):
        compared("seed", _root_=root("test1", tmp_path))


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONFIG_DIR / "comparison").glob("*.yaml"))])
def test_each_method_tries_its_own_parameter(name: str) -> None:
    """As many values each; the trial is what the run has."""
    for number in range(5):
        cfg = composed("experiment=methods", "size=digits", f"comparison={name}", f"comparison.job=choose{number}")
        grid, parameter = list(cfg.comparison.grid), cfg.comparison.parameter
        assert cfg.comparison.name == name
        assert len(grid) == (1 if parameter is None else 5)
        if parameter is not None:
            assert OmegaConf.select(cfg, parameter) == grid[number]
        assert cfg.seed == CHOOSING_SEED
