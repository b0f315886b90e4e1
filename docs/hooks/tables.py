"""MkDocs hook: a bar in code in a table, which has to be escaped there, loses its backslash, as on forges."""

from __future__ import annotations

import re
from typing import Any

CELL = re.compile(r"<t[dh][ >].*?</t[dh]>|<t[dh]>.*?</t[dh]>", re.DOTALL)
CODE = re.compile(r"<code>.*?</code>", re.DOTALL)


def on_page_content(text: str, **kwargs: Any) -> str:
    """Unescape the bars of every cell's code."""
    return CELL.sub(lambda cell: CODE.sub(lambda code: code[0].replace("\\|", "|"), cell[0]), text)
