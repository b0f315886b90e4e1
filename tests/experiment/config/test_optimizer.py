"""The `optimizer` and `callbacks` groups: the default changes nothing, a choice replaces everything."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from omegaconf import OmegaConf

from lightning_fisher.experiment.config.compose import CONFIG_DIR
from lightning_fisher.experiment.config.config_hash import config_hash, flat_config
from lightning_fisher.experiment.records.result import is_as_before
from lightning_fisher.experiment.training.build import make_callbacks
from tests.experiment.config.test_configs import composed
from tests.experiment.conftest import Command
from tests.experiment.refusals import refusal

MODELS = [path.stem for path in sorted((CONFIG_DIR / "model").glob("*.yaml"))]
OTHERS = [path.stem for path in sorted((CONFIG_DIR / "optimizer").glob("*.yaml")) if path.stem != "recipe"]
RESULTS = Path(__file__).parents[3] / "results"
SHORT = ["model.max_epochs=1", "metric.at_end=none", "metric.every_n_validations=null", "model.net.width=4"]


def written(path: Path) -> dict[str, object]:
    """The optimizer of a file, read by PyYAML, whose floats need a dot."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["optimizer"]


@pytest.mark.parametrize("model", MODELS)
def test_by_default_the_recipe_is_unchanged(model: str) -> None:
    cfg = composed(f"model={model}")
    assert OmegaConf.to_container(cfg.model.optimizer) == written(CONFIG_DIR / "model" / f"{model}.yaml")
    assert "callbacks" not in cfg
    assert "optimizer" not in cfg


@pytest.mark.parametrize("run", ["gradient=full_perturbed=1_seed=4_scaling=sqrt-40ee6e0c"])
def test_committed_rows_are_found_again(run: str) -> None:
    path = RESULTS / "step_forms-digits" / run / "result.json"
    if not path.is_file():
        pytest.skip("needs the results of the checkout")
    row = json.loads(path.read_text(encoding="utf-8"))
    cfg = composed(*row["overrides"])
    now = flat_config(cfg)
    assert {key: now.get(key, "(gone)") for key in row["config"]} == row["config"]
    new = [key for key in now if key not in row["config"] and key.startswith(("model.", "callbacks", "optimizer"))]
    assert all(is_as_before(key, now[key]) for key in new)
    assert config_hash(cfg) == row["config_hash"] == run.rpartition("-")[2]


@pytest.mark.parametrize("name", OTHERS)
def test_a_choice_replaces_every_option(name: str) -> None:
    cfg = composed("model=wrn28_2", f"optimizer={name}", "model.optimizer.lr=0.25")
    options = OmegaConf.to_container(cfg.model.optimizer)
    assert options == {**written(CONFIG_DIR / "optimizer" / f"{name}.yaml"), "lr": 0.25}
    taken = inspect.signature(get_class(options.pop("_target_"))).parameters
    assert options.pop("_partial_") is True
    assert set(options) <= set(taken)
    if name != "lion":  # but for the learning rate and weight decay, torch's own defaults, where torch has it
        same = {
            key
            for key, value in options.items()
            if list(value if isinstance(value, list) else [value])
            == list(taken[key].default if isinstance(taken[key].default, tuple) else [taken[key].default])
        }
        assert set(options) - same <= {"lr", "weight_decay", "momentum"}


def test_after_a_study_too() -> None:
    cfg = composed("experiment=scenario_confusion", "size=digits", "optimizer=adam")
    assert cfg.model.optimizer._target_ == "torch.optim.Adam"
    assert "momentum" not in cfg.model.optimizer


def test_an_option_that_is_left_over_is_explained(tmp_path: Path) -> None:
    line = refusal(["model.optimizer._target_=torch.optim.AdamW"], tmp_path / "run")
    assert line is not None
    assert line.startswith("Unknown option `model.optimizer.momentum`: AdamW takes lr, betas, eps,")
    assert line.endswith("choose `optimizer=adamw` or delete `~model.optimizer.momentum` `~model.optimizer.nesterov`.")
    deleted = ["~model.optimizer.momentum", "~model.optimizer.nesterov"]
    assert refusal(["model.optimizer._target_=torch.optim.AdamW", *deleted], tmp_path / "run") is None
    line = refusal(["optimizer=adamw", "+model.optimizer.momentum=0.9"], tmp_path / "run")
    assert line is not None
    assert line.startswith("Unknown option `model.optimizer.momentum`")
    line = refusal(["optimizer=sdg"], tmp_path / "run")
    assert (
        line == "Expected option `optimizer` to be adam, adamw, lion, recipe, rmsprop or sgd, but got `sdg`. "
        "Did you mean `sgd`?"
    )


