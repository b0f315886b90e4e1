"""Read what a config file under ``conf/`` says of itself: its header, its options, their values and comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Option:
    """One key of a config file.

    Attributes:
        name: dotted, as it is typed on the command line.
        value: the default as it stands in the file; empty for a node that only holds others.
        comment: what the file says behind it.
    """

    name: str
    value: str
    comment: str


@dataclass(frozen=True)
class ConfigFile:
    """A parsed config file.

    Attributes:
        path: relative to ``conf/``.
        header: the comment at its top, in one paragraph.
        options: its keys, without the defaults list.
        defaults: the choices of other groups it makes: ``(group, choice, comment)``.
    """

    path: Path
    header: str
    options: list[Option]
    defaults: list[tuple[str, str, str]]


def read_config(path: Path, root: Path) -> ConfigFile:
    """Parse ``path``, a file under the config folder ``root``."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    comments = []
    for line in lines:
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    package = [line.split()[-1] for line in comments if line.startswith("@package")]
    header = " ".join(line for line in comments if not line.startswith("@package"))
    group = ".".join(path.relative_to(root).parent.parts)
    prefix = "" if package == ["_global_"] else f"{package[0]}." if package else f"{group}." if group else ""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    options: list[Option] = []
    defaults: list[tuple[str, str, str]] = []
    for key, value in pairs:
        if key.value == "defaults":
            defaults += _defaults(value, lines)
        else:
            options += _options(key, value, prefix, text, lines)
    return ConfigFile(path.relative_to(root), header, options, defaults)


def _options(key: yaml.Node, value: yaml.Node, prefix: str, text: str, lines: list[str]) -> Iterator[Option]:
    name = prefix + key.value
    if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
        if comment := _comment(lines, key.end_mark):
            yield Option(name, "", comment)
        for inner, content in value.value:
            yield from _options(inner, content, f"{name}.", text, lines)
        return
    yield Option(name, text[value.start_mark.index : value.end_mark.index].strip(), _comment(lines, value.end_mark))


def _defaults(node: yaml.Node, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for entry in node.value:
        if isinstance(entry, yaml.MappingNode):
            ((key, value),) = entry.value
            group = key.value.removeprefix("override ").lstrip("/")
            chosen = [item.value for item in value.value] if isinstance(value, yaml.SequenceNode) else [value.value]
            yield group, ", ".join(chosen), _comment(lines, value.end_mark)


def _comment(lines: list[str], end: yaml.Mark) -> str:
    line = lines[end.line] if end.line < len(lines) else ""
    found = re.match(r":?\s*#\s*(.*)", line[end.column :])
    return found[1].strip() if found else ""


def about_file(path: Path) -> str:
    """The first sentence of the comment a config begins with, without the full stop; empty if it has none."""
    text = read_config(path, path.parent).header
    end = re.search(r"\.(?=\s+[A-Z`]|\s*$)", text)  # not that of "Sec. 7" or "et al. 2016"
    return text[: end.start()] if end else text


def about_options(path: Path) -> dict[str, str]:
    """The comment of every key of a config by dotted name; those of the defaults list as ``defaults.GROUP``."""
    found = read_config(path, path.parent)
    comments = [(option.name, option.comment) for option in found.options]
    comments += [(f"defaults.{group}", comment) for group, _, comment in found.defaults]
    return {name: comment for name, comment in comments if comment}
