"""Where a forward pass uses which parameter, and which of its rows belong to which sample.

A ``TorchFunctionMode`` sees every torch function that receives a parameter, in modules and in custom forward code
alike. Calls with a known rule (`rules/registry.py`) become a `Use`: the layer's input is kept and a hook on its output
delivers the gradient. A parameter that reaches any other function is left to the general fallback
(`per_sample_jacobian.py`), so nothing is ever skipped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.evaluation.module_state import standardizes_one
from lightning_fisher.functional.evaluation.precision import RefuseAutocast
from lightning_fisher.functional.gram.rules.base import Arguments, Rule
from lightning_fisher.functional.gram.rules.normalization import fixed_batch_norm
from lightning_fisher.functional.gram.rules.registry import RULES

Key = tuple[int, int]  # (index of the parameter, part of it; −1: all of it)
Layout = tuple[int, int, bool]  # (batch dimension, rows a sample, sample-major)


@dataclass
class Use:
    """One call of a known function with tracked parameters."""

    rule: Rule
    arguments: Arguments
    keys: dict[str, Key]  # by name of the argument
    input: Tensor
    version: int
    output_shape: torch.Size
    layout: Layout | None = None
    gradient: Tensor | None = None

    def release(self) -> None:
        """Let go of the tensors: the passes through the layers before reuse their memory."""
        self.input = self.input.new_empty(0)
        self.gradient = None
        self.arguments = {}

    @property
    def indices(self) -> set[int]:
        """Positions of the tracked parameters of this call."""
        return {index for index, _ in self.keys.values()}


class _Tap(torch.autograd.Function):
    """Give a tensor that nothing upstream differentiates a place in the graph, without a copy."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:  # type: ignore[override]
        return None, None


