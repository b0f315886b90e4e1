"""The uninterrupted run that all others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiment.conftest import command  # noqa: F401
from tests.resume.runs import complete


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    complete(folder)
    return folder
