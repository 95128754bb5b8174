"""What is certain about a tensor from the source alone: the call that creates it."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from nki_sim.language_check import signatures
from nki_sim.language_check.scopes import Scope

_CREATORS = frozenset(
    f"nki.language.{name}" for name in ("ndarray", "zeros", "ones", "full", "rand")
)
_LIKE = frozenset(("nki.language.zeros_like", "nki.language.empty_like"))
_INTEGERS = frozenset(("int8", "int16", "int32", "uint8", "uint16", "uint32"))


@dataclass(frozen=True)
class Tensor:
    """Rank, dtype and buffer name of a tensor, each None where the source does not settle it."""

    rank: int | None
    dtype: str | None
    buffer: str | None

    @property
    def integer(self) -> bool:
        return self.dtype in _INTEGERS


def _created(value: ast.expr | None, scope: Scope) -> Tensor | None:
    if not isinstance(value, ast.Call):
        return None
    path = scope.path(value.func)
    if path in _LIKE:
        return Tensor(None, None, None)
    if path is None or path not in _CREATORS:
        return None
    parameters = signatures.signature(path, signatures.LAST_PUBLISHED) or ()
    binding = signatures.bind(value, parameters)
    shape = binding.arguments.get("shape")
    rank = None
    if isinstance(shape, ast.Tuple | ast.List) and not any(
        isinstance(size, ast.Starred) for size in shape.elts
    ):
        rank = len(shape.elts)
    buffer = binding.arguments.get("buffer")
    unpacked = any(keyword.arg is None for keyword in value.keywords) or any(
        isinstance(argument, ast.Starred) for argument in value.args
    )
    if buffer is None and unpacked:
        place = None
    elif buffer is None:
        place = "sbuf"
    elif isinstance(buffer, ast.Constant) and isinstance(buffer.value, str):
        place = buffer.value
    else:
        place = _member(buffer, scope)
    dtype = binding.arguments.get("dtype")
    return Tensor(rank, None if dtype is None else _member(dtype, scope), place)


def _member(node: ast.expr, scope: Scope) -> str | None:
    path = scope.path(node)
    prefix = "nki.language."
    return path[len(prefix) :] if path is not None and path.startswith(prefix) else None


def tensor(node: ast.AST | None, scope: Scope) -> Tensor | None:
    """The tensor that a name stands for, if every binding of it is a creation call."""
    if not isinstance(node, ast.Name):
        return None
    owner = scope.owner(node.id)
    if owner is None or node.id not in owner.values:
        return None
    made = [_created(value, owner) for value in owner.values[node.id]]
    known = [item for item in made if item is not None]
    if not known or len(known) != len(made):
        return None
    first = known[0]
    return Tensor(
        first.rank if all(item.rank == first.rank for item in known) else None,
        first.dtype if all(item.dtype == first.dtype for item in known) else None,
        first.buffer if all(item.buffer == first.buffer for item in known) else None,
    )


def base_tensor(node: ast.AST | None, scope: Scope) -> Tensor | None:
    """The tensor under any slices: of `t[a][b]` that of `t`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return tensor(node, scope)
