"""Turn what Hydra, OmegaConf and the constructors raise into one line for the user."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_fisher.arguments import suggestion
from lightning_fisher.exceptions import ConfigError, RunError
from lightning_fisher.optional_packages import LAUNCHERS, missing_package

if TYPE_CHECKING:
    from yaml import MarkedYAMLError

PLACE = re.compile(r"(full_key: |object_type=|reference_type=|See https)")  # lines of OmegaConf's messages
MALFORMED = re.compile("missing EQUAL|mismatched input|extraneous input|NoViableAlt|no viable alternative")
YAML_WORDS = {"None": "null", "True": "true", "False": "false"}

# What the system refuses when a file is written, and the same command may get later.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def one_line(text: object) -> str:
    """Join the lines of a message, but for those that say where in a config it arose."""
    lines = [line.strip() for line in str(text).splitlines()]
    kept = [line for line in lines if line and not PLACE.match(line)]
    return "; ".join(kept).replace(":; ", ": ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean `x`?"`` for the nearest known word, or nothing."""
    return suggestion(word, known)


def listing(words: Iterable[object]) -> str:
    """Format a set of allowed values: ``a, b or c``."""
    items = [str(word) for word in words]
    if not items:
        return "(there is none)"
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" or {items[-1]}"


def explain(
    error: BaseException,
    options: Iterable[str] = (),
    groups: Mapping[str, list[str]] | None = None,
    overrides: Sequence[str] = (),
) -> str | None:
    """Return the one-line explanation of a mistake in the command, or None if the error is not one.

    Args:
        error: what composing or instantiating the config raised.
        options: the dotted names of all options, for suggestions.
        groups: the choices of every config group.
        overrides: of the command, to name the one that cannot be read.

    Returns:
        A line that names the option, what is allowed and the value received; None for an error that is no mistake of
        the user's (a bug), which deserves its traceback.
    """
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError

    if isinstance(error, (ConfigError, RunError)):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return (
            f"Cannot write {error.filename or 'a file of the run'} ({error.strerror}): the last checkpoint is whole, "
            "and the same command continues from it once there is room and permission to write."
        )
    missing = missing_package(error)
    if missing is not None:
        where = re.search(r"full_key: (\S+)", str(error))
        return f"{where[1]}: {missing}" if where else missing[0].upper() + missing[1:]
    if isinstance(error, InstantiationException):
        return _explain_instantiation(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)) or _is_hydras(error):
        return _explain_composition(error, list(options), groups or {}, overrides)
    if isinstance(error, MarkedYAMLError):
        return _explain_yaml(error)
    unreadable = re.search(r"Cannot read the image .*", str(error))  # perhaps in a worker's long message
    return unreadable.group() if unreadable else None


def _explain_yaml(error: MarkedYAMLError) -> str:
    """Name the file and the line that isn't YAML."""
    mark = error.problem_mark or error.context_mark
    where = "a config file" if mark is None else f"`{mark.name}`"
    line = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
    return f"Expected {where} to be YAML, but got a mistake{line}: {error.problem or error.context}."


