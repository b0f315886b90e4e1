"""The notebooks run: in a small form by default, whole where Jupyter is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS

NOTEBOOK = DOCS / "tutorials" / "wrong_labels.ipynb"
SMALL = {"NUM_IMAGES": "300", "EPOCHS": "12", "SEEDS": "1", "FOLDS": "2"}


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def areas(text: str) -> dict[str, float]:
    lines = re.findall(
        r"^(gradient norm(?: at the end)?|loss(?: at the end)?|TracIn|confident .*?) +(0\.\d+)", text, re.M
    )
    return {name.strip(): float(value) for name, value in lines}


def test_the_small_form_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    namespace: dict[str, object] = {}
    parameters, *rest = code_cells()
    for name, value in SMALL.items():
        parameters, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", parameters, flags=re.M)
        assert count == 1
    for cell in (parameters, *rest):
        exec(compile(cell, str(NOTEBOOK), "exec"), namespace)
    said = capsys.readouterr().out
    found = areas(said)
    assert {"gradient norm", "loss", "TracIn", "gradient norm at the end", "loss at the end"} <= set(found)
    assert found["gradient norm"] > 0.85  # 0.5 is chance
    assert found["loss"] > 0.85
    assert "index,given_label,predicted_label,score,label_quality,is_label_issue" in said
    assert len(list(tmp_path.rglob("suspects.png"))) == 1


def test_the_kept_outputs_are_those_of_a_whole_run() -> None:
    """They show every score, and no error."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    found = areas(said)
    assert len(found) >= 5
    assert "over 3 seeds" in said
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # What the last section says of them.
    assert abs(found["loss"] - found["gradient norm"]) < 0.01
    assert min(found["loss"], found["gradient norm"], found["TracIn"]) > 0.95
    assert found["gradient norm at the end"] < found["gradient norm"]
    assert found["loss at the end"] < found["loss"]


def test_the_page_says_what_the_notebook_says() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    said = "".join("".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", []))
    page = (DOCS / "wrong-labels.md").read_text(encoding="utf-8")
    table = dict(
        re.findall(r"^\| ([\w ]+?(?: \(cleanlab\))?)(?:, five trainings)? \| (0\.\d+) \|$", page, re.MULTILINE)
    )
    assert table == {name: f"{value:.3f}" for name, value in areas(said).items()}


@pytest.mark.slow
def test_the_whole_notebook_runs() -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
