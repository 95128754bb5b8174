"""The kernels as torch operators, and the one place that decides what runs where.

Each operator is one node to `torch.export` and `torch.compile` (namespace `bifork`, with fake
implementations). The functions here check shapes, then call the operator; the operator picks the
path:

    device   kernels="auto"        "nki"                     "torch"
    cpu      torch reference       NKI kernel on nki_sim     torch reference
    cuda     Triton (decode),      refused                   torch reference
             torch reference
    xla      NKI kernel            NKI kernel                torch reference (no NKI in the graph)

On the NKI path `attention` chooses between two decode kernels; `decode_path` tells the choice.
What an NKI kernel cannot do (d > 256) is refused where it would run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, overload

import torch

from nki_kernels import launch, tuned
from nki_kernels.attention_state.validate import FP8, validate_for_kernels
from nki_kernels.bifurcated_attention import reference as bifurcated_reference
from nki_kernels.bifurcated_attention import tuning as bifurcated_tuning
from nki_kernels.bifurcated_attention import validate as bifurcated_validate
from nki_kernels.errors import InputError, require
from nki_kernels.flash_attention import reference as flash_reference
from nki_kernels.flash_attention import tuning as flash_tuning
from nki_kernels.flash_attention import validate as flash_validate
from nki_kernels.ordinary_attention import tuning as ordinary_tuning
from nki_kernels.ordinary_attention.switch import WAYS, decode_path

KERNELS = ("auto", "nki", "torch")
TARGETS = ("trn1", "inf2", "trn2", "trn3")

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""o, max and sum, as `return_state=True` returns them."""


@overload
def bifurcated_attention(
    q: torch.Tensor,
    k_ctx: torch.Tensor,
    v_ctx: torch.Tensor,
    k_suf: torch.Tensor,
    v_suf: torch.Tensor,
    context_len: torch.Tensor,
    suffix_len: torch.Tensor,
    *,
    scale: float,
    window: int | None = ...,
    softcap: float | None = ...,
    query_position: torch.Tensor | None = ...,
    sinks: torch.Tensor | None = ...,
    k_scale: torch.Tensor | None = ...,
    v_scale: torch.Tensor | None = ...,
    return_state: Literal[False] = ...,
    kernels: str = ...,
    target: str = ...,
    attention: str = ...,
) -> torch.Tensor: ...


@overload
def bifurcated_attention(
    q: torch.Tensor,
    k_ctx: torch.Tensor,
    v_ctx: torch.Tensor,
    k_suf: torch.Tensor,
    v_suf: torch.Tensor,
    context_len: torch.Tensor,
    suffix_len: torch.Tensor,
    *,
    scale: float,
    window: int | None = ...,
    softcap: float | None = ...,
    query_position: torch.Tensor | None = ...,
    sinks: torch.Tensor | None = ...,
    k_scale: torch.Tensor | None = ...,
    v_scale: torch.Tensor | None = ...,
    return_state: Literal[True],
    kernels: str = ...,
    target: str = ...,
    attention: str = ...,
) -> State: ...


