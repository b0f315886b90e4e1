"""What the comments of the configs say: about a file, about an option, about a group."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_fisher.experiment.config_files import read_config


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
