"""``python -m lightning_fisher.label_errors``."""

from __future__ import annotations

import sys

from lightning_fisher.command_line import lasting_output, signals


def main() -> int:
    """Run the command; signals end it in one line from the start, and output that fails never does."""
    with signals.listening(), lasting_output.lasting_output():
        with signals.ending_at_once(lambda: "Interrupted: nothing was written."):
            from lightning_fisher.label_errors.command import main as run
        return run()


if __name__ == "__main__":
    sys.exit(main())
