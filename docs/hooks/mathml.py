"""MkDocs hook: turn the TeX that arithmatex marks into MathML, which browsers draw without scripts or network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_PRIME = re.compile(r"<msup>(<mi>\w</mi>)<mi>&#x02032;</mi></msup>")


def on_page_content(text: str, **kwargs: Any) -> str:
    """Replace every formula of a page."""
    return _MARKED.sub(_mathml, text)


def _mathml(found: re.Match[str]) -> str:
    element, bracket, tex = found.groups()
    display = "block" if bracket == "[" else "inline"
    mathml = convert(html.unescape(tex).strip(), display=display)
    mathml = _PRIME.sub(r'\1<mo lspace="0" rspace="0">&#x02032;</mo>', mathml)  # a superscript of it is too small
    return f'<{element} class="math">{mathml}</{element}>'
