"""The figure of sections that are measured apart from each other."""

from __future__ import annotations

from benchmarks import figure


def test_memory_alone(tmp_path):
    rows = [
        {"network": "net", "kind": "gram", "contender": name, "extra_mib": mib, "samples": 10}
        for name, mib in (("Lightning Fisher", 30.0), ("another", 300.0))
    ]
    path = figure.draw({"memory": {"tables": {"memory": rows}}}, tmp_path / "figure.png")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path):
    assert figure.draw({}, tmp_path / "figure.png") is None
