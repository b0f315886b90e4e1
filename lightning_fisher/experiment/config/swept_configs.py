"""Several configs of a group: swept ones, and the options of those (``-m data=cifar10,cifar100 data.data_dir=DIR``)."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME, config_groups
from lightning_fisher.experiment.config.yaml_comments import read_config


def of_swept_configs(arguments: Sequence[str]) -> list[str]:
    """Let a sweep over the configs of a group set the options that those have and the default one hasn't.

    Hydra composes the command once without what is swept, with the group's default, and refuses an option that this
    one lacks. ``++`` in front of the option lets it pass; a job whose config lacks the option refuses it by itself.

    Args:
        arguments: of the command.

    Returns:
        The arguments with ``++`` in front of such options.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    groups = config_groups()
    swept = {
        key: value.split(",")
        for key, _, value in (argument.partition("=") for argument in arguments)
        if key in groups and "," in value and "(" not in value and "[" not in value
    }
    found = read_config(CONFIG_DIR / f"{CONFIG_NAME}.yaml", CONFIG_DIR)
    usual = {group: choice for group, choice, _ in found.defaults}
    only = {group: _options(group, names) - _options(group, [usual.get(group, "")]) for group, names in swept.items()}
    own = set().union(*only.values())
    return [f"++{argument}" if argument.partition("=")[0] in own else argument for argument in arguments]


LISTED = ("logger", "callbacks")  # groups of which several configs may be chosen


def refuse_lists(arguments: Sequence[str]) -> None:
    """Refuse a list of configs of a group that has one: Hydra would mix them.

    Args:
        arguments: of the command.

    Raises:
        ConfigError: naming the group.
    """
    groups = config_groups()
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in groups and key not in LISTED and value.startswith("["):
            raise ConfigError(
                f"Expected option `{key}` to be one of its configs, but got `{value}`: -m {key}={value.strip('[]')} "
                "runs one job for each."
            )


def refuse_repeated(arguments: Sequence[str]) -> None:
    """Refuse an option that a sweep has twice: the last one would decide, and every job run as often as the first says.

    Args:
        arguments: of the command.

    Raises:
        ConfigError: naming the option.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return
    parser, seen = OverridesParser.create(), dict[str, Override]()
    for argument in arguments:
        if argument.startswith("-"):
            continue
        try:
            override = parser.parse_override(argument)
        except OverrideParseException:
            continue  # Hydra says what is wrong with it
        first = seen.setdefault(override.key_or_group, override)
        if first is not override and (first.is_sweep_override() or override.is_sweep_override()):
            raise ConfigError(
                f"Expected option `{override.key_or_group}` once in a sweep, but got `{first.input_line}` and "
                f"`{override.input_line}`."
            )


def _options(group: str, names: Sequence[str]) -> set[str]:
    """The options that stand in configs of a group; none of configs of the user's own."""
    files = [CONFIG_DIR / group / f"{name.strip()}.yaml" for name in names]
    return {option.name for file in files if file.is_file() for option in read_config(file, CONFIG_DIR).options}