@dataclass(eq=False)
class Recorder(TorchFunctionMode):
    """Record the uses of ``parameters`` while a forward pass runs inside ``with recorder:``.

    Attributes:
        parameters: The tracked parameters, by position.
        on_gradient: Called with every use when the gradient of its output arrives; ``None``: a probe pass without
            a graph.
    """

    parameters: Sequence[nn.Parameter]
    on_gradient: Callable[[Use], None] | None = None
    uses: list[Use] = field(default_factory=list)
    general: set[int] = field(default_factory=set)  # indices of parameters no rule covers

    def __post_init__(self) -> None:
        super().__init__()
        self._index = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        self._anchor = torch.zeros((), requires_grad=True)
        self._autocast = RefuseAutocast({parameter.device.type for parameter in self.parameters})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record a known call, mark the parameters of an unknown one."""
        self._autocast.check()
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        tracked = {self._index[id(leaf)] for leaf in _given((args, list(kwargs.values()))) if id(leaf) in self._index}
        rule = RULES.get(func)
        if func is F.batch_norm and rule is not None:
            args, kwargs = (), rule.bind(*args, **kwargs)
            _refuse_batch_statistics(kwargs)
            func = func if self.on_gradient is None else fixed_batch_norm
        if not tracked:
            return func(*args, **kwargs)
        if rule is not None and torch.is_grad_enabled():
            arguments = rule.bind(*args, **kwargs)
            given = {name: self._index.get(id(arguments.get(name))) for name in rule.parameters}
            keys = {name: (index, -1) for name, index in given.items() if index is not None}
            alone = {index for index, _ in keys.values()} == tracked and id(arguments["input"]) not in self._index
            if alone and rule.covers(arguments):
                return self._call(rule, func, arguments, keys)
        output = func(*args, **kwargs)
        if _tensors(output):  # not a question about a shape or a dtype
            self.general |= tracked
        return output

    def _call(
        self,
        rule: Rule,
        func: Callable[..., Any],
        arguments: Arguments,
        keys: dict[str, Key],
    ) -> Tensor:
        output = rule.call(func, arguments)
        input = arguments["input"]
        # Detached: the hook below holds the use, and a use that held the graph would keep all of it alive for good.
        arguments = {**arguments, "input": input.detach()}
        use = Use(rule, arguments, keys, arguments["input"], input._version, output.shape)
        self.uses.append(use)
        if self.on_gradient is not None:
            if not output.requires_grad:
                if output._is_view():
                    output = output.clone()
                output = _Tap.apply(output, self._anchor)
            output.register_hook(lambda gradient: self._deliver(use, gradient))
        return output

    def _deliver(self, use: Use, gradient: Tensor) -> None:
        if use.input._version != use.version:  # modified in place since: what the layer saw is lost
            self.general |= use.indices
            return
        use.gradient = gradient
        assert self.on_gradient is not None
        self.on_gradient(use)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Multi-head attention as three recorded projections, the framework's own kernel, and a fourth.

        The kernel then runs with identity projections; multiplying by the identity is exact.
        """
        bound = ATTENTION.bind(query, key, value, *args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        weight, bias = call["in_proj_weight"], call["in_proj_bias"]
        width = call["embed_dim_to_check"]
        if call["static_k"] is not None or call["static_v"] is not None or not torch.is_grad_enabled():
            self.general |= {self._index[id(leaf)] for leaf in _tensors(call) if id(leaf) in self._index}
            return F.multi_head_attention_forward(**call)
        self.general |= {self._index[id(call[name])] for name in ("bias_k", "bias_v") if id(call[name]) in self._index}
        projected = []
        for part, (name, source) in enumerate(zip("qkv", (query, key, value), strict=True)):
            rows = slice(part * width, (part + 1) * width)
            separate = call["use_separate_proj_weight"]
            matrix = call[f"{name}_proj_weight"] if separate else weight
            part_bias = None if bias is None else bias[rows]
            projected.append(
                self._linear(
                    source,
                    matrix if separate else matrix[rows],
                    part_bias,
                    self._key(matrix, -1 if separate else part),
                    self._key(bias, part),
                )
            )
        identity = torch.eye(width, dtype=projected[0].dtype, device=projected[0].device)
        out_weight, out_bias = call["out_proj_weight"], call["out_proj_bias"]
        call |= dict(zip(("query", "key", "value"), projected, strict=True))
        call |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
        call |= {f"{name}_proj_weight": identity for name in "qkv"}
        call |= {"out_proj_weight": identity, "out_proj_bias": None}
        attended, weights = F.multi_head_attention_forward(**call)
        output = self._linear(attended, out_weight, out_bias, self._key(out_weight, -1), self._key(out_bias, -1))
        return output, weights

    def _key(self, parameter: Tensor | None, part: int) -> Key | None:
        index = self._index.get(id(parameter))
        return None if index is None else (index, part)

    def _linear(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, weight_key: Key | None, bias_key: Key | None
    ) -> Tensor:
        given = {"weight": weight_key, "bias": bias_key}
        keys = {name: key for name, key in given.items() if key is not None}
        if not keys:
            return F.linear(input, weight, bias)
        return self._call(RULES[F.linear], F.linear, {"input": input, "weight": weight, "bias": bias}, keys)


_PLAIN = (int, float, bool, str, type(None))
ATTENTION = inspect.signature(F.multi_head_attention_forward)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _given(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among a call's arguments: most are tensors, numbers or tuples of those, quicker than any tree."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _given(value)
        elif not isinstance(value, _PLAIN):
            yield from _tensors(value)


def _refuse_batch_statistics(arguments: dict[str, Any]) -> None:
    if arguments["training"] and not standardizes_one(arguments["input"], arguments["running_mean"]):
        raise ValueError(
            "Expected batch-norm layers to use running statistics, but got one that uses the statistics of the batch "
            "(track_running_stats=False, or training mode forced), where samples have no gradients of their own; "
            'choose `batch_norm="batch"` for the coupled form.'
        )
