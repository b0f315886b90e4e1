"""MkDocs hook: pages of reference for every public package, from what its ``__init__`` exports."""

from __future__ import annotations

import ast
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PACKAGE = "lightning_fisher"
ROLE = re.compile(r":(?:func|class|mod|meth|attr):`~?([\w.]+)`")
# What readers look for first; the other modules follow in the order of the imports.
FIRST = (
    "fisher_regularizer",
    "fisher_monitor",
    "fisher",
    "collection",
    "matrix",
    "log_determinant",
    "loop",
    "regularized",
)
TITLES = {
    "callbacks": "Callbacks",
    "metrics": "Metrics",
    "functional": "Functions",
    "functional.measures": "Measures",
    "optimizers": "Optimizers",
    "layers": "Layers",
    "models": "Networks",
    "label_errors": "Wrong labels",
}

# Packages whose reference takes several pages: each page, its title, its modules. A module is on the first that fits.
SECTIONS = {
    "callbacks": {
        "fisher": ("Regularizer and metric", ("fisher_regularizer", "fisher_monitor")),
        "perturbed": ("SAM and other perturbed gradients", ("sharpness_aware", "multipass_callback")),
        "penalties": ("Penalties", ("fisher_penalty", "jacobian_penalty")),
        "training": ("Around a training", ("",)),
    },
    "metrics": {
        "fisher": ("γ̂", ("fisher", "collection")),
        "compared": ("What γ̂ is compared with", ("curvature", "robustness", "hessian")),
        "measures": ("Any measure", ("measures",)),
    },
    "functional": {
        "gamma": ("γ̂", ("fisher.log_determinant", "fisher.spectrum", "fisher.layers", "fisher.gradient_norms")),
        "bounds": ("Bounds and the exact γ", ("fisher",)),
        "gram": ("The Gram matrix", ("gram", "exceptions")),
        "regularizer": ("The regularizer", ("multipass.loop", "multipass.regularized", "multipass.finite_difference")),
        "multipass": ("Other methods with extra passes", ("multipass",)),
        "curvature": ("Curvature and robustness", ("curvature",)),
        "penalties": ("Terms of a loss", ("penalties",)),
        "ranking": ("Ranking networks", ("ranking",)),
    },
    "functional.measures": {
        "sharpness": ("Sharpness and PAC-Bayes", ("sharpness", "pac_bayes")),
        "hessian": ("The Hessian", ("hessian_flatness", "hessian_traces")),
        "gradients": ("Gradients of samples", ("gradient_statistics",)),
        "norms": ("Norms", ("norms", "path_norms")),
        "margins": ("Margins and folded batch-norm", ("margins", "folding")),
        "registry": ("Measures by name", ("registry",)),
    },
}


def plain(docstring: str) -> str:
    """A docstring with reST roles replaced by the names in them."""
    return ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", docstring)


def exports(part: str) -> dict[str, list[str]]:
    """The public names of a sub-package by the module that defines them."""
    tree = ast.parse(ROOT.joinpath(PACKAGE, *part.split("."), "__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        {ast.literal_eval(item) for item in node.value.elts}
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__all__"
        and isinstance(node.value, ast.List)
    )
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):  # those under `if TYPE_CHECKING:` too
        if isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module, []).extend(
                alias.name for alias in node.names if alias.name in names and not alias.name.isupper()
            )
    names_of = {module.rpartition(".")[2]: module for module in found}
    order = [names_of[name] for name in FIRST if name in names_of]
    return {module: found[module] for module in dict.fromkeys([*order, *found]) if found[module]}


def summary(module: str) -> str:
    """The first line of a module's docstring."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return plain(docstring.splitlines()[0].rstrip(".")) if docstring else ""


def objects(found: dict[str, list[str]]) -> list[str]:
    """The blocks that mkdocstrings fills from the docstrings, module by module."""
    lines = []
    for module, members in found.items():
        level = 2 if len(members) == 1 else 3
        if level == 3:
            lines.append(f"## {summary(module)}")
        lines += [f"::: {module}.{name}\n    options: {{heading_level: {level}}}" for name in members]
    return lines


def sections(part: str) -> dict[str, dict[str, list[str]]]:
    """The public names of a package by page and module."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in SECTIONS[part]}
    for module, members in exports(part).items():
        below = module.removeprefix(f"{PACKAGE}.").removeprefix(f"{part}.")
        name = next(name for name, (_, begins) in SECTIONS[part].items() if below.startswith(begins))
        found[name][module] = members
    return found


def pages() -> dict[str, str]:
    """The Markdown of every page, by its path in the site."""
    written = {}
    for part, title in TITLES.items():
        lines = [f"# {title}", f"`{PACKAGE}.{part}`: {summary(f'{PACKAGE}.{part}')}."]
        if part not in SECTIONS:
            written[f"api/{part}.md"] = "\n\n".join([*lines, *objects(exports(part))]) + "\n"
            continue
        for name, found in sections(part).items():
            names = ", ".join(f"[`{one}`][{module}.{one}]" for module, members in found.items() for one in members)
            lines += [f"## [{SECTIONS[part][name][0]}]({part}.{name}.md)", names]
            head = [f"# {SECTIONS[part][name][0]}", f"In `{PACKAGE}.{part}`."]
            written[f"api/{part}.{name}.md"] = "\n\n".join([*head, *objects(found)]) + "\n"
        written[f"api/{part}.md"] = "\n\n".join(lines) + "\n"
    return written


def navigation() -> list[dict[str, Any]]:
    """The pages as a part of the navigation."""
    return [
        {
            title: [f"api/{part}.md", *({name: f"api/{part}.{key}.md"} for key, (name, _) in SECTIONS[part].items())]
            if part in SECTIONS
            else f"api/{part}.md"
        }
        for part, title in TITLES.items()
    ]


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Link public names in single backticks on the written pages; not in headings, code blocks and links."""
    if page.file.src_uri.startswith(("api/", "configuration/")):
        return markdown
    places = {
        name: f"{module}.{name}" for part in TITLES for module, members in exports(part).items() for name in members
    }
    written = re.compile(rf"(?<![`\w\[])`((?:functional\.|metrics\.)?({'|'.join(places)}))`(?![`\w\]])")
    parts = re.split(r"(^```.*?^```|^#.*?$)", markdown, flags=re.DOTALL | re.MULTILINE)
    linked = [written.sub(lambda found: f"[`{found[1]}`][{places[found[2]]}]", part) for part in parts[::2]]
    return "".join(text for pair in zip_longest(linked, parts[1::2], fillvalue="") for text in pair)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation, in place of the entry ``api/``; rebuild when a docstring changes."""
    for entry in config.nav or []:
        for title, below in entry.items() if isinstance(entry, dict) else ():
            if isinstance(below, list) and "api/" in below:
                place = below.index("api/")
                entry[title] = [*below[:place], *navigation(), *below[place + 1 :]]
    config.watch.append(str(ROOT / PACKAGE))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
