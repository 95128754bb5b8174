"""Random numbers of VectorE and GpSimdE.

AWS names the algorithm, XORWOW, and the size of its state: 6 words in each partition of GpSimdE, 24
of VectorE (nki.isa.rand_set_state). So each partition has here one generator (GpSimdE) or four that
take turns (VectorE), as published: G. Marsaglia, "Xorshift RNGs", Journal of Statistical Software
8(14), 2003, page 5, with the words x, y, z, w, v, d in this order. The order of words and
generators, and how a 32-bit seed becomes a state, are not documented: the same state or seed gives
the same numbers, and a stored state continues where it was stored, but the hardware's numbers are
others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.checks import SBUF_ONLY
from nki_sim.dtypes import BOOL, float32, uint32
from nki_sim.enums import engine as Engine
from nki_sim.machine import Core, current, instruction, sequenced
from nki_sim.memory import PSUM
from nki_sim.numerics import F32, as_shape, column, read32
from nki_sim.targets import PARTITIONS
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

engine = Engine


_WORDS = 6  # of one generator
_GENERATORS = {"gpsimd": 1, "vector": 4}  # of one partition
_WEYL = np.uint32(362437)
_ONE, _TWO, _FOUR, _EIGHT = (
    np.array(n, np.uint32) for n in (1, 2, 4, 8)
)  # a Python int costs a conversion


def _states(core: Core, name: str) -> np.ndarray:
    """The generators of an engine, uint32 [word, partition, generator]; unseeded, a fixed state."""
    states: np.ndarray | None = core.random.get(name)
    if states is None:
        states = core.random[name] = _seeded(core.id, name)
    return states


def _seeded(seed: int, name: str) -> np.ndarray:
    """One state per generator from one 32-bit seed: a mixed counter (MurmurHash3's finaliser)."""
    shape = (_WORDS, PARTITIONS, _GENERATORS[name])
    x = np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint32) * np.uint32(0x9E3779B9)
    x += np.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    return x.reshape(shape)


