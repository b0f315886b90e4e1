"""Fixtures of the tests of the documentation."""

from tests.experiment.conftest import command  # noqa: F401
