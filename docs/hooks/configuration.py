"""MkDocs hook: write a page for every config group from the YAML files themselves, and put them into the navigation."""

from __future__ import annotations

import html
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from lightning_fisher.experiment.config.yaml_comments import ConfigFile, Option, read_config

CONF = Path(__file__).parents[2] / "conf"
PLACE = "configuration"
ORDER = ("model", "optimizer", "data", "reg", "scenario", "trainer", "logger", "callbacks", "experiment")
# The two keys that are Hydra's own and mean the same everywhere.
HYDRA_KEYS = {
    "_target_": "what is built: called with the options beside it",
    "_partial_": "true: called later, when the run adds the rest",
}
PARAMS = "hydra.sweeper.params."
WORDS = {
    "model": "The network and its recipe: optimizer, schedule, length, batch size.",
    "optimizer": "The optimizer, in place of the recipe's. Its options stay under `model.optimizer`.",
    "data": "The images, and what is done to them.",
    "reg": "The regularizer.",
    "scenario": "The settings of the paper's Sec. 7.1, each on top of a model and a data set.",
    "trainer": "Lightning's Trainer.",
    "logger": "Where values are logged; several at once as `'logger=[csv,wandb]'`.",
    "callbacks": "Callbacks beside those of the program; several at once as `'callbacks=[lr_monitor,early_stopping]'`.",
    "experiment": "Studies: each with its sweep inside, to be run with `-m`; `size=` chooses the form.",
}


def config_files() -> list[ConfigFile]:
    """Every file under ``conf/``, in order of its path."""
    return [read_config(path, CONF) for path in sorted(CONF.rglob("*.yaml"))]


def pages() -> dict[str, str]:
    """The Markdown of every page, by its path in the site."""
    files = config_files()
    written = {f"{PLACE}/index.md": _index(files)}
    groups = {file.path.parts[0] for file in files if len(file.path.parts) > 1} - {"study", "size", "hydra"}
    for group in sorted(groups, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        written |= _experiments(files) if group == "experiment" else {f"{PLACE}/{group}.md": _group(group, files)}
    return written


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace the entry ``configuration/`` of the navigation by the generated pages."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and f"{PLACE}/" in entry.values():
            (title,) = entry
            paths = list(pages())
            studies = [path for path in paths if path.startswith(f"{PLACE}/experiment/")]
            entry[title] = [path for path in paths if path not in studies and path != f"{PLACE}/experiment.md"]
            entry[title].append({"Experiments": [f"{PLACE}/experiment.md", *studies]})
    config.watch.append(str(CONF))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def _index(files: list[ConfigFile]) -> str:
    (main,) = (file for file in files if file.path.name == "config.yaml" and len(file.path.parts) == 1)
    groups = "\n".join(
        f"| [`{group}`]({group}.md) | `{choice or 'none'}` | {_text(comment)} |"
        if (CONF / group).is_dir() and group != "size"
        else f"| `{group}` | `{choice}` | {_text(comment)} |"
        for group, choice, comment in main.defaults
        if not group.startswith("hydra/")
    )
    return f"""# Configuration

{main.header}

These pages are made from the files in `conf/` and their comments.

## Groups

| group | default | |
| --- | --- | --- |
{groups}

## Options of every run

{_table(main.options)}
"""


def _group(group: str, files: list[ConfigFile]) -> str:
    parts = [f"# `{group}`", WORDS.get(group, "")]
    for file in files:
        if file.path.parts[0] != group:
            continue
        key = file.path.parent.as_posix()
        parts += [f"## `{key}={file.path.stem}`", file.header, _defaults(file, group), _table(file.options)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _experiments(files: list[ConfigFile]) -> dict[str, str]:
    """A page with all studies, and a page for each."""
    parts = ["# `experiment`, `size`", WORDS["experiment"]]
    sizes = [file for file in files if file.path.parts[0] == "size"]
    parts += ["| size | |\n| --- | --- |\n" + "\n".join(f"| `{s.path.stem}` | {_text(s.header)} |" for s in sizes)]
    parts += [f"`size={s.path.stem}` sets:\n\n{_table(s.options)}" for s in sizes if s.options]
    studies = [file for file in files if file.path.parts[0] == "experiment"]
    lines = [f"| [`{s.path.stem}`](experiment/{s.path.stem}.md) | {_text(s.header)} |" for s in studies]
    parts += ["| experiment | |\n| --- | --- |\n" + "\n".join(lines)]
    written = {f"{PLACE}/experiment.md": "\n\n".join(parts) + "\n"}
    for file in studies:
        name = file.path.stem
        forms = [form for form in files if form.path.parts[:2] == ("study", name)]
        parts = [f"# `experiment={name}`", file.header, _defaults(file, "experiment"), _table(file.options)]
        for form in forms:
            parts += [f"## `size={form.path.stem}`", form.header, _table(form.options)]
        written[f"{PLACE}/experiment/{name}.md"] = "\n\n".join(part for part in parts if part) + "\n"
    return written


def _defaults(file: ConfigFile, group: str) -> str:
    chosen = []
    for name, choice, _ in file.defaults:
        full = name if name.split("/")[0] in ORDER else f"{group}/{name}"
        if not name.startswith(("study", "hydra")):
            chosen.append(f"`{full}={choice}`")
    return f"Chooses {', '.join(chosen)}." if chosen else ""


def _table(options: list[Option]) -> str:
    plain = [option for option in options if not option.name.startswith(PARAMS)]
    sweep = [option for option in options if option.name.startswith(PARAMS)]
    rows = [
        f"| {_code(option)} | {_text(option.comment or _hydra(option.name))} |"
        for option in plain
        if option.name != PARAMS.rstrip(".")
    ]
    text = "| option and its value | |\n| --- | --- |\n" + "\n".join(rows) if rows else ""
    if sweep:
        jobs = " ".join(f"{option.name.removeprefix(PARAMS)}={option.value}" for option in sweep)
        text += f"\n\nThe sweep, one job for every combination:\n\n```text\n{jobs}\n```"
    return text.strip()


def _hydra(name: str) -> str:
    return HYDRA_KEYS.get(name.rpartition(".")[2], "")


def _code(option: Option) -> str:
    """As it is typed on the command line; a narrow screen may break it where words end."""
    text = html.escape(f"{option.name}={option.value}" if option.value else option.name).replace("|", "&#124;")
    text = text.replace("$", "&#36;")  # an interpolation is no formula
    return (
        "<code>" + "".join(f"{char}<wbr>" if char in "._=" else char for char in text).replace("_", "&#95;") + "</code>"
    )


def _text(comment: str) -> str:
    parts = comment.split("`")  # every other one is code, which takes no escapes but that of a table
    for index, part in enumerate(parts):
        if index % 2 == 0 or len(parts) % 2 == 0:
            part = html.escape(part, quote=False)
            for character in "*_$":
                part = part.replace(character, f"\\{character}")
        parts[index] = part.replace("|", "\\|")
    return "`".join(parts)
