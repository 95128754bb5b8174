"""How fast attention could be on a NeuronCore: a frozen bound that no kernel's record enters.

Two lines, both the largest of what single resources need, with everything else free and overlapped.

Line 1: bytes that must move once at the core's asymptotic DMA rate; TensorE cycles of the two
products; exponentials at ScalarE's rate. Line 2: the same with one pass for the maximum over the
logits on VectorE and, on gen2, the PSUM port that VectorE and ScalarE share
(trainium_inferentia2_arch.rst). Kernels are judged by line 2. An exact method that needs no maximum
may beat it.

Live lengths count, not padded ones. A product of a [K, M] and a [K, N] tile takes max(64, N) cycles
with K, M <= 128 and N <= 512, four times that in fp32; of the two operands that which makes it
cheaper stays. Rates are the nominal constants of nki_sim.timeline.
"""

from __future__ import annotations

from dataclasses import dataclass

from nki_kernels.errors import require

PARTITIONS = 128
MOVING = 512
LEAST_CYCLES = 64

HBM_SHARE = {"gen2": 410.0, "gen3": 375.0, "gen4": 587.5}
"""GB/s of HBM a core when all cores of a chip read: 820/2, 3,000/8 and 4,700/8 (AWS's architecture
guides, trainium_inferentia2_arch.rst, trainium2_arch.rst, trainium3_arch.rst)."""


@dataclass(frozen=True)
class Decode:
    """One decode step of bifurcated attention on one core.

    G prompts of r samples each (b = G·r), n tokens a step, h query heads over g kv heads of size d;
    m_c live context keys a prompt, m_d live suffix keys a sample, this step's included.
    A number has `element_bytes`, one of `narrow` caches a single one.
    """

    G: int
    r: int
    n: int
    h: int
    g: int
    d: int
    m_c: int
    m_d: int
    element_bytes: int = 2
    narrow: bool = False


@dataclass(frozen=True)
class Prefill:
    """Causal attention of B prompts of S positions each, after ``prior`` stored keys."""

    B: int
    S: int
    h: int
    g: int
    d: int
    prior: int = 0
    element_bytes: int = 2


@dataclass(frozen=True)
class SpeedOfLight:
    """us that each resource needs, and the two lines.

    Attributes:
        without_max_us, without_max: line 1 and the resource that sets it.
        us, resource: line 2, by which kernels are judged, and the resource that sets it.
        resources: us by resource: "dma", "tensor", "scalar", "vector", on gen2 "psum port".
        nbytes: bytes that must move.
    """

    without_max_us: float
    without_max: str
    us: float
    resource: str
    resources: dict[str, float]
    nbytes: int


def speed_of_light(shape: Decode | Prefill, target: str, all_cores: bool = False) -> SpeedOfLight:
    """The bound of one call on one core of ``target``.

    Args:
        shape: live sizes of the call.
        target: trn1, inf2, gen2, trn2, gen3, trn3 or gen4.
        all_cores: whether every core of the chip reads HBM at the same time.

    Raises:
        InputError: where a size is not positive or h is no multiple of g.
        ValueError: for an unknown target.
    """
    from nki_sim.targets import get_target
    from nki_sim.timeline.constants import timing

    generation = get_target(target).generation
    t = timing(generation)
    _check(shape)
    if isinstance(shape, Decode):
        nbytes, cycles, logits = _decode(shape)
    else:
        nbytes, cycles, logits = _prefill(shape)
    rate = t.dma_core_bytes_per_ns
    if all_cores:
        rate = min(rate, HBM_SHARE[generation])
    passes = 4 if shape.element_bytes == 4 else 1
    lanes = logits / PARTITIONS
    resources = {
        "dma": nbytes / rate / 1000,
        "tensor": cycles * passes / t.tensor_ghz / 1000,
        "scalar": lanes / t.scalar_ghz / 1000,
    }
    without = max(resources, key=lambda name: resources[name])
    without_us = resources[without]
    resources["vector"] = lanes / t.vector_ghz / 1000
    if generation == "gen2":
        resources["psum port"] = resources["vector"] + resources["scalar"]
    line = max(resources, key=lambda name: resources[name])
    return SpeedOfLight(without_us, without, resources[line], line, resources, nbytes)


def _check(shape: Decode | Prefill) -> None:
    for name, value in vars(shape).items():
        least = 0 if name in ("m_c", "m_d", "prior", "narrow") else 1
        require(value >= least, f"{name} must be at least {least}, got {value}")
    require(shape.h % shape.g == 0, f"h = {shape.h} heads, no multiple of g = {shape.g}")


def _decode(s: Decode) -> tuple[int, float, float]:
    """(bytes, TensorE cycles, logits) of a decode step."""
    p = s.h // s.g
    b = s.G * s.r
    keys = s.G * s.m_c + b * s.m_d
    nbytes = 2 * s.g * s.d * keys * (1 if s.narrow else s.element_bytes)
    nbytes += 2 * b * s.n * s.h * s.d * s.element_bytes  # queries in, outputs out
    context = _products(s.r * p * s.n, s.m_c, s.d)
    suffix = _products(p * s.n, s.m_d, s.d)
    cycles = s.g * (s.G * context + b * suffix)
    logits = float(b * s.n * s.h * s.m_c)
    if s.m_d:
        logits += s.h * b * _causal(s.n, s.m_d - s.n)
    return nbytes, cycles, logits


def _prefill(s: Prefill) -> tuple[int, float, float]:
    """(bytes, TensorE cycles, logits) of a prefill: tiles above the diagonal cost nothing."""
    keys = s.prior + s.S
    nbytes = 2 * s.B * (s.g * keys + s.h * s.S) * s.d * s.element_bytes
    cycles = 0.0
    for first in range(0, s.S, PARTITIONS):
        rows = min(PARTITIONS, s.S - first)
        cycles += _products(rows, s.prior + first + rows, s.d)
    logits = float(s.B * s.h * _causal(s.S, s.prior))
    return nbytes, s.B * s.h * cycles, logits


def _causal(n: int, prior: int) -> float:
    """Logits of n queries that see ``prior`` keys and each other causally."""
    return n * max(0, prior) + n * (n + 1) / 2


def _products(rows: int, keys: int, d: int) -> float:
    """Cycles of logits [rows, keys] over d, and of their product with values [keys, d]."""
    if not keys:
        return 0.0
    return _matmul(rows, keys, d) + _matmul(rows, d, keys)


def _matmul(m: int, n: int, k: int) -> float:
    """Cycles of an [m, k] by [k, n] product: either side may be the one that moves."""
    depth = -(-k // PARTITIONS)
    return depth * min(_moving(m, n), _moving(n, m))


def _moving(stationary: int, moving: int) -> float:
    full, rest = divmod(moving, MOVING)
    cycles = full * MOVING + (max(LEAST_CYCLES, rest) if rest else 0)
    return float(-(-stationary // PARTITIONS) * cycles)
