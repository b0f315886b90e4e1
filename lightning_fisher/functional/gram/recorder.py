"""Where a forward pass uses which parameter, and which of its rows belong to which sample.

A ``TorchFunctionMode`` sees every torch function that receives a parameter, in modules and in custom forward code
alike. Calls with a known rule (`rules/registry.py`) become a `Use`: the layer's input is kept and a hook on its output
delivers the gradient. A parameter that reaches any other function is left to the general method
(`per_sample_jacobian.py`), so nothing is ever skipped. The module itself notices nothing: flags, hooks, modes and
attributes stay, and calls without a rule run unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.evaluation.precision import RefuseAutocast
from lightning_fisher.functional.evaluation.state.layers import standardizes_one
from lightning_fisher.functional.gram.rules.base import Arguments, Rule
from lightning_fisher.functional.gram.rules.custom import CustomRule
from lightning_fisher.functional.gram.rules.normalization import fixed_batch_norm
from lightning_fisher.functional.gram.rules.registry import RULES

Key = tuple[int, int]  # (index of the parameter, part of it; −1: all of it)
Layout = tuple[int, int, bool]  # (batch dimension, rows a sample, sample-major)


@dataclass(eq=False)
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
        self.input = torch.empty(0)
        self.gradient = None
        self.arguments = {}

    @property
    def indices(self) -> set[int]:
        """Positions of the tracked parameters of this call."""
        return {index for index, _ in self.keys.values()}

    @property
    def lost(self) -> bool:
        """Whether what the layer saw was modified in place since, and is needed."""
        return self.input._version != self.version and self.rule.needs_input(self.keys)


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
        on_gradient: Called with every use when the gradient of its output arrives; ``None``: a pass that is only
            watched.
        general: Positions of the parameters that no rule covers; grows.
        uses: The calls with a rule.
        trace: Every function called, with its plain arguments: what the pass did, whatever the data.
        differentiates: Whether the forward pass calls autograd itself, which no rule sees through.
        reads: Whether the forward pass reads values into Python, to choose rows say.
        anchor: What `torch.autograd.grad` is asked for, so that it runs through the recorded layers.
    """

    parameters: Sequence[nn.Parameter]
    on_gradient: Callable[[Use], None] | None = None
    general: set[int] = field(default_factory=set)
    uses: list[Use] = field(default_factory=list)
    trace: list[Any] = field(default_factory=list)
    differentiates: bool = False
    reads: bool = False
    inside: int = 0  # calls that run through the recorder; other operations are those of scripted or compiled code

    def __post_init__(self) -> None:
        super().__init__()
        self.index = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        # A hook on a parameter may change its gradient.
        self.general |= {i for i, parameter in enumerate(self.parameters) if parameter._backward_hooks}
        self.anchor = torch.zeros((), requires_grad=True)
        self._autocast = RefuseAutocast({parameter.device.type for parameter in self.parameters})
        self._edges: list[GradientEdge] = []
        self._delivers = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record a known call, mark the parameters of an unknown one."""
        self._autocast.check()
        kwargs = kwargs or {}
        self.trace.append(call_of(func, args, kwargs))
        self.inside += 1
        try:
            return self._function(func, args, kwargs)
        finally:
            self.inside -= 1

    def _function(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in _DIFFERENTIATING:
            self.differentiates = True
        elif func in _READING:
            self.reads = True
        if func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        given = list(_given((args, list(kwargs.values()))))
        tracked = self._tracked(given)
        rule = RULES.get(func)
        if func is F.batch_norm and rule is not None:
            args, kwargs = (), rule.bind(*args, **kwargs)
            _refuse_batch_statistics(kwargs)
            func = func if self.on_gradient is None else fixed_batch_norm
        if not tracked:
            return func(*args, **kwargs)
        if rule is not None and torch.is_grad_enabled() and not any(map(_is_wrapped, given)):
            arguments = rule.bind(*args, **kwargs)
            keys = self._keys(rule, arguments)
            alone = {index for index, _ in keys.values()} == tracked and not self._tracked([arguments["input"]])
            if alone and rule.covers(arguments):
                return self._call(rule, func, arguments, keys)
        output = func(*args, **kwargs)
        if _tensors(output):  # not a question about a shape or a dtype
            self.general |= tracked
        return output

    def layer(self, rule: CustomRule, layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass of a layer that has a rule of its own."""
        keys: dict[str, Key] = {}
        for name, parameter in layer.named_parameters():
            index = self.index.get(id(parameter))
            if index is not None and index not in self.general:
                keys[name] = (index, -1)
        given = list(_given((args, list(kwargs.values()))))
        alone = len(args) == 1 and not kwargs and len(given) == 1 and not _is_wrapped(given[0])
        if not (keys and alone and torch.is_grad_enabled() and not self._tracked(given)):
            return forward(*args, **kwargs)
        self.inside += 1
        try:
            with torch._C.DisableTorchFunction():
                output = forward(*args)
        finally:
            self.inside -= 1
        if not isinstance(output, Tensor):
            self.general |= {index for index, _ in keys.values()}
            return output
        return self._record(rule, {"layer": layer, "input": args[0]}, keys, output)

    def gradients_through(self, outputs: Sequence[Tensor], directions: Sequence[Tensor]) -> None:
        """One backward pass from ``directions``; every use is delivered on the way, no ``.grad`` is written."""
        self._delivers = True
        try:
            reached = _nodes_before(outputs, self.anchor)
            apart = [edge for edge in self._edges if edge.node not in reached]
            wanted: list[Any] = [self.anchor, *apart]
            torch.autograd.grad(outputs, wanted, directions, allow_unused=True)
        finally:
            self._delivers = False

    def release(self) -> None:
        """Let go of the graph, which refers back to the recorder by its hooks."""
        self._edges.clear()

    def _tracked(self, tensors: Iterable[Tensor]) -> set[int]:
        found = {self.index[id(leaf)] for leaf in tensors if id(leaf) in self.index}
        return found - self.general if found else found

    def _keys(self, rule: Rule, arguments: Arguments) -> dict[str, Key]:
        keys = {name: self._key(arguments.get(name), -1) for name in rule.parameters}
        return {name: key for name, key in keys.items() if key is not None}

    def _call(self, rule: Rule, func: Callable[..., Any], arguments: Arguments, keys: dict[str, Key]) -> Tensor:
        if self.on_gradient is not None:  # the backward pass skips the gradients of the weights
            arguments = {**arguments, **{name: arguments[name].detach() for name in keys}}
        return self._record(rule, arguments, keys, rule.call(func, arguments))

    def _record(self, rule: Rule, arguments: Arguments, keys: dict[str, Key], output: Tensor) -> Tensor:
        input = arguments["input"]
        # Detached: the hook below holds the use, and a use that held the graph would keep all of it alive for good.
        arguments = {**arguments, "input": input.detach()}
        use = Use(rule, arguments, keys, arguments["input"], input._version, output.shape)
        self.uses.append(use)
        if self.on_gradient is not None:
            if not output.requires_grad:
                if output._is_view() or output is input:
                    output = output.clone()
                output = _Tap.apply(output, self.anchor)
            output.register_hook(lambda gradient: self._deliver(use, gradient))
            self._edges.append(get_gradient_edge(output))
        return output

    def _deliver(self, use: Use, gradient: Tensor) -> None:
        if not self._delivers:  # a backward pass of the module's own
            return
        if use.lost:
            self.general |= use.indices
            return
        use.gradient = gradient
        assert self.on_gradient is not None
        self.on_gradient(use)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Multi-head attention as three recorded projections, the framework's own kernel, and a fourth.

        The kernel then runs with identity projections; multiplying by the identity is exact.
        """
        bound = _ATTENTION.bind(query, key, value, *args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        tracked = self._tracked(_tensors(call))
        fixed = call["static_k"] is not None or call["static_v"] is not None
        if not tracked or fixed or not torch.is_grad_enabled() or any(map(_is_wrapped, (query, key, value))):
            self.general |= tracked
            return F.multi_head_attention_forward(**call)
        weight, bias = call["in_proj_weight"], call["in_proj_bias"]
        width = call["embed_dim_to_check"]
        self.general |= self._tracked(call[name] for name in ("bias_k", "bias_v") if call[name] is not None)
        projected = []
        for part, (name, source) in enumerate(zip("qkv", (query, key, value), strict=True)):
            separate = call["use_separate_proj_weight"]
            matrix = call[f"{name}_proj_weight"] if separate else weight
            rows = slice(None) if separate else slice(part * width, (part + 1) * width)
            part_rows = slice(part * width, (part + 1) * width)
            keys = {"weight": self._key(matrix, -1 if separate else part), "bias": self._key(bias, part)}
            projected.append(self._linear(source, matrix, rows, bias, part_rows, keys))
        identity = torch.eye(width, dtype=projected[0].dtype, device=projected[0].device)
        out_weight, out_bias = call["out_proj_weight"], call["out_proj_bias"]
        call |= dict(zip(("query", "key", "value"), projected, strict=True))
        call |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
        call |= {f"{name}_proj_weight": identity for name in "qkv"}
        call |= {"out_proj_weight": identity, "out_proj_bias": None}
        attended, weights = F.multi_head_attention_forward(**call)
        keys = {"weight": self._key(out_weight, -1), "bias": self._key(out_bias, -1)}
        return self._linear(attended, out_weight, slice(None), out_bias, slice(None), keys), weights

    def _key(self, parameter: Any, part: int) -> Key | None:
        index = self.index.get(id(parameter))
        return None if index is None or index in self.general else (index, part)

    def _linear(
        self, input: Tensor, weight: Tensor, rows: slice, bias: Tensor | None, bias_rows: slice, keys: dict[str, Any]
    ) -> Tensor:
        known: dict[str, Key] = {name: key for name, key in keys.items() if key is not None}
        if self.on_gradient is not None:  # before they are cut: nothing of a weight's graph is built
            weight = weight.detach() if "weight" in known else weight
            bias = bias.detach() if bias is not None and "bias" in known else bias
        weight, bias = weight[rows], None if bias is None else bias[bias_rows]
        if not known:
            return F.linear(input, weight, bias)
        rule = RULES[F.linear]
        return self._call(rule, F.linear, {"input": input, "weight": weight, "bias": bias}, known)


_PLAIN = (int, float, bool, str, type(None))
_ATTENTION = inspect.signature(F.multi_head_attention_forward)
_DIFFERENTIATING = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}
_READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, torch.to_dlpack}


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work, which functions of our own aren't made for."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or forward_ad._current_level >= 0


def call_of(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a trace notes of a call: the function and its plain arguments."""
    return func, [a for a in args if type(a) in _PLAIN], [k for k in kwargs.items() if _is_plain(k)]


def _is_plain(item: tuple[str, Any]) -> bool:
    return type(item[1]) in _PLAIN


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


def _nodes_before(outputs: Sequence[Tensor], anchor: Tensor) -> set[Any]:
    """The nodes of the graph of ``outputs`` from which a path leads to ``anchor``."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(output.grad_fn, False) for output in outputs if output.grad_fn is not None]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((before, False) for before, _ in node.next_functions if before is not None)
    reaching: set[Any] = set()
    for node in order:  # those before a node come first
        if getattr(node, "variable", None) is anchor or any(n in reaching for n, _ in node.next_functions):
            reaching.add(node)
    return reaching


def _refuse_batch_statistics(arguments: dict[str, Any]) -> None:
    if arguments["training"] and not standardizes_one(arguments["input"], arguments["running_mean"]):
        raise ValueError(
            "Expected batch-norm layers to use running statistics, but got one that uses the statistics of the batch "
            "(track_running_stats=False, or training mode forced), where samples have no gradients of their own; "
            'choose `batch_norm="batch"` for the coupled form.'
        )
