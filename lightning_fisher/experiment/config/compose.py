"""What can be set: the options of the composed config, by dotted name, with their defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment import context

ROOT = Path(__file__).resolve().parents[3]  # the folder the package is in: the checkout, or site-packages
_INSTALLED = ROOT / "lightning_fisher" / "conf"  # where a wheel has what a checkout has in conf/
CONFIG_DIR = _INSTALLED if _INSTALLED.is_dir() else ROOT / "conf"
CONFIG_NAME = "config"


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested containers to ``{"a.b.c": value}``; lists and empty nodes stay whole."""
    if isinstance(node, dict) and (node or not prefix):
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat.update(flatten(value, f"{prefix}{key}."))
        return flat
    return {prefix[:-1]: node}


def config_groups() -> dict[str, list[str]]:
    """The choices of every group under ``conf/``: ``{"model": ["cnn", ...], "model/scheduler": [...], ...}``."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONFIG_DIR.rglob("*.yaml")):
        group = path.parent.relative_to(CONFIG_DIR).as_posix()
        if group != ".":
            groups.setdefault(group, []).append(path.stem)
    return groups


def refuse_shadowed(choices: Mapping[str, Any], overrides: list[str], folders: Iterable[str]) -> None:
    """Refuse a choice that the user has a config of and the program too: Hydra takes the program's, and doesn't say so.

    Args:
        choices: the chosen config of every group.
        overrides: the command's; of these those that choose several configs of a group.
        folders: those of the command's ``--config-dir``.

    Raises:
        ConfigError: naming the file.
    """
    chosen = [(group, name) for group, name in choices.items() if isinstance(name, str)]
    if folders := list(folders):
        for override in map(OverridesParser.create().parse_override, group_overrides(overrides)):
            value = override.value()
            chosen += [(override.key_or_group, str(name)) for name in value] if isinstance(value, list) else []
    for folder in folders:
        for group, name in chosen:
            place = Path(group.partition("@")[0]) / f"{name}.yaml"
            own, built_in = Path(folder) / place, CONFIG_DIR / place
            if own.is_file() and built_in.is_file() and own.read_bytes() != built_in.read_bytes():
                raise ConfigError(
                    f"Expected `{own}` to have a name of its own, but got that of a config of the program, which "
                    f"`{group}={name}` means: rename the file, to `my_{name}.yaml` say, and choose that."
                )


def is_group(key: str) -> bool:
    """Whether ``key`` names a config group (needs an initialized Hydra)."""
    return bool(_choices(key.split("@")[0]))


def _choices(group: str) -> list[str]:
    """The configs of a group, the user's own among them; looked up once within a command."""
    loader = GlobalHydra.instance().config_loader()
    key = (*(source.path for source in loader.get_sources()), group)
    known = context.current().choices
    if key not in known:
        known[key] = loader.get_group_options(group)
    return known[key]


def group_overrides(overrides: list[str]) -> list[str]:
    """Keep the overrides that choose a config of a group; drop those that set a value, and malformed ones."""
    parser = OverridesParser.create()
    chosen = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except Exception:
            continue
        if override.is_sweep_override() or not is_group(override.key_or_group):
            continue
        value = override.value()
        names = value if isinstance(value, list) else [value]
        if all(name in _choices(override.key_or_group) for name in names):
            chosen.append(text)
    return chosen


def defaults(overrides: list[str]) -> DictConfig:
    """Compose the config with the group choices of ``overrides`` only: what every option is by default.

    Within a command, such as a sweep, composed once for each choice of groups: not to be changed.
    """
    if not GlobalHydra.instance().is_initialized():
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return defaults(overrides)
    chosen = group_overrides(overrides)
    sources = GlobalHydra.instance().config_loader().get_sources()
    key = (*(source.path for source in sources), *chosen)
    known = context.current().defaults
    if key not in known:
        known[key] = compose(CONFIG_NAME, overrides=chosen)
    found = known[key]
    assert isinstance(found, DictConfig)
    return found


def parents(keys: Iterable[str]) -> list[str]:
    """The nodes above options, by dotted name, the outermost first."""
    found = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    return sorted(found, key=lambda name: name.count("."))


def known_options(overrides: list[str]) -> list[str]:
    """The dotted names of all options under the group choices of ``overrides``; empty if none compose."""
    try:
        container = OmegaConf.to_container(defaults(overrides), resolve=False)
    except Exception:
        return []
    assert isinstance(container, dict)
    flat = list(flatten(container))
    return sorted({*flat, *parents(flat)})