def test_callbacks_of_the_group() -> None:
    cfg = composed("callbacks=[early_stopping,lr_monitor]", "callbacks.early_stopping.patience=3")
    stopping, monitor = make_callbacks(cfg.callbacks).values()
    assert isinstance(stopping, EarlyStopping)
    assert (stopping.monitor, stopping.patience) == ("val_error", 3)
    assert isinstance(monitor, LearningRateMonitor)
    assert make_callbacks(composed().get("callbacks")) == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["callbacks=nope"], "Expected option `callbacks` to be early_stopping or lr_monitor, but got `nope`."),
        (["+callbacks.mine.word=1"], "`callbacks.mine.word` to be in a node with a `_target_`"),
        (["+callbacks.mine._target_=torch.nn.ReLU"], "`callbacks.mine._target_` to make a lightning.pytorch"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patients=1"], "patience"),
        (["callbacks=early_stopping", "+callbacks.early_stopping.patients=1"], "`callbacks.early_stopping.patients`"),
        (["+callbacks.mine._target_=nowhere.Mine"], "nowhere.Mine"),
    ],
)
def test_what_is_no_callback_is_refused(options: list[str], expected: str, tmp_path: Path) -> None:
    line = refusal([*SHORT, *options], tmp_path / "run")
    assert line is not None
    assert expected in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("options", "named", "why"),
    [
        (["data.validation_size=0"], "val_error", "there is no validation."),
        (["trainer.limit_val_batches=0"], "val_error", "there is no validation."),
        (
            ["data.validation_size=0", "callbacks.early_stopping.monitor=val_loss"],
            "val_loss",
            "there is no validation.",
        ),
        (["callbacks.early_stopping.monitor=gamma"], "gamma", "isn't measured in every validation."),
    ],
)
def test_a_value_that_is_never_logged_is_refused(options: list[str], named: str, why: str, tmp_path: Path) -> None:
    line = refusal([*SHORT, "callbacks=early_stopping", *options], tmp_path / "run")
    assert line is not None
    assert line.startswith("Expected option `callbacks.early_stopping.monitor` to be train_loss")
    assert f"but got `{named}`: " in line
    assert line.endswith(why)
    assert "\n" not in line


def test_values_that_are_logged_can_be_watched(tmp_path: Path) -> None:
    watched = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=train_loss", "data.validation_size=0"]
    assert refusal([*SHORT, *watched], tmp_path / "run") is None
    assert refusal([*SHORT, "callbacks=early_stopping"], tmp_path / "run") is None
    own = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=of_my_own_callback"]
    assert refusal([*SHORT, *own], tmp_path / "run") is None


def test_a_run_with_both(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "announce_with_a_word.py").write_text(
        "from lightning.pytorch import Callback\n\n\n"
        "class Announce(Callback):\n"
        "    def __init__(self, word):\n        self.word = word\n\n"
        "    def on_train_epoch_end(self, trainer, pl_module):\n"
        "        print(self.word, type(trainer.optimizers[0]).__name__, trainer.optimizers[0].defaults['lr'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["+callbacks.mine._target_=announce_with_a_word.Announce", "+callbacks.mine.word=over:"]
    stop = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1000",
    ]
    lasting = ["model.max_epochs=20", "optimizer=adam", "model.optimizer.lr=0.004", "hydra.run.dir=run"]
    result = command(*SHORT, *own, *stop, *lasting)
    assert result.code == 0, result.err
    # The first validation is the best so far; no second one is better by 1000.
    assert result.out.count("over: Adam 0.004") == 2
    row = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (row["epochs"], row["stop_reason"], row["choices"]["optimizer"]) == (2, "stopped", "adam")
    assert row["config"]["callbacks.mine.word"] == "over:"
    kept = torch.load(next((tmp_path / "run" / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert kept["optimizer_states"][0]["param_groups"][0]["betas"] in ((0.9, 0.999), [0.9, 0.999])
