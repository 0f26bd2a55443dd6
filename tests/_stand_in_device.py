"""A device that is not the processor, where there is none: values are kept on the CPU and say that they are elsewhere.

Tensors of the device `ELSEWHERE` are computed with as usual, but one operation on tensors of both devices is refused,
as CUDA refuses it. torch's own device without values, "meta", gives the name: all of autograd knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")
BETWEEN = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
"""Operations that may look at both devices; what an index says may lie on either."""
INDEXED = ("aten::index", "aten::_index")


class Kept(torch.Tensor):
    """A tensor of ELSEWHERE, and its values."""

    kept: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Kept:
        tensor: Kept = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=ELSEWHERE,
        )
        tensor.kept = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return done(call, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """While it is entered, ELSEWHERE can be computed on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(call, args, kwargs or {})


class Drawing(torch.Generator):
    """A generator of ELSEWHERE."""

    def __new__(cls, device: Any = None) -> Drawing:  # noqa: ARG004
        drawing: Drawing = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        return drawing

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return ELSEWHERE


def done(call: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """What an operation makes of the values, on the device on which it would be. Raises RuntimeError where both mix."""
    name = call._schema.name
    tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, torch.Tensor)]
    elsewhere = [tensor for tensor in tensors if isinstance(tensor, Kept)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Kept) and tensor.dim() > 0]
    if name.startswith(INDEXED):
        here = [tensor for tensor in here if tensor.dtype not in (torch.int64, torch.bool)]
    if elsewhere and here and name not in BETWEEN:
        raise RuntimeError(f"{name} of tensors on two devices, shapes {[tuple(tensor.shape) for tensor in tensors]}")
    asked = given.get("device")
    moved = bool(elsewhere) if asked is None else torch.device(asked).type == ELSEWHERE.type
    here_only = {**given, "device": torch.device("cpu")} if "device" in given else dict(given)
    values = tree_map(lambda leaf: leaf.kept if isinstance(leaf, Kept) else leaf, (tuple(args), here_only))
    result = call(*values[0], **values[1])
    if call._schema.is_mutable:
        return args[0] if call._schema.returns else None
    return tree_map(lambda leaf: Kept(leaf) if moved and isinstance(leaf, torch.Tensor) else leaf, result)
