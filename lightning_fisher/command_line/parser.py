"""A parser of options whose mistakes are one line."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse's, which answers a mistake with one line and exit code 1 instead of its usage and 2."""

    def error(self, message: str) -> NoReturn:
        """Print the line and end the process."""
        print(f"Error: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(1)
