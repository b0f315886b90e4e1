"""What guards the project: the check of the installed package fails when it should, and CI runs what `.ci/run` does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_fisher
from tests.packaging.conftest import ROOT

INSTALLED = str(ROOT / ".ci" / "installed.py")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
JOBS = [
    pytest.param(job, id=f"{path.stem}: {name}")
    for path in WORKFLOWS
    for name, job in yaml.safe_load(path.read_text())["jobs"].items()
]


@pytest.fixture
def path_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("path_is_put_back")
def test_a_blocked_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fisher", None)
    with pytest.raises(ModuleNotFoundError, match="lightning_fisher"):
        runpy.run_path(INSTALLED, run_name="__main__")
    assert Path.cwd().is_dir()


@pytest.mark.usefixtures("path_is_put_back")
def test_the_package_of_the_checkout_is_not_the_installed_one() -> None:
    if Path(lightning_fisher.__file__).parents[1] != ROOT:
        pytest.skip("these tests run with an installed package")
    with pytest.raises(SystemExit, match="found that of the checkout"):
        runpy.run_path(INSTALLED, run_name="__main__")


def test_the_package_is_what_the_checked_blocks_use() -> None:
    blocks = runpy.run_path(INSTALLED)["blocks"]((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sum("from lightning_fisher" in block for block in blocks) == 2


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("job", JOBS)
def test_jobs_end_and_keep_what_they_install(job: dict[str, Any]) -> None:
    assert 0 < job["timeout-minutes"] <= 60
    (python,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert python["with"]["cache"] == "pip"
    for name in python["with"]["cache-dependency-path"].split():
        assert (ROOT / name).is_file()


def test_ci_and_commits_check_what_ci_run_checks() -> None:
    section = re.search(r"== lint.*?\n(.*?)\n\n", (ROOT / ".ci" / "run").read_text(), re.DOTALL)
    assert section is not None
    checks = section[1].splitlines()
    assert {"ruff check .", "codespell", "mypy", "lint-imports"} <= set(checks)
    lint = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["lint"]
    assert [step["run"] for step in lint["steps"] if "run" in step][1:] == checks
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"].split(" --")[0] for hook in hooks["hooks"]] == [
        check.split(" --")[0].removesuffix(" .") for check in checks
    ]


def test_words_of_this_field_are_spelled_in_american(tmp_path: Path) -> None:
    """The dictionaries find both spellings that they have and those of our own list, and leave names alone."""
    page = tmp_path / "page.md"
    british = ["regulariser", "normalises", "colours"]  # codespell:ignore
    page.write_text(f"{' '.join(british)}\nLabelledImages, coupled_normalised, eval_normalised\n")
    command = [sys.executable, "-m", "codespell_lib", "--toml", str(ROOT / "pyproject.toml"), str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    found = re.findall(r":(\d): (\w+) ==>", done.stdout)
    assert found == [("1", word) for word in british], done.stdout + done.stderr
