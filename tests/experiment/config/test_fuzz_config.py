"""Any value under any option: the config is accepted, or refused in one line that names the option."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from lightning_fisher import FisherMetric, FisherMonitor, FisherRegularizer
from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.experiment.config.compose import config_groups
from lightning_fisher.experiment.config.config_hash import config_hash, flat_config
from lightning_fisher.experiment.config.error_messages import explain
from lightning_fisher.experiment.config.validation import check_config
from lightning_fisher.experiment.training.build import made, make_module, make_trainer
from lightning_fisher.experiment.training.final_metrics import make_monitor
from lightning_fisher.experiment.training.loggers import make_loggers
from lightning_fisher.experiment.training.preflight import check_optimizer
from lightning_fisher.metrics import HessianFrobeniusMetric, HessianSpectralRadiusMetric, RobustnessMetric
from tests.experiment.refusals import checked

# The same examples every time; the longest takes a second on a busy machine.
steady = functools.partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-(2**63), -5, -1, 0, 1, 2, 3, 8, 64, 100, 2**31, 2**32, 10**30]),
    st.sampled_from([-1.0, 0.0, 1e-320, 1e-4, 0.5, 1.0, 1.5, 8.0, 1e300, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(
        [
            "",
            " ",
            "auto",
            "none",
            "null",
            "1",
            "1e3",
            "ten",
            "first_lr_drop",
            "epoch:3",
            "step:-1",
            "../..",
            "ü",
            "a: b",
        ]
    ),
    st.text(alphabet=st.characters(exclude_characters="$\\", exclude_categories=["Cs"]), max_size=6),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(
        st.sampled_from(["a", "lr", "_target_"]), st.one_of(st.none(), st.integers(0, 3), st.just("a")), max_size=2
    ),
)


@functools.cache
def base(*overrides: str) -> DictConfig:
    return checked(list(overrides))


def options() -> list[str]:
    """Every option and every node of the default config."""
    keys = list(flat_config(base()))
    nodes = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    return sorted({*keys, *nodes})


def changed(changes: dict[str, Any]) -> DictConfig:
    cfg = copy.deepcopy(base())
    OmegaConf.set_struct(cfg, False)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def check(cfg: DictConfig) -> None:
    with mock.patch("lightning_fisher.experiment.config.validation.defaults", return_value=base()):
        check_config(cfg, [])


def line_about(call: Callable[[], Any]) -> str | None:
    """The line a user would see, None if there is nothing to say.

    Raises:
        Exception: what would be shown with its traceback.
    """
    try:
        call()
    except Exception as error:
        line = explain(error, [], config_groups())
        if line is None:
            raise
        assert "\n" not in line
        return line
    return None


def make(cfg: DictConfig, folder: Any) -> None:
    """What a run makes of a config that was accepted; a network of any size is not among it."""
    cfg.model.net = base().model.net
    made("data", cfg.data, ImageDataModule)
    check_optimizer(make_module(cfg.model))
    if OmegaConf.select(cfg, "reg._target_"):
        made("reg", cfg.reg, FisherRegularizer)
    make_monitor(cfg.metric, "all", cfg.metric.every_n_validations or 1)
    make_loggers(cfg.get("logger") or OmegaConf.create({}), folder, None, "12345678")
    make_trainer(cfg.trainer, [], [], folder)
    config_hash(cfg)


@steady(max_examples=200)
@given(changes=st.dictionaries(st.sampled_from(options()), VALUES, min_size=1, max_size=2))
def test_any_value_of_any_option(changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        cfg = changed(changes)
    except Exception:  # two options of which one is above the other
        return
    line = line_about(lambda: check(cfg))
    if line is not None:
        assert any(part in line for key in changes for part in (key.split(".")[0], key.split(".")[-1])), line
        return
    with mock.patch("lightning_fisher.experiment.training.build.RunCheckpointIO", mock.MagicMock):
        line_about(lambda: make(cfg, tmp_path_factory.getbasetemp()))


@steady(max_examples=25)
@given(
    key=st.one_of(st.sampled_from(options()), st.text(max_size=5)),
    sign=st.sampled_from(["", "", "", "+", "++", "~"]),
    value=st.one_of(
        st.text(alphabet=st.sampled_from("01.e-+nulrtfas'\"[]{},:=$ \\()"), max_size=8),
        st.text(max_size=5),
    ),
)
def test_any_text_of_any_override(key: str, sign: str, value: str) -> None:
    """Through Hydra's grammar; whether a value makes sense is asked above."""
    line_about(lambda: checked([f"{sign}{key}={value}"]))


CHOICES = [f"{group}={name}" for group, names in config_groups().items() for name in names if "study" not in group]


@steady(max_examples=5)
@given(choices=st.lists(st.sampled_from(CHOICES), max_size=3))
def test_any_choice_of_groups(choices: list[str]) -> None:
    """Any of them together compose and pass their own checks, or are refused in a line."""
    line_about(lambda: checked(choices))


ARGUMENTS: list[tuple[Callable[..., Any], list[str]]] = [
    (
        FisherRegularizer,
        [
            "beta",
            "alpha",
            "num_sub_batches",
            "start",
            "beta_schedule",
            "ramp_epochs",
            "gradient",
            "perturbed",
            "every_n_steps",
            "passes",
            "scaling",
        ],
    ),
    (FisherMonitor, ["num_subsets", "subset_size", "every_n_validations", "seed"]),
    (FisherMetric, ["logit_norm", "batch_norm", "chunk_size", "rank_policy"]),
    (RobustnessMetric, ["method", "tol", "max_iter", "chunk_size"]),
    (HessianFrobeniusMetric, ["num_probes", "chunk_size"]),
    (HessianSpectralRadiusMetric, ["tol", "max_iter", "chunk_size"]),
]


@pytest.mark.parametrize(("kind", "names"), ARGUMENTS, ids=[kind.__name__ for kind, _ in ARGUMENTS])
@steady(max_examples=60)
@given(data=st.data())
def test_any_argument_of_the_library(kind: Callable[..., Any], names: list[str], data: st.DataObject) -> None:
    """Without the checks of the configs: a constructor takes a value or names the argument that is wrong."""
    arguments = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=2))
    line = None
    try:
        kind(**arguments)
    except ValueError as error:
        line = str(error)
    if line is not None:
        assert "\n" not in line
        assert any(f"`{name}`" in line for name in (*arguments, "ramp_epochs")), line


def test_the_fuzzer_reaches_the_options() -> None:
    assert len(options()) > 80
    assert {"reg.beta", "trainer.devices", "metric", "seed"} <= set(options())
