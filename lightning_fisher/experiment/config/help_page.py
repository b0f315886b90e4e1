"""``python run.py --help``, written from the configs themselves: groups, choices, options and their comments."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment.config.compose import CONFIG_DIR, config_groups
from lightning_fisher.experiment.config.yaml_comments import about_file, about_options

OPTIONS = (
    "seed",
    "model.max_epochs",
    "model.optimizer.lr",
    "data.batch_size",
    "data.train_size",
    "data.label_noise",
    "reg.beta",
    "metric.subset_size",
    "metric.logit_norm",
    "score.checkpoint",
    "restart",
)
EXAMPLES = (
    ("", "the default run: less than a minute"),
    ("model=resnet20 data=cifar10 reg.beta=20", "one network of the paper"),
    ("-m reg=none,fisher seed=0,1,2", "a sweep, with a report at its end"),
    ("-m experiment=scenario_confusion size=digits", "a figure of the paper, small"),
    ("score.checkpoint=outputs/RUN", "the metric card of a network"),
    ("score.checkpoint=[outputs/RUN1,outputs/RUN2]", "two networks compared"),
)
FLAGS = (
    ("-m, --multirun", "run one job for every value, or combination of values, separated by commas"),
    ("--cfg job", "print the composed config with every option, and end"),
    ("--config-dir=DIR", "look for configs of your own in DIR too, laid out like conf/"),
    ("--hydra-help", "the flags of Hydra itself"),
)


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def _entry(name: str, text: str, indent: int, column: int, width: int, bold: bool = False) -> str:
    """A name and its explanation, wrapped beside it."""
    lines = textwrap.wrap(text, max(30, width - column)) or [""]
    space = " " * max(2, column - indent - len(name))
    first = " " * indent + (_bold(name) if bold else name) + space + lines[0]
    return "\n".join([first.rstrip(), *(" " * column + line for line in lines[1:])])


def program() -> str:
    """How this program was called."""
    return "lightning-fisher" if Path(sys.argv[0]).name.startswith("lightning-fisher") else "python run.py"


def groups(cfg: DictConfig, width: int) -> list[str]:
    """The groups with their choices, the chosen ones marked."""
    about = about_options(CONFIG_DIR / "config.yaml")
    chosen: dict[str, Any] = dict(cfg.hydra.runtime.choices)
    lines = []
    found = config_groups()
    listed = [key.removeprefix("defaults.") for key in about if key.startswith("defaults.")]
    for group in [g for g in listed if g in found] + [g for g in found if g not in listed]:
        if group.startswith("study/"):
            continue  # set by `experiment` and `size` together
        text = about.get(f"defaults.{group}") or _about_nested(group)
        one = chosen.get(group)
        marked = {one} if one is not None else set(cfg.get(group) or ())  # a list is not among Hydra's choices
        lines.append(_entry(group, text, 2, 20, width, bold=True))
        for name in found[group]:
            mark = "*" if name in marked else " "
            text = textwrap.shorten(about_file(CONFIG_DIR / group / f"{name}.yaml"), width - 31, placeholder=" …")
            lines.append(_entry(f"{mark} {name}", text, 4, 30, width))
    return lines


def _about_nested(group: str) -> str:
    parent, _, name = group.rpartition("/")
    for path in sorted((CONFIG_DIR / parent).glob("*.yaml")):
        text = about_options(path).get(f"defaults.{name}")
        if text:
            return text
    return ""


def options(cfg: DictConfig, width: int) -> list[str]:
    """The options most used, with the values they have and what their comments say."""
    about: dict[str, str] = {}
    chosen = dict(cfg.hydra.runtime.choices)
    for group in ("data", "reg", "model"):
        path = CONFIG_DIR / group / f"{chosen.get(group)}.yaml"
        if path.is_file():
            about |= {f"{group}.{key}": text for key, text in about_options(path).items()}
    about |= about_options(CONFIG_DIR / "config.yaml")
    lines = []
    for key in OPTIONS:
        value = OmegaConf.select(cfg, key)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
        lines.append(_entry(f"{key}={shown}", about.get(key, ""), 2, 30, width))
    return lines


def help_page(*, _root_: DictConfig) -> str:
    """The help page; Hydra's ``hydra.help.template`` is ``${help_page:}``, so it shows the config of the command."""
    width = min(110, max(80, shutil.get_terminal_size((100, 24)).columns))
    name = program()
    paragraphs = [
        textwrap.fill(
            "Train a network with the Fisher-information regularizer, measure the minimum it reaches, run the studies "
            "of the paper as sweeps, and score networks that exist already.",
            width,
        ),
        f"{_bold('Usage')}\n  {name} [GROUP=NAME ...] [OPTION=VALUE ...]     (* marks what this command chooses)",
        "\n".join([_bold("Groups"), *groups(_root_, width)]),
        "\n".join([_bold("Options most used"), *options(_root_, width)]),
        "\n".join([_bold("Flags"), *(_entry(flag, text, 2, 24, width) for flag, text in FLAGS)]),
        "\n".join([_bold("Examples"), *(f"  {name} {e}".ljust(66) + f"  # {t}" for e, t in EXAMPLES)]),
        textwrap.fill(
            "Every run has a folder under outputs/ with result.json, a figure and its checkpoints; the same command "
            "continues or shows it. README.md begins, docs/ explains: docs/metric-card.md, docs/method.md, ...",
            width,
        ),
    ]
    return ("\n\n".join(paragraphs) + "\n").replace("$", "$$")
