"""Run the README's Python blocks and diffs with the installed package, in an empty folder: `python .ci/installed.py`.

Fails where `lightning_fisher` isn't installed: the checkout is taken off the path before it is imported.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks(text: str, without: str = "-") -> list[str]:
    """The Python code of a page in the order in which it runs: what a diff is about stands below it.

    Args:
        text: the page, Markdown.
        without: the sign of the lines left out of diffs: "-" for what they lead to, "+" for what they begin with.
    """
    found = re.findall(r"`{3}(python|diff)\n(.*?)`{3}", text, re.DOTALL)
    for place in [i for i, (language, _) in enumerate(found) if language == "diff"]:
        found[place : place + 2] = reversed(found[place : place + 2])
    return [block if language == "python" else _applied(block, without) for language, block in found]


def _applied(diff: str, without: str) -> str:
    return "\n".join(line[2:] for line in diff.splitlines() if not line.startswith(without)) + "\n"


def main() -> None:
    """Import the package from where it is installed, and run the blocks one after the other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / ".ci")]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            import lightning_fisher

            package = Path(lightning_fisher.__file__).resolve().parent
            if package.parent == ROOT:
                sys.exit(f"Expected lightning_fisher to be installed, but found that of the checkout: {package}")
            names: dict[str, object] = {"__name__": "block"}
            for block in blocks(text):
                exec(compile(block, "README.md", "exec"), names)
        finally:
            os.chdir(before)
    print(f"The README's Python blocks ran with {package}.")


if __name__ == "__main__":
    main()
