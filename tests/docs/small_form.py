"""A documented command in its small form: the same words, with few epochs, small networks and images that are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME
from lightning_fisher.experiment.config.resolvers import register_resolvers
from tests.docs.pages import ROOT, blocks, commands

PROGRAM = re.compile(r"^(python run\.py|lightning-fisher|python -m lightning_fisher\.experiment)(?: (?P<rest>.*))?$")
RUNS = ("outputs/RUN", "outputs/a", "outputs/b", "outputs/c", "outputs/digits-resnet8/default-5dc3ce59")
"""Folders of runs that the commands name."""
IMAGES = ["data=arrays", "data.path=images.npz", "data.num_classes=10", "data.channels=3", "data.image_size=16"]
IMAGES += ["data.validation_size=20"]
TRAINING = {
    "model.max_epochs": "1",
    "model.batch_size": "50",
    "metric.num_subsets": "2",
    "metric.subset_size": "5",
    "reg.num_sub_batches": "2",
    "trainer.accelerator": "cpu",
}
SCORING = {"metric.num_subsets": "2", "metric.subset_size": "5"}
NETWORKS = {
    "wrn28_2": {"model.net.depth": "10", "model.net.widen_factor": "1"},
    "two_layers": {},
    "resnet8": {"model.net.width": "2"},
    "resnet20": {"model.net.width": "2"},
}


def documented() -> list[tuple[str, str]]:
    """Every command line of README and docs once, with the page where it first stands."""
    readme = [(ROOT / "README.md", line) for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    found: dict[str, str] = {}
    for page, line in [*readme, *commands()]:
        for command in line.split(" #")[0].split(" && "):
            if command.strip() and not command.startswith("#"):
                found.setdefault(command.strip(), page.stem)
    return [(page, command) for command, page in found.items()]


def is_slow(arguments: str) -> bool:
    """Whether it starts other processes: a sweep its jobs, DDP its ranks."""
    words = shlex.split(arguments)
    return "trainer=ddp" in words or "-m" in words


def small(arguments: str) -> list[str]:
    """The words of the small form."""
    words = [word.replace("my_model", "two_layers") for word in shlex.split(arguments)]
    if any(word.startswith("--") and "config-dir" not in word for word in words):
        return words
    words = [word.replace("$runs", "outputs/a,outputs/b") for word in words if not word.startswith("data.download")]
    words = [new for word in words for new in (IMAGES if word.startswith("data=cifar") else [word])]
    if "data=imagenet" in words:
        return _with(words, TRAINING | NETWORKS["resnet8"] | {"data.validation_size": "5", "metric.subset_size": "2"})
    if "data.path=my.npz" in words:
        return _with(words, TRAINING | NETWORKS["resnet8"] | {"data.validation_size": "20"})
    if any(word.startswith("score.checkpoint") for word in words):
        return _with(words, SCORING)
    chosen = next((word.partition("=")[2] for word in words if word.startswith("model=")), "resnet8")
    more = TRAINING | NETWORKS[chosen]
    if "trainer=ddp" in words:
        more |= {"trainer.devices": "2"}
    study = next((word for word in words if word.startswith("experiment=")), None)
    if study is not None:
        words = [*dict.fromkeys([*words, "size=digits"])]
        more |= {key: ",".join(_values(key, value)[:1]) for key, value in _swept(study).items()}
        if more.get("reg", more.get("comparison")) == "none":  # has no options
            more = {key: value for key, value in more.items() if not key.startswith("reg.")}
    elif "-m" in words:
        words = [word if word.startswith("-") or "," not in word else _cut(word) for word in words]
    return _with(words, more)


def _with(words: list[str], more: dict[str, str]) -> list[str]:
    """Options of one's own in place of the command's."""
    return [word for word in words if word.partition("=")[0] not in more] + [f"{k}={v}" for k, v in more.items()]


def _cut(word: str) -> str:
    """The first two values of a sweep."""
    key, _, values = word.partition("=")
    return f"{key}={','.join(_values(key, values)[:2])}"


def _values(key: str, values: str) -> list[str]:
    (override,) = OverridesParser.create().parse_overrides([f"{key}={values}"])
    return [str(v) for v in override.sweep_string_iterator()] if override.is_sweep_override() else [values]


def _swept(study: str) -> dict[str, str]:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(CONFIG_NAME, overrides=[study, "size=digits"], return_hydra_config=True)
    return {str(key): str(value) for key, value in cfg.hydra.sweeper.params.items()}


def write_page_files(folder: Path) -> None:
    """The files of docs/extending.md, each named by a comment at its top."""
    for language in ("python", "yaml"):
        for block in blocks(ROOT / "docs" / "extending.md", language):
            if name := re.search(r"^# ([\w/]+\.(?:py|yaml))\b", block, re.MULTILINE):
                path = folder / name[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block)
    (folder / "my_module.py").write_text(
        "from lightning.pytorch import Callback\n\n\n"
        "class MyCallback(Callback):\n    def __init__(self, every):\n        self.every = every\n"
    )
    for split, count in (("train", 5), ("val", 2)):
        for label in range(5):
            path = folder / "my_images" / split / f"class{label}"
            path.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                Image.new("RGB", (80, 70), (40 * label, 50 * index, 99)).save(path / f"{index}.png")
