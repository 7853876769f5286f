"""Whether a model is exactly the one in `model.py`: only that one may be computed by other code.

A person who experiments replaces a method, a class, a part of a model or a function, or adds a hook. The fast implementations (kernels,
`decoder`, `chunked_loss`) and the export formats do not see such changes, and would compute the original model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from positron_mini import model as source
from positron_mini.config import ModelConfig

_OF_TORCH = {name: getattr(F, name) for name in ("silu", "scaled_dot_product_attention", "linear", "embedding", "cross_entropy")}
_OF_TORCH_CLASSES = {cls: cls.forward for cls in (nn.Linear, nn.Embedding)}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FREE = ("training", "dropout", "name")  # attributes that may change at any time
_HEAD = ("loss", "logits")  # the methods of GPT that turn the stream into a loss


class Watch:
    """A hook that calls `look` and changes nothing; a model with only this hook still counts as built-in."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def __call__(self, *_: object) -> None:
        self._look()


def is_plain(model: nn.Module) -> bool:
    """Whether `model` is the built-in one."""
    return not changed(model)


def changed(model: nn.Module) -> str:
    """What makes `model` differ from the built-in one, such as "MLP.forward is replaced"; empty if nothing does."""
    return replaced() or next(_differences(model), "")


def has_plain_head(model: nn.Module) -> bool:
    """Whether `model` computes its loss from the stream as the built-in one does: by a matmul with the embedding table."""
    is_own = all(getattr(type(model), name, None) is source.BUILT_IN[f"GPT.{name}"] and name not in vars(model) for name in _HEAD)
    return is_own and all(getattr(F, name) is _OF_TORCH[name] for name in ("linear", "cross_entropy"))


def replaced() -> str:
    """Part of the built-in model's source that has been replaced in this process; empty if none has."""
    for name, original in source.BUILT_IN.items():
        owner, _, member = name.rpartition(".")
        now = vars(source.BUILT_IN[owner]).get(member) if owner else getattr(source, name, None)
        if now is not original and not member.startswith("__annot"):
            return f"{name} is replaced"
    for cls in (value for value in source.BUILT_IN.values() if isinstance(value, type) and issubclass(value, nn.Module)):
        for member, value in vars(cls).items():
            if f"{cls.__name__}.{member}" not in source.BUILT_IN and callable(value) and not member.startswith("__annot"):
                return f"{cls.__name__}.{member} is added"
    functions = (f"torch.nn.functional.{name}" for name, original in _OF_TORCH.items() if getattr(F, name) is not original)
    methods = (f"torch.nn.{cls.__name__}.forward" for cls, original in _OF_TORCH_CLASSES.items() if cls.forward is not original)
    return next((f"{name} is replaced" for name in (*functions, *methods)), "")


@dataclass(frozen=True)
class _BuiltIn:
    """Built-in model of a shape, without weights: parts by name, the settings of each, and the tensors."""

    parts: dict[str, tuple[type, dict[str, Any]]]
    parameters: list[tuple[str, tuple[int, ...], type]]
    buffers: dict[str, Any]


@lru_cache(maxsize=8)
def _built_in(config: ModelConfig) -> _BuiltIn:
    with torch.device("meta"):
        model = source.GPT(config)
    parts = {
        name: (type(part), {key: value for key, value in vars(part).items() if not key.startswith("_") and key not in _FREE})
        for name, part in model.named_modules()
    }
    return _BuiltIn(parts, _shapes(model), {name: buffer.numpy() for name, buffer in model.named_buffers()})


def _shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...], type]]:
    """Name, shape and kind of each parameter, shared ones under every name."""
    return [(name, tuple(p.shape), type(p)) for name, p in model.named_parameters()]


def _differences(model: nn.Module) -> Iterator[str]:
    """Differences of `model` from the built-in one, if the source is unchanged."""
    if type(model) is not source.GPT:
        yield f"it is a {type(model).__name__}"
        return
    wanted = _built_in(model.config)
    missing = set(wanted.parts)
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in wanted.parts:
            yield f"{name} is added"
            return
        missing.discard(name)
        yield from _differences_of(name or "GPT", module, *wanted.parts[name])
    yield from (f"{name} is removed" for name in sorted(missing))
    if torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        yield "there is a hook on all modules"
    if _shapes(model) != wanted.parameters:
        yield "its parameters are others"
    buffers = {name: buffer.cpu().numpy() for name, buffer in model.named_buffers()}
    if buffers.keys() != wanted.buffers.keys():
        yield "its buffers are others"
    elif any(buffer.dtype == np.float32 and not np.array_equal(buffer, wanted.buffers[name]) for name, buffer in buffers.items()):
        yield "its positions are others"


def _differences_of(name: str, module: nn.Module, kind: type, settings: dict[str, Any]) -> Iterator[str]:
    """Differences of one part of a model, without the parts inside it."""
    if type(module) is not kind:
        yield f"{name} is a {type(module).__name__}"
        return
    own = vars(module)
    yield from (f"{name}.{key} is replaced" for key in own if hasattr(kind, key))
    yield from (f"{name}.{key} is {own.get(key)}" for key, value in settings.items() if own.get(key) is not value and own.get(key) != value)
    if any(not isinstance(hook, Watch) for hooks in _HOOKS for hook in own[hooks].values()):
        yield f"{name} has a hook"
