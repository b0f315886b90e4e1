"""Fixtures of the tests of security."""

from tests.experiment.conftest import command  # noqa: F401
