"""A row names the machine it was made on, well enough to tell why another one rounds differently."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_fisher.experiment.records import provenance

CPUINFO = Path("/proc/cpuinfo")
SHOW = (
    "import torch; from lightning_fisher.experiment.records.provenance import hardware;"
    "print(hardware(torch.device('cpu'))['instruction_set'])"
)


@pytest.mark.skipif(
    not CPUINFO.exists() or "model name" not in CPUINFO.read_text(), reason="the system doesn't name its processor"
)
def test_the_processor_is_named_beyond_its_vendors_generic_name():
    lines = dict(re.findall(r"^(.+?)\s*:\s*(.*)$", CPUINFO.read_text(), re.MULTILINE))
    name = provenance.hardware(torch.device("cpu"))["cpu"]
    assert name.startswith(lines["model name"])
    for key in {"cpu family", "model"} & lines.keys():
        assert lines[key] in re.split(r"\W", name.removeprefix(lines["model name"]))


def test_the_instruction_set_is_the_one_in_use():
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DEFAULT"
