"""Every message that the FAQ quotes is still one of the software's."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import DOCS, ROOT, blocks

MESSAGES = [message.strip() for message in blocks(DOCS / "faq.md", "text")]
NODES = [
    node
    for path in (ROOT / "lightning_fisher").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
]
TEXTS = {node.value.strip() for node in NODES if isinstance(node, ast.Constant) and isinstance(node.value, str)}
FORMATTED = [node for node in NODES if isinstance(node, ast.JoinedStr)]


def literal(node: ast.JoinedStr) -> list[str]:
    return [part.value if isinstance(part, ast.Constant) else "" for part in node.values]


def is_one_string(message: str) -> bool:
    """Whether it is a string of the source with values inserted; a quarter of it has to be the string's own."""
    for node in FORMATTED:
        parts = literal(node)
        own = sum(map(len, parts))
        if own >= max(25, len(message) / 4):
            pattern = "".join(re.escape(part) if part else ".*" for part in parts)
            if re.fullmatch(pattern, message):
                return True
    return message in TEXTS


def is_of_texts(message: str) -> bool:
    """Whether it is put together from texts of the source, with nothing but numbers between them."""
    for text in sorted(TEXTS, key=len, reverse=True):
        if len(text) >= 10:
            message = message.replace(text, "\n")
    return not re.search(r"[A-Za-z]{2,}", message)


def test_there_are_messages() -> None:
    assert len(MESSAGES) >= 20


@pytest.mark.parametrize("message", MESSAGES, ids=[message[:60] for message in MESSAGES])
def test_message_is_in_the_source(message: str) -> None:
    assert is_one_string(message) or is_of_texts(message)


@pytest.mark.parametrize("message", MESSAGES, ids=[message[:60] for message in MESSAGES])
def test_another_wording_is_found_out(message: str) -> None:
    for before, after in (("but got", "and got"), ("reported", "returned"), ("needs", "wants")):
        if before in message:
            assert not is_one_string(message.replace(before, after))
            assert not is_of_texts(message.replace(before, after))