def bifurcated_attention(
    q: torch.Tensor,
    k_ctx: torch.Tensor,
    v_ctx: torch.Tensor,
    k_suf: torch.Tensor,
    v_suf: torch.Tensor,
    context_len: torch.Tensor,
    suffix_len: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    query_position: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    return_state: bool = False,
    kernels: str = "auto",
    target: str = "trn1",
    attention: str = "auto",
) -> torch.Tensor | State:
    """Decode attention of r samples of each of G prompts; reads each prompt's keys and values once.

    Equations 3 and 4 of "Bifurcated Attention" (Athiwaratkun et al., ICML 2024, arXiv 2403.08845).
    At shape (G = b, r = 1), each group holding its own copy of the prompt, it is ordinary decoding.

    Args:
        q: [G, r, n, h, d]: n query tokens of r samples of G prompts. float32, bfloat16 or float16.
        k_ctx: [g, d, G·S_ctx]: context keys, transposed. Group j holds slots
            j·S_ctx .. j·S_ctx + context_len[j]. g divides h; query head i reads kv head i // (h /
            g).
        v_ctx: [g, G·S_ctx, d]: context values.
        k_suf: [g, G·r·S_dec, d]: keys of the samples' own tokens. Sample (j, i) holds rows
            (j·r + i)·S_dec .. + suffix_len[j, i], the n tokens of this step last.
        v_suf: [g, G·r·S_dec, d]: their values.
        context_len: int32 [G], 0..S_ctx.
        suffix_len: int32 [G, r], 0..S_dec. Query token t sees suffix rows below
            suffix_len - (n - 1 - t), and the whole context.
        scale: factor of the logits, usually d ** -0.5.
        window: how many positions a query sees, its own included; None is all of them. Context
            slot s is position s, suffix row i of a sample of group j position context_len[j] + i.
        softcap: c bends each scaled logit s to c·tanh(s / c); None does not.
        query_position: int32 [G, r], with a window: the position of each sample's last query token,
            counted from the group's context slot 0. None is context_len + suffix_len - 1; it is
            another one where keys between those given here lie elsewhere.
        sinks: float32 [h]: a logit that each head adds to its denominators, without a value. Where
            states are merged, give them to one call alone.
        k_scale: float32 [g], only where the four caches are float8_e4m3fn within ±240: keys are
            what is stored times their head's factor. None is 1.
        v_scale: the same of values.
        return_state: also return the softmax's max and sum, over keys and sink, to `merge` with
            other keys.
        kernels: "auto", "nki" or "torch"; the table above says what runs.
        target: core generation that the simulator models when kernels="nki" on CPU.
        attention: which NKI kernel runs: "bifurcated", "ordinary", which reads the context once a
            sample, or "auto", whichever is predicted faster (`decode_path` says which, and why).

    Returns:
        o [G, r, n, h, d] in q's dtype; with `return_state` (o, max, sum), max and sum float32
        [G, r, n, h] of the scaled logits. A row that sees no key has o = 0, sum = 0, max = MASK
        (with sinks: sum = 1, max = the sink).
        Slots outside the lengths may hold anything finite: they change no bit.

    Raises:
        InputError: a shape, dtype, device, option, or (on CPU) a length outside what is accepted.
    """
    bifurcated_validate.validate(
        q,
        k_ctx,
        v_ctx,
        k_suf,
        v_suf,
        context_len,
        suffix_len,
        scale=scale,
        window=window,
        softcap=softcap,
        query_position=query_position,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    if _check_options(q, kernels, target):
        validate_for_kernels(q.shape[-1])
    require(attention in WAYS, f"attention must be one of {', '.join(WAYS)}, got {attention!r}")
    op = torch.ops.bifork.bifurcated_attention
    if return_state:
        op = torch.ops.bifork.bifurcated_attention_state
    result: torch.Tensor | State = op(
        q,
        k_ctx,
        v_ctx,
        k_suf,
        v_suf,
        context_len,
        suffix_len,
        scale,
        kernels,
        target,
        window,
        softcap,
        query_position,
        attention,
        sinks,
        k_scale,
        v_scale,
    )
    return result


@overload
def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    start: int = ...,
    window: int | None = ...,
    softcap: float | None = ...,
    sinks: torch.Tensor | None = ...,
    return_state: Literal[False] = ...,
    kernels: str = ...,
    target: str = ...,
) -> torch.Tensor: ...


@overload
def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    start: int = ...,
    window: int | None = ...,
    softcap: float | None = ...,
    sinks: torch.Tensor | None = ...,
    return_state: Literal[True],
    kernels: str = ...,
    target: str = ...,
) -> State: ...


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    start: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    return_state: bool = False,
    kernels: str = "auto",
    target: str = "trn1",
) -> torch.Tensor | State:
    """Causal attention of B packed prompts, whole or S positions of each behind stored keys.

    A long prompt is prefilled chunk by chunk: call i gets the queries of positions i·S .. i·S + S,
    ``start`` = i·S, and the context cache in which the chunk's own keys already stand. ``start`` is
    fixed when the kernel is compiled, so that nothing above the diagonal is computed, and no mask
    but the diagonal's is needed.

    Args:
        q: [B, S, h, d]. float32, bfloat16 or float16.
        k: [g, d, B·S_ctx]: keys, transposed as the context cache stores them; g divides h. Prompt j
            holds slots j·S_ctx .. j·S_ctx + start + S, slot s being position s. What lies behind
            is not read.
        v: [g, B·S_ctx, d].
        scale: factor of the logits, usually d ** -0.5.
        start: position of the first query: query i sees slots 0 .. start + i.
        sinks: float32 [h]: a logit that each head adds to its denominators, without a value.
        return_state: also return the softmax's max and sum, over keys and sink.
        window, softcap, kernels, target: as in `bifurcated_attention`; the tile sizes are those of
            `target`.

    Returns:
        o [B, S, h, d] in q's dtype; with `return_state` (o, max, sum), max and sum float32 [B, S,
        h].

    Raises:
        InputError: a shape, dtype, device or option outside what is accepted.
    """
    shape = flash_validate.validate(
        q, k, v, scale=scale, start=start, window=window, softcap=softcap, sinks=sinks
    )
    if _check_options(q, kernels, target):
        validate_for_kernels(shape.d)
    op = torch.ops.bifork.flash_attention
    if return_state:
        op = torch.ops.bifork.flash_attention_state
    result: torch.Tensor | State = op(
        q, k, v, scale, kernels, target, window, softcap, sinks, start
    )
    return result


