"""What would be compiled for a model on an instance, whether it fits, and what to do if not.

Nothing here needs the Neuron SDK or a weight: a config is enough. Each figure is *computed* (by the
functions that allocate, or on a recorded kernel), *predicted* (grown from recorded calls) or
*estimated* (by a rule of thumb), and the plan says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from compile import instructions, memory
from compile.instances import Instance, check_runtime, find_instance, known
from compile.instructions import Count
from compile.memory import CoreMemory, HostCost, Network
from models.causal_lm import CacheShape, ModelConfig
from models.causal_lm.attention import CHUNK, WHOLE
from models.causal_lm.sharding import KVSplit, check_degree, legal_degrees, split_heads
from models.generation.single import AttentionWay, plan_shape
from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.errors import require
from nki_kernels.ordinary_attention.switch import decode_path

MANY = 1_000_000
"""Instructions above which a graph is warned of. The compiler has a limit (error NCC_EVRF007 of
AWS's list), which AWS's page does not state; this number is ours."""

MOST_SAMPLES = 1 << 16
"""Where the search for the largest b ends."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        instance: its name.
        tp: ranks.
        dtype: of weights, activations and cache, where they are not quantised.
        contexts: buckets of prompt tokens, ascending.
        samples: buckets of b, ascending.
        max_new_tokens: tokens an answer has at most.
        attention: "auto", "bifurcated" or "ordinary".
        kernels: "auto", "nki" or "torch".
        kv_split: see `models.causal_lm.CausalLM`.
        largest: prompt tokens and samples of the largest request, which the buckets must cover.
    """

    instance: str
    tp: int
    dtype: torch.dtype
    contexts: tuple[int, ...]
    samples: tuple[int, ...]
    max_new_tokens: int = 128
    attention: AttentionWay = "auto"
    kernels: str = "auto"
    kv_split: KVSplit = "positions"
    largest: tuple[int, int] | None = None


@dataclass(frozen=True)
class Graph:
    """One graph.

    Attributes:
        name: unique, without dots, as ModelBuilder v2 wants its tags.
        phase: "prefill" or "decode".
        queries: tokens it is given, of a prompt or one for each sample.
        shape: of a decode graph's cache, else None.
        why: it is there.
        attention: the form of attention.
        count: its instructions on one core.
    """

    name: str
    phase: str
    queries: int
    shape: CacheShape | None
    why: str
    attention: str
    count: Count


@dataclass(frozen=True)
class Largest:
    """The most that fits, of one way of decoding.

    Attributes:
        way: "bifurcated" or "ordinary".
        samples: the largest b for each context bucket, at most `MOST_SAMPLES`; 0 where none fits.
        context: the largest m_c for each bucket of samples; 0 where not one position fits.
        kv: bytes a core of the largest buckets' cache.
    """

    way: str
    samples: dict[int, int]
    context: dict[int, int]
    kv: int


@dataclass(frozen=True)
class Plan:
    """The answer to a `Request`.

    Attributes:
        request, config, instance: what it is for.
        network: as one core holds it.
        graphs: prefill first.
        cache: the largest shape, which the memory is counted for.
        core: memory of a core.
        host: of a host.
        largest: bifurcated and ordinary.
        warnings: that something will be slow, or is not there yet.
        suggestions: changes after which it fits, where it does not; each was tried.
    """

    request: Request
    config: ModelConfig
    instance: Instance
    network: Network
    graphs: tuple[Graph, ...]
    cache: CacheShape
    core: CoreMemory
    host: HostCost
    largest: tuple[Largest, ...]
    warnings: tuple[str, ...]
    suggestions: tuple[str, ...]


def make_plan(config: ModelConfig, request: Request) -> Plan:
    """Plans `request` for a model of `config`.

    Raises:
        InputError: an unknown instance; a degree that heads, cores or runtime do not allow; buckets
            that are not ascending, reach beyond the model or do not cover `largest`.
    """
    instance = find_instance(request.instance)
    check_runtime(instance, request.tp)
    check_degree(config, request.tp)
    check_buckets(config, request)
    network = memory.build(
        config, request.tp, request.dtype, request.kernels, instance.target, request.kv_split
    )
    graphs = (
        *_prefill_graphs(network, instance, request),
        *_decode_graphs(network, instance, request),
    )
    space = memory.workspace(instance, sum(g.count.total for g in graphs))
    queries = max(g.queries for g in graphs if g.phase == "prefill")
    cache = _largest_shape(request, request.attention)
    core = memory.core_memory(network, instance, cache, queries, space)
    fits = _Fitting(network, instance, request, queries, space)
    host = memory.host_cost(network, instance, [g.count.total for g in graphs])
    return Plan(
        request, config, instance, network, graphs, cache, core, host,
        largest=(fits.largest("bifurcated"), fits.largest("ordinary")),
        warnings=tuple(_warnings(network, instance, graphs, host)),
        suggestions=() if core.fits else tuple(fits.suggestions(config)),
    )  # fmt: skip


def check_buckets(config: ModelConfig, request: Request) -> None:
    """Refuses buckets that make no sense, or that the request is not in; see `make_plan`."""
    for name, buckets in (("context", request.contexts), ("samples", request.samples)):
        ascending = all(a < b for a, b in pairwise(buckets))
        shown = ",".join(map(str, buckets))
        require(
            bool(buckets) and buckets[0] >= 1 and ascending,
            f"{name} buckets are {shown or 'none'}; they must be positive and ascending",
        )
    new = request.max_new_tokens
    require(new >= 1, f"max_new_tokens is {new}; it must be at least 1")
    longest = request.contexts[-1] + new
    require(
        longest <= config.max_position,
        f"context {request.contexts[-1]} and {new} new tokens are {longest} positions; the model "
        f"has {config.max_position}",
    )
    if request.largest is not None:
        for name, asked, buckets in (
            ("prompt tokens", request.largest[0], request.contexts),
            ("samples", request.largest[1], request.samples),
        ):
            require(
                1 <= asked <= buckets[-1],
                f"the request has {asked} {name}; the buckets cover 1 to {buckets[-1]}",
            )


def _largest_shape(request: Request, attention: AttentionWay) -> CacheShape:
    return plan_shape(request.contexts[-1], request.samples[-1], request.max_new_tokens, attention)


def _prefill_graphs(network: Network, instance: Instance, request: Request) -> list[Graph]:
    """One for each context; the network cuts a long one into chunks inside its graph."""
    heads = split_heads(network.config, request.tp, 0)
    graphs = []
    for S in request.contexts:
        why = f"a prompt of up to {S} tokens, "
        why += "whole" if S <= WHOLE else f"attention in chunks of {CHUNK} queries"
        count = instructions.prefill(
            network.config, heads, request.tp, S, instance.target,
            request.dtype.itemsize, network.kernels == "nki",
        )  # fmt: skip
        graphs.append(Graph(f"prefill_{S}", "prefill", S, None, why, "causal", count))
    return graphs


def _decode_graphs(network: Network, instance: Instance, request: Request) -> list[Graph]:
    config, tp = network.config, request.tp
    heads = split_heads(config, tp, 0)
    parts = heads.replicas if request.kv_split == "positions" else 1
    seen = replace(heads, h=heads.h * parts)  # queries of all replicas meet the keys that are here
    graphs = []
    for S_ctx in request.contexts:
        for b in request.samples:
            shape = plan_shape(S_ctx, b, request.max_new_tokens, request.attention)
            held = replace(shape, S_ctx=-(-S_ctx // parts))
            call = Shape(
                G=shape.G, r=shape.r, n=1, h=seen.h, g=seen.g, d=config.d,
                S_ctx=held.S_ctx, S_dec=held.S_dec,
            )  # fmt: skip
            layout = "bifurcated" if shape.G == 1 and b > 1 else "ordinary"
            if network.kernels == "nki":
                choice = decode_path(
                    call, request.dtype.itemsize, instance.target, request.attention,
                    config.decode_features(0),
                )  # fmt: skip
                path, why = choice.path, f"{choice.path} kernel: {choice.reason}"
            else:
                path, why = layout, f"torch form: {network.why}"
            count = instructions.decode(
                config, seen, tp, held, path, instance.target, request.dtype.itemsize,
                network.kernels == "nki",
            )  # fmt: skip
            graphs.append(
                Graph(
                    f"decode_{shape.G}x{shape.r}_{S_ctx}_{shape.S_dec}",
                    "decode",
                    shape.rows,
                    shape,
                    f"{b} samples of a prompt of up to {S_ctx}; {why}",
                    path,
                    count,
                )
            )
    return graphs


def _warnings(
    network: Network, instance: Instance, graphs: Sequence[Graph], host: HostCost
) -> list[str]:
    found = [
        f"{g.name} has about {g.count.total:,} instructions, above {MANY:,}: the compiler may "
        "refuse it (NCC_EVRF007) or take hours; raise tp or shorten the context bucket"
        for g in graphs
        if g.count.total > MANY
    ]
    heads = split_heads(network.config, network.tp, 0)
    computed, own = heads.h * network.tp, network.config.h
    if computed > own:
        found.append(
            f"tp {network.tp} does not divide the {own} query heads: {computed} are computed, of "
            f"which {computed - own} are zeros"
        )
    if host.workers == 0:
        found.append(
            f"a compile worker is estimated at {_gib(host.worker)}, and a host of {instance.name} "
            f"has {_gib(instance.host_bytes)}: compile on a larger one"
        )
    if host.loading > instance.host_bytes:
        found.append(
            f"the weights of a host's ranks are {_gib(host.loading)}, its memory is "
            f"{_gib(instance.host_bytes)}: ranks must be loaded one after the other"
        )
    return found


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


@dataclass(frozen=True)
class _Fitting:
    """Searches for what fits, with the graphs' workspace as it is."""

    network: Network
    instance: Instance
    request: Request
    queries: int
    space: int

    def fits(self, m_c: int, b: int, way: AttentionWay) -> bool:
        shape = plan_shape(m_c, b, self.request.max_new_tokens, way)
        return memory.core_memory(self.network, self.instance, shape, self.queries, self.space).fits

    def largest(self, way: AttentionWay) -> Largest:
        positions = self.network.config.max_position - self.request.max_new_tokens
        return Largest(
            way,
            {
                S: _search(lambda b, S=S: self.fits(S, b, way), MOST_SAMPLES)  # type: ignore[misc]
                for S in self.request.contexts
            },
            {
                b: _search(lambda m_c, b=b: self.fits(m_c, b, way), positions)  # type: ignore[misc]
                for b in self.request.samples
            },
            self.network.kv(_largest_shape(self.request, way)),
        )

    def suggestions(self, config: ModelConfig) -> list[str]:
        """Changes that make the largest buckets fit; each alone, and each tried."""
        r, net = self.request, self.network
        m_c, b, way = r.contexts[-1], r.samples[-1], r.attention

        def works(network: Network, instance: Instance, attention: AttentionWay = way) -> bool:
            cores = instance.lnc - self.instance.lnc
            space = self.space + cores * memory.MICROCODE
            other = replace(self, network=network, instance=instance, space=space)
            return other.fits(m_c, b, attention)

        def built(changed: ModelConfig, tp: int, instance: Instance) -> Network:
            return memory.build(changed, tp, r.dtype, "torch", instance.target, r.kv_split)

        found = []
        if way == "ordinary" and works(net, self.instance, "bifurcated"):
            found.append("--attention bifurcated: the context is stored once, not once a sample")
        legal = set(legal_degrees(config))
        for tp in sorted(legal & set(self.instance.degrees)):
            if tp > r.tp and works(
                replace(built(config, tp, self.instance), kernels=net.kernels), self.instance
            ):
                found.append(f"--tp {tp}")
                break
        if config.weights == "float":
            changed = replace(built(replace(config, weights="int8"), r.tp, self.instance),
                              kernels=net.kernels)  # fmt: skip
            if works(changed, self.instance):
                found.append("--weights int8")
        if config.kv_dtype == "model":
            changed = built(replace(config, kv_dtype="fp8"), r.tp, self.instance)
            if works(changed, self.instance):
                found.append("--kv-dtype fp8")
        samples = _search(lambda n: self.fits(m_c, n, way), b)
        if samples:
            found.append(f"--samples up to {samples} at context {m_c}")
        context = _search(lambda m: self.fits(m, b, way), m_c)
        if context:
            found.append(f"--context up to {context} with {b} samples")
        for name in known():
            other = find_instance(name)
            degrees = [tp for tp in other.degrees if tp in legal and tp >= r.tp]
            for tp in degrees if other.cores > self.instance.cores else ():
                if works(replace(built(config, tp, other), kernels=net.kernels), other):
                    found.append(f"--instance {name} --tp {tp}")
                    return found
        return found or ["nothing tried makes it fit: a smaller model or fewer bytes an element"]


def _search(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 where none does; what fits, fits smaller too."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