def _is_hydras(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf raised a plain error, which is about the command."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and bool({"hydra", "omegaconf"} & set(Path(frames[-1].filename).parts))


def _explain_instantiation(error: Exception) -> str:
    """Name the option whose constructor refused its argument."""
    cause, text = error.__cause__, str(error)
    where = re.search(r"full_key: (\S+)", text)
    key = where.group(1) if where else ""
    return name_option(key, cause) if cause is not None else f"{key}: {one_line(text.split('full_key')[0])}"


def name_option(key: str, error: BaseException) -> str:
    """Rewrite a library message about an argument as one about the option ``key.argument``.

    Args:
        key: the config node whose target raised, such as ``reg``.
        error: the exception; its message usually reads "Expected argument `x` to be ..., but got ...".
    """
    missing = missing_package(error)
    if missing is not None:
        return f"{key}: {missing}" if key else missing
    message = renamed = one_line(error)
    if key:
        pair = re.sub(r"[Aa]rguments `(\w+)` and `(\w+)`", rf"options `{key}.\1` and `{key}.\2`", message)
        renamed = re.sub(r"[Aa]rgument `(\w+)`", rf"option `{key}.\1`", pair)
        if renamed != message:  # one of this package's: values as they are written on the command line
            renamed = re.sub(r"\b(None|True|False)\b", lambda m: YAML_WORDS[m.group()], renamed)
            words = r"('[^']*'(?:, '[^']*')+)"
            renamed = re.sub(rf"\({words}\)|\[{words}\]", lambda m: m.group().strip("()[]").replace("'", ""), renamed)
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", message)
    if unexpected:
        return f"Unknown option `{key}.{unexpected.group(1)}`."
    return renamed if renamed != message else (f"{key}: {message}" if key else message)


def _explain_malformed(text: str, overrides: Sequence[str]) -> str:
    """Name the override that the grammar refuses, and what is often meant."""
    malformed = [override for override in overrides if not _is_override(override)]
    what = f" `{malformed[0]}`" if malformed else ": " + re.sub(r"\w+Exception: |; \^$", "", one_line(text))
    hint = ""
    if malformed and "=" not in malformed[0]:
        hint = " (help is `--help`)" if malformed[0] == "help" else " (no spaces around `=` and `,`)"
    elif malformed and malformed[0].endswith((",", "=")):
        hint = " (no spaces around `=` and `,`)"
    elif malformed:
        name, _, value = malformed[0].partition("=")
        quoted = value.strip("'\"").replace("'", "\\'")
        hint = f" (a value with special characters is quoted, for the shell too: \"{name}='{quoted}'\")"
    return f"Expected overrides of the form option=value, but got{what}{hint}."


def _is_override(text: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        OverridesParser.create().parse_override(text)
    except Exception:
        return False
    return True


def _explain_composition(
    error: BaseException, options: list[str], groups: Mapping[str, list[str]], overrides: Sequence[str] = ()
) -> str:
    text = str(error)
    choice = re.search(r"Could not (?:find|load) '([\w/@.-]+)/([^/']+)'", text)
    if choice:
        group, name = choice.groups()
        listed = re.search(r"Available options in '[^']+':\n((?:\s+\S+\n?)*)", text)
        available = groups.get(group) or (listed.group(1).split() if listed else [])
        near = did_you_mean(name, available)
        if group in ("logger", "callbacks") and name in ("none", "null"):
            near = f" `{group}=[]` chooses none."
        if group == "hydra/launcher" and name in LAUNCHERS:
            near = f" This needs its plugin, which is not installed: {LAUNCHERS[name]}"
        return f"Expected option `{group}` to be {listing(available)}, but got `{name}`.{near}"
    group_missing = re.search(r"Could not override '([^']+)'", text)
    if group_missing:
        key = group_missing.group(1)
        if key in options:
            return f"Expected option `{key}` to be there, but the same command deletes it: `~{key.split('.')[0]}`."
        parent = key.rpartition(".")[0]
        siblings = [o for o in (*options, *groups) if o.rpartition(".")[0] == parent]
        below = [option for option in options if option.endswith(f".{key}")]  # lr: model.optimizer.lr
        hint = did_you_mean(key, siblings) or did_you_mean(key, options)
        if below:
            hint = f" Did you mean `{min(below, key=len)}`?"
        names = ", ".join(sorted({s.rpartition(".")[2] for s in siblings if "/" not in s} - {"_target_", "_partial_"}))
        return f"Unknown option `{key}`.{hint}" + (
            f" Options{f' of `{parent}`' if parent else ''}: {names}." if names else ""
        )
    sweep = re.search(r"Ambiguous value for argument '([^=']+)=(.*)'", text)
    if sweep:
        key, value = sweep.groups()
        return (
            f"Expected option `{key}` to be one value, but got `{value}`: "
            f"add -m to run one job per value, or write `{key}=[{value}]` for a list."
        )
    if text.startswith("Config group override"):
        kind = text.rpartition(" ")[2].replace("NoneType", "null")
        return f"Expected groups to be chosen by name, such as `reg=none` or `logger=[csv]`, but got {kind}."
    missing = re.search(r"Interpolation key '([^']+)' not found", text)
    if missing:
        return f"Expected option `{missing.group(1)}`, which another option refers to, but there is none."
    gone = re.search(r"Key '(\w+)' is not in struct", text)
    if gone:
        where = re.search(r"full_key: (?!hydra\.)(\S+)", text)
        return f"Expected option `{where.group(1) if where else gone.group(1)}` to be there, but there is none."
    if "Could not append to config" in text and (there := re.search(r"already at '([^']+)'", text)):
        return f"Option `{there[1]}` exists already: set it without `+`."
    if MALFORMED.search(text):
        return _explain_malformed(text, overrides)
    if not text.strip():
        return f"Hydra cannot make sense of this command ({type(error).__name__})."
    if isinstance(error.__cause__, Exception) and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    return one_line(text)
