"""The callback tests' fixtures."""

from tests.callbacks.conftest import assert_close_states, fit, make_trainer

__all__ = ["assert_close_states", "fit", "make_trainer"]
