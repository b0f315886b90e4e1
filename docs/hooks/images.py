"""MkDocs hook: a figure is a link to itself in full size, for narrow screens."""

from __future__ import annotations

import re
from typing import Any

IMAGE = re.compile(r'(?<!">)<img\b[^>]*?\bsrc="(?P<place>[^"]+\.png)"[^>]*?/?>')


def on_page_content(text: str, **kwargs: Any) -> str:
    """Wrap every figure of a page that is no link yet."""
    return IMAGE.sub(lambda found: f'<a class="figure" href="{found["place"]}">{found[0]}</a>', text)
