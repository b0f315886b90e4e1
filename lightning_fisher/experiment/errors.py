"""Turn what Hydra, OmegaConf and the constructors raise into one line for the user."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping


class ConfigError(Exception):
    """A mistake of the user's: shown as its one-line message, without a traceback."""


def one_line(text: object) -> str:
    """Join the lines of a message."""
    return "; ".join(line.strip() for line in str(text).splitlines() if line.strip())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean `x`?"`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else ""


def listing(words: Iterable[object]) -> str:
    """Format a set of allowed values: ``a, b or c``."""
    items = [str(word) for word in words]
    if not items:
        return "(there is none)"
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" or {items[-1]}"


def explain(
    error: BaseException, options: Iterable[str] = (), groups: Mapping[str, list[str]] | None = None
) -> str | None:
    """Return the one-line explanation of a mistake in the command, or None if the error is not one.

    Args:
        error: what composing or instantiating the config raised.
        options: the dotted names of all options, for suggestions.
        groups: the choices of every config group.

    Returns:
        A line that names the option, what is allowed and what came; None for an error that is no mistake of
        the user's (a bug, a full disk), which deserves its traceback.
    """
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, ConfigError):
        return one_line(error)
    if isinstance(error, InstantiationException):
        return _explain_instantiation(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _explain_composition(error, list(options), groups or {})
    return None


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
    message = one_line(error)
    renamed = re.sub(r"[Aa]rgument `(\w+)`", lambda m: f"option `{key}.{m.group(1)}`" if key else m.group(0), message)
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", message)
    if unexpected:
        return f"Unknown option `{key}.{unexpected.group(1)}`."
    return renamed if renamed != message else (f"{key}: {message}" if key else message)


def _explain_composition(error: Exception, options: list[str], groups: Mapping[str, list[str]]) -> str:
    text = str(error)
    choice = re.search(r"Could not (?:find|load) '([\w/@.-]+)/([^/']+)'", text)
    if choice:
        group, name = choice.groups()
        available = groups.get(group, [])
        return f"Expected option `{group}` to be {listing(available)}, but got `{name}`.{did_you_mean(name, available)}"
    group_missing = re.search(r"Could not override '([^']+)'", text)
    if group_missing:
        key = group_missing.group(1)
        parent = key.rpartition(".")[0]
        siblings = [o for o in (*options, *groups) if o.rpartition(".")[0] == parent]
        hint = did_you_mean(key, siblings) or did_you_mean(key, options)
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
    if "missing EQUAL" in text or "mismatched input" in text or "no viable alternative" in text:
        return f"Expected overrides of the form option=value, but got: {one_line(text.split('See https')[0])}."
    if isinstance(error.__cause__, Exception) and str(error.__cause__) not in text:
        text = f"{text}\n{error.__cause__}"
    return one_line(text)
