"""Put back what a forward pass or a `training_step` leaves in the plain attributes of the modules it runs through."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

_PLAIN = (bool, int, float, str, type(None))
_METRIC_STATES = (Tensor, *_PLAIN, list, tuple, dict, set, deque)
_LISTS = (list, deque)
_DICTS = (dict, OrderedDict, defaultdict, Counter)
_STATES = {*_PLAIN, *_LISTS, *_DICTS, tuple, set}
_ATTRIBUTES = set(vars(nn.Module()))  # hooks, parameters, buffers, mode: not state of this kind


class AttributeSnapshot:
    """The plain attributes of every module in a tree: counters, lists of the epoch's outputs, hidden states, metrics.

    Numbers, strings, tensors, and lists, deques, tuples, dicts and sets of anything, nested or not. Objects of other
    classes stay as the pass left them. Of torchmetrics' metrics all states are copied; a tensor attribute of another
    module comes back as the object it was, so changing it in place is refused; so are changes of frozen parameters, of
    which no copy is kept. torch's own layers keep no such state and are skipped.

    Args:
        module: The root of the tree.
        thorough: Compare the norms of the frozen parameters too: only they show a change through ``.data``.
    """

    def __init__(self, module: nn.Module, thorough: bool = False) -> None:
        self._metrics: list[tuple[Metric, dict[str, Any]]] = []
        self._modules: list[tuple[dict[str, Any], int, dict[str, Any]]] = []
        self._tensors: list[tuple[str, Tensor, int]] = []
        for submodule in module.modules():
            attributes = vars(submodule)
            if isinstance(submodule, Metric):
                states = {name: value for name, value in attributes.items() if _is_metric_state(name, value)}
                self._metrics.append((submodule, {name: _copy(value) for name, value in states.items()}))
            elif not type(submodule).__module__.startswith("torch.nn."):
                names = [name for name in attributes.keys() - _ATTRIBUTES if _is_state(attributes[name])]
                saved = {name: _save(attributes[name]) for name in names}
                self._modules.append((attributes, len(attributes), saved))
                self._tensors += [
                    (f"{type(submodule).__name__}.{name}", value, value._version)
                    for name, (value, _) in saved.items()
                    if isinstance(value, Tensor) and not value.is_inference()
                ]
        self._frozen = [
            (name, parameter, parameter._version, parameter.data_ptr())
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad and parameter.layout is torch.strided and not parameter.is_inference()
        ]
        self._norms = self._frozen_norms() if thorough else []

    def _frozen_norms(self) -> list[str]:
        parameters: list[Tensor] = [p for _, p, *_ in self._frozen if p.is_floating_point()]
        return [float(norm).hex() for norm in torch._foreach_norm(parameters)] if parameters else []

    def restore(self) -> None:
        """Put them back; containers keep their identity, and attributes that are new go."""
        for metric, states in self._metrics:
            vars(metric).update({name: _copy(value) for name, value in states.items()})
        for attributes, count, saved in self._modules:
            if len(attributes) != count:
                for name in attributes.keys() - _ATTRIBUTES - saved.keys():
                    if _is_state(attributes[name]):
                        del attributes[name]
            for name, (value, content) in saved.items():
                attributes[name] = value if content is None else _restore(value, content)

    def refuse_lost(self) -> None:
        """Refuse what `restore` can't put back.

        Raises:
            ValueError: If a tensor attribute was changed in place, or a frozen parameter.
        """
        changed = [name for name, p, version, where in self._frozen if (p._version, p.data_ptr()) != (version, where)]
        if changed or (self._norms and self._frozen_norms() != self._norms):
            raise ValueError(
                "FisherRegularizer runs `training_step` several times a batch, but it changes frozen parameters"
                f"{f' ({changed[0]!r})' if changed else ''}, an averaged copy of the network, say; change them in "
                "`on_train_batch_end`, which runs once."
            )
        for name, tensor, version in self._tensors:
            if tensor._version != version:
                raise ValueError(
                    f"FisherRegularizer runs `training_step` several times a batch, but it changes the tensor {name!r} "
                    "in place; make that a buffer (`register_buffer`), which is put back after the extra passes."
                )


def _is_state(value: Any) -> bool:
    return type(value) in _STATES or isinstance(value, Tensor)


def _save(value: Any) -> tuple[Any, Any]:
    """The object, and its content if it can change: containers inside are saved alike."""
    kind = type(value)
    if kind in _LISTS:
        return value, [_save(item) for item in value]
    if kind in _DICTS:
        return value, {key: _save(item) for key, item in value.items()}
    return value, set(value) if kind is set else None


def _restore(value: Any, content: Any) -> Any:
    if content is None:
        return value
    if type(value) in _LISTS:
        items = [_restore(*pair) for pair in content]
        if len(value) != len(items) or any(a is not b for a, b in zip(value, items, strict=True)):
            value.clear()
            value.extend(items)
        return value
    restored = content if type(value) is set else {key: _restore(*pair) for key, pair in content.items()}
    value.clear()
    value.update(restored)
    return value


def _is_metric_state(name: str, value: Any) -> bool:
    return name not in _ATTRIBUTES and isinstance(value, _METRIC_STATES)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)