# --- which path


def _check_options(q: torch.Tensor, kernels: str, target: str) -> bool:
    """Check what every operator takes; whether an NKI kernel runs."""
    require(kernels in KERNELS, f"kernels must be one of {', '.join(KERNELS)}, got {kernels!r}")
    require(target in TARGETS, f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if kernels == "nki":
        require(
            q.device.type != "cuda",
            "kernels='nki' runs on Neuron devices and on the simulator (device cpu), not on cuda;"
            " use 'auto' or 'torch'",
        )
        require(
            q.dtype != torch.float64,
            "q has dtype torch.float64, which no NeuronCore computes in; use kernels='torch'",
        )
    return kernels == "nki" or (kernels == "auto" and q.device.type == "xla")


def _runs_reference(device: torch.device, kernels: str) -> bool:
    if kernels == "torch":
        return True
    if kernels == "nki":
        return False
    if device.type in ("cpu", "cuda"):
        return True
    if device.type == "xla":
        return False
    raise InputError(f"q is on device {device}; cpu, cuda and xla (Neuron) are supported")


def cuda_path(dtype: torch.dtype) -> str:
    """What bifurcated attention is computed by on a GPU under "auto": "triton" or "torch".

    Triton comes with torch's CUDA builds for Linux; other builds, and float64, take the reference.
    """
    if importlib.util.find_spec("triton") is None:
        return "torch"
    from nki_kernels.bifurcated_attention import cuda

    return "triton" if dtype in cuda.DTYPES else "torch"


def _run_kernel(
    device: torch.device,
    target: str,
    module: str,
    name: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    shared: bool = False,
) -> Any:
    """Run a kernel where its tensors are: on the simulator for host tensors, else on the device.

    `shared` says that the kernel divides its work among the physical cores of a logical one.
    """
    kernel = launch.load(module, name)
    dense = tuple(arg.contiguous() if isinstance(arg, torch.Tensor) else arg for arg in args)
    if device.type == "cpu":
        return launch.simulate(kernel, target, *dense, **options)
    lnc = launch.logical_cores(target) if shared else 1
    return launch.on_device(kernel, *dense, lnc=lnc, **options)


# --- bifurcated attention


def _bifurcated(
    return_state: bool,
    q: torch.Tensor,
    k_ctx: torch.Tensor,
    v_ctx: torch.Tensor,
    k_suf: torch.Tensor,
    v_suf: torch.Tensor,
    context_len: torch.Tensor,
    suffix_len: torch.Tensor,
    scale: float,
    kernels: str,
    target: str,
    window: int | None = None,
    softcap: float | None = None,
    query_position: torch.Tensor | None = None,
    attention: str = "auto",
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> Any:
    tensors = (q, k_ctx, v_ctx, k_suf, v_suf, context_len, suffix_len)
    features: dict[str, Any] = {
        "window": window,
        "softcap": softcap,
        "query_position": query_position,
        "sinks": sinks,
        "k_scale": k_scale,
        "v_scale": v_scale,
    }
    shape = bifurcated_validate.validate(*tensors, scale=scale, **features)
    if q.device.type == "cpu":
        bifurcated_validate.validate_lengths(shape, context_len, suffix_len)
    if q.device.type == "cuda" and kernels == "auto" and cuda_path(q.dtype) == "triton":
        from nki_kernels.bifurcated_attention import cuda

        return cuda.bifurcated_attention(
            *tensors, scale=scale, **features, return_state=return_state
        )
    if _runs_reference(q.device, kernels):
        return bifurcated_reference.bifurcated_attention(
            *tensors, scale=scale, **features, return_state=return_state
        )
    validate_for_kernels(shape.d)
    narrow = k_ctx.dtype == FP8
    asked = [name for name, value in features.items() if value is not None]
    if narrow:
        asked.append(f"caches in {FP8}")
    size = q.element_size()
    path = decode_path(shape, size, target, attention, asked).path
    if path == "ordinary":
        ordinary = ordinary_tuning.schedule(shape, size)
        chosen = vars(tuned.improve("ordinary_attention", ordinary, shape, size, target))
    else:
        plan = bifurcated_tuning.schedule(shape, size, target)
        plan = tuned.improve("bifurcated_attention", plan, shape, size, target, narrow)
        if (k_scale is None) != (v_scale is None):  # the kernel takes both or none
            ones = torch.ones(shape.g, dtype=torch.float32, device=q.device)
            features |= {"k_scale": ones if k_scale is None else k_scale}
            features |= {"v_scale": ones if v_scale is None else v_scale}
        chosen = bifurcated_tuning.kernel_options(plan, **features)
    return _run_kernel(
        q.device,
        target,
        f"nki_kernels.{path}_attention.kernel",
        f"{path}_attention_kernel",
        (*tensors, float(scale)),
        {"return_state": return_state, **chosen},
        shared=path == "bifurcated",
    )


_BIFURCATED_ARGS = (
    "(Tensor q, Tensor k_ctx, Tensor v_ctx, Tensor k_suf, Tensor v_suf, Tensor context_len,"
    " Tensor suffix_len, float scale, str kernels, str target, int? window=None,"
    " float? softcap=None, Tensor? query_position=None, str attention='auto',"
    " Tensor? sinks=None, Tensor? k_scale=None, Tensor? v_scale=None)"
)


# --- flash attention


def _flash(
    return_state: bool,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    kernels: str,
    target: str,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    start: int = 0,
) -> Any:
    options: dict[str, Any] = {
        "scale": scale, "start": start, "window": window, "softcap": softcap, "sinks": sinks,
    }  # fmt: skip
    shape = flash_validate.validate(q, k, v, **options)
    if _runs_reference(q.device, kernels):
        return flash_reference.flash_attention(q, k, v, **options, return_state=return_state)
    validate_for_kernels(shape.d)
    size = q.element_size()
    plan = flash_tuning.schedule(shape, size, target)
    plan = tuned.improve("flash_attention", plan, shape, size, target)
    return _run_kernel(
        q.device,
        target,
        "nki_kernels.flash_attention.kernel",
        "flash_attention_kernel",
        (q, k, v, float(scale)),
        flash_tuning.kernel_options(plan, start, window, softcap, sinks)
        | {"return_state": return_state},
        shared=True,
    )


_FLASH_ARGS = (
    "(Tensor q, Tensor k, Tensor v, float scale, str kernels, str target, int? window=None,"
    " float? softcap=None, Tensor? sinks=None, int start=0)"
)


# --- the operators as torch knows them


def _fake(q: torch.Tensor, *args: Any) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _fake_state(q: torch.Tensor, *args: Any) -> State:
    statistic = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = torch.empty(q.shape[:-1], dtype=statistic, device=q.device)
    return _fake(q), rows, torch.empty_like(rows)


def _register(name: str, arguments: str, run: Callable[..., Any]) -> None:
    """Make `name` and `name`_state of `run`, with fakes that know shapes and dtypes only."""

    def output(*args: Any) -> Any:
        return run(False, *args)

    def state(*args: Any) -> Any:
        return run(True, *args)

    define = torch.library.custom_op
    plain = define(f"bifork::{name}", output, mutates_args=(), schema=f"{arguments} -> Tensor")
    plain.register_fake(_fake)
    returns = "(Tensor, Tensor, Tensor)"
    full = define(
        f"bifork::{name}_state", state, mutates_args=(), schema=f"{arguments} -> {returns}"
    )
    full.register_fake(_fake_state)


_register("bifurcated_attention", _BIFURCATED_ARGS, _bifurcated)
_register("flash_attention", _FLASH_ARGS, _flash)
