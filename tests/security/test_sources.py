"""What the sources of the package may not do: every load is a safe one, and says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_fisher

ROOT = Path(lightning_fisher.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
NEVER = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
    "torch.jit.load",
    "joblib.load",
    "subprocess.getoutput",
}
SAFE = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def calls(path: Path) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield name_of(node.func), {keyword.arg or "**": keyword.value for keyword in node.keywords}


def problems(path: Path) -> Iterator[str]:
    for name, options in calls(path):
        if name in NEVER:
            yield f"calls {name}"
        if name in SAFE:
            option, wanted = SAFE[name]
            given = options.get(option)
            if not (isinstance(given, ast.Constant) and given.value is wanted):
                yield f"calls {name} without {option}={wanted}"
        if name.startswith("subprocess.") and "shell" in options:
            yield f"calls {name} with a shell"
        if "ckpt_path" in options and "weights_only" not in options:
            yield f"calls {name} with ckpt_path and without weights_only"


def test_the_sources_are_found() -> None:
    assert len(SOURCES) > 80


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_unsafe_call(path: Path) -> None:
    assert list(problems(path)) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torch.load(p)", 1),
        ("torch.load(p, weights_only=False)", 1),
        ("torch.load(p, weights_only=True)", 0),
        ("np.load(p)", 1),
        ("np.load(p, allow_pickle=False)", 0),
        ("pickle.load(f)", 1),
        ("subprocess.run('ls', shell=True)", 1),
        ("net.eval()", 0),
        ("eval('1')", 1),
        ("trainer.fit(m, ckpt_path=p)", 1),
    ],
)
def test_the_check_finds_them(line: str, found: int, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(line)
    assert len(list(problems(tmp_path / "a.py"))) == found