def _draw(core: Core, name: str, t: NkiTensor) -> np.ndarray:
    """32 random bits for each element of a tile, uint32 in its shape; the generators advance."""
    first = t.start_partition
    used = _states(core, name)[:, first : first + t.shape[0]]  # [word, P, generator]
    steps = -(-t.free // used.shape[2])
    history = np.empty((5 + steps, *used.shape[1:]), np.uint32)  # x, y, z, w, v, and each next v
    history[:5] = used[:5]
    for start in range(0, steps, 5):
        turn = history[start : start + 5]  # the x of five steps, all known
        turn = turn ^ (turn >> _TWO)
        turn ^= turn << _ONE
        for step in range(start, min(start + 5, steps)):
            v = history[step + 4]
            np.bitwise_xor(v ^ (v << _FOUR), turn[step - start], out=history[step + 5])
    counts = used[5] + _WEYL * np.arange(1, steps + 1, dtype=np.uint32)[:, None, None]
    used[:5], used[5] = history[-5:], counts[-1]
    drawn = (history[5:] + counts).transpose(1, 0, 2).reshape(t.shape[0], -1)[:, : t.free]
    return drawn.reshape(t.shape)


@instruction
def rng(dst: NkiTensor, engine: Engine = Engine.vector, name: str | None = None) -> NkiInstruction:
    """32 random bits per element, the low ones kept; integer tiles. GpSimd from gen3 on."""
    core = current()
    checks.member(engine, Engine, "engine")
    if engine not in (Engine.vector, Engine.gpsimd) or (
        engine is Engine.gpsimd and core.version < 3
    ):
        rules.broken(rules.ENGINE, "engine", engine.name, f"rng on {core.target.generation}")
    checks.tile(dst, "dst")
    if engine is Engine.gpsimd and dst.buffer is PSUM:
        rules.broken(rules.OPERAND_SPACE, "dst", "psum", "gpsimd cannot access PSUM")
    if not dst.dtype.is_int or dst.dtype.kind == BOOL:
        rules.broken(rules.DTYPE, "dst", dst.dtype, "an integer dtype")
    made = core.issue(engine.name, "rng", (("dst", dst),), (), dst.free, name)
    bits = _draw(core, engine.name, dst)
    dst.values[...] = bits.astype(f"u{dst.dtype.itemsize}").view(dst.dtype.numpy)
    return made


@instruction
def dropout(dst: NkiTensor, data: NkiTensor, prob: Any, name: str | None = None) -> NkiInstruction:
    """Replace each element by zero with probability ``prob``; nothing is rescaled."""
    core = current()
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    checks.same_layout(dst, "dst", data, "data")
    if dst.dtype is not data.dtype:
        rules.broken(rules.DTYPE, "dst", dst.dtype, f"data is {data.dtype}")
    reads: tuple[tuple[str, NkiTensor], ...] = (("data", data),)
    limit: Any
    if isinstance(prob, NkiTensor):
        checks.column(prob, "prob", data)
        if not prob.dtype.is_float or (data.dtype.is_int and prob.dtype is not float32):
            rules.broken(rules.DTYPE, "prob", prob.dtype)
        reads = (*reads, ("prob", prob))
        share = np.clip(column(read32(prob), data.ndim), 0, 1)
        limit = np.ceil(share * F32(2**24)).astype(np.uint32)
    else:
        limit = np.array(math.ceil(min(max(float(prob), 0.0), 1.0) * 2**24), np.uint32)
    made = core.issue("vector", "dropout", (("dst", dst),), reads, data.free, name)
    dropped = _draw(core, "vector", data) >> _EIGHT < limit  # 24 bits, exact in float32
    out = dst.values
    out[...] = as_shape(data.values, dst.shape)
    np.copyto(out, out.dtype.type(0), where=as_shape(dropped, dst.shape))
    return made


@sequenced
def set_rng_seed(src_seeds: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Seed VectorE's generator with a 32-bit value from a [1, 1] tile."""
    core = current()
    checks.tile(src_seeds, "src_seeds")
    if src_seeds.size != 1 or src_seeds.dtype.itemsize != 4:
        rules.broken(rules.SEED, "src_seeds", f"{src_seeds.shape} {src_seeds.dtype}")
    made = core.issue("vector", "set_rng_seed", (), (("src_seeds", src_seeds),), 1, name)
    seed = int(src_seeds.values.copy().view(np.uint32).reshape(-1)[0])
    core.random["vector"] = _seeded(seed, "vector")
    return made


@sequenced
def rand_set_state(
    src_seeds: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Load the generator's state, uint32 words in each partition, gen3 and newer."""
    core = current()
    _check_state(src_seeds, "src_seeds", engine, core)
    made = core.issue(engine.name, "rand_set_state", (), (("src_seeds", src_seeds),), 1, name)
    words = src_seeds.values.reshape(src_seeds.shape[0], -1, _WORDS)
    _lanes(core, engine, src_seeds)[...] = words.transpose(2, 0, 1)
    return made


@sequenced
def rand_get_state(
    dst: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Store the generators' state as ``rand_set_state`` takes it: loaded again, it continues."""
    core = current()
    _check_state(dst, "dst", engine, core)
    made = core.issue(engine.name, "rand_get_state", (("dst", dst),), (), dst.free, name)
    dst.values[...] = _lanes(core, engine, dst).transpose(1, 2, 0).reshape(dst.shape)
    return made


def _lanes(core: Core, engine: Engine, t: NkiTensor) -> np.ndarray:
    """The generators of the partitions that a tile of states spans."""
    return _states(core, engine.name)[:, t.start_partition : t.start_partition + t.shape[0]]


def _check_state(t: NkiTensor, operand: str, engine: Engine, core: Core) -> None:
    checks.member(engine, Engine, "engine")
    if core.version < 3:
        rules.broken(rules.AVAILABILITY, "random state", core.target.generation, "needs gen3")
    if engine is not Engine.gpsimd and (engine is not Engine.vector or core.version < 4):
        rules.broken(rules.ENGINE, "engine", engine.name, core.target.generation)
    checks.tile(t, operand, SBUF_ONLY)
    words = _GENERATORS[engine.name] * _WORDS
    if t.dtype is not uint32 or t.free != words:
        rules.broken(rules.SEED, operand, f"{t.shape} {t.dtype}", f"{words} words per partition")
