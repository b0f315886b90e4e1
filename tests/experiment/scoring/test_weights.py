"""Which weights of a file are the network's, and what is no network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.scoring.import_path import make_module
from lightning_fisher.experiment.scoring.weights import load, read_checkpoint, select, state_dict

NAMES = {"a.weight", "b"}
WEIGHTS = {"a.weight": torch.zeros(1), "b": torch.ones(2)}


def prefixed(prefix: str, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in WEIGHTS.items()} | more


@pytest.mark.parametrize("prefix", ["", "net.", "module.", "model.backbone."])
def test_a_common_beginning_is_found_out(prefix: str) -> None:
    other = {} if prefix == "" else {"loss.weight": torch.zeros(3)}
    assert set(select(NAMES, prefixed(prefix) | other, None)) == NAMES


def test_several_that_fit_have_to_be_told_apart() -> None:
    both = prefixed("net.") | {name: value + 1 for name, value in prefixed("ema.").items()}
    with pytest.raises(ConfigError, match=r"`score.prefix`.*ema\. or net\. fit"):
        select(NAMES, both, None)
    assert float(select(NAMES, both, "ema.")["b"][0]) == 2.0


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"lacks 1 of the network's 2 \(b, …\)"):
        select(NAMES, {"a.weight": torch.zeros(1)}, None)
    with pytest.raises(ConfigError, match=r"has 1 that the network lacks \(c, …\)"):
        select(NAMES, prefixed("", c=torch.zeros(1)), None)


@pytest.mark.parametrize("place", [None, "state_dict", "model_state_dict", "model"])
def test_where_a_state_dict_may_lie(place: str | None, tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    torch.save(WEIGHTS if place is None else {place: WEIGHTS, "epoch": 3, "lr": 0.1}, file)
    assert set(state_dict(read_checkpoint(file), file)) == NAMES


def test_the_weights_arrive(tmp_path: Path) -> None:
    torch.manual_seed(1)
    there = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    there(torch.randn(4, 1, 5, 5))  # running statistics that are not the initial ones
    torch.save({"state_dict": {f"net.{k}": v for k, v in there.state_dict().items()}}, tmp_path / "file.ckpt")
    here = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    load(here, read_checkpoint(tmp_path / "file.ckpt"), tmp_path / "file.ckpt", None)
    for name, value in there.state_dict().items():
        assert torch.equal(here.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"nonsense" * 100, "cannot be read|not executed"),
        ("truncated", "cannot be read"),
        ({"epoch": 1}, "holds none"),
        ([1, 2], "holds none"),
        ({"weight": torch.full((1, 1), torch.nan), "bias": torch.zeros(1)}, "finite weights, but `weight`"),
        ({"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, r"`weight` is \[1, 1\] in the network and \[1, 2\]"),
        (nn.Linear(1, 1), "Python objects, which are not executed"),
    ],
    ids=["empty", "nonsense", "truncated", "no weights", "a list", "nan", "shape", "pickled"],
)
def test_other_files_are_refused_in_one_line(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    if content == "truncated":
        torch.save(WEIGHTS, file)
        content = file.read_bytes()[:-200]
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    net = nn.Linear(1, 1)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ConfigError, match=message) as caught:
        load(net, read_checkpoint(file), file, None)
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("path", "kwargs", "message"),
    [
        ("nope.Net", None, "No module named 'nope'"),
        ("torchvision.models", None, "class or function"),
        ("collections.OrderedDict", None, "gave OrderedDict"),
        ("torchvision.models.resnet18", {"num_clases": 10}, "`score.kwargs`.*num_clases"),
        ("torchvision.models.resnet18", 3, "`score.kwargs`.*`3`"),
        ("", None, "`score.module`"),
    ],
)
def test_import_paths_that_make_no_network(path: str, kwargs: Any, message: str) -> None:
    node = OmegaConf.create(kwargs) if isinstance(kwargs, dict) else kwargs
    with pytest.raises(ConfigError, match=message) as caught:
        make_module(path, node)
    assert len(str(caught.value).splitlines()) == 1


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_a_file_holds_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": WEIGHTS, "extra": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(ConfigError, match="to be a file of weights"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()
