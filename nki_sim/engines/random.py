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

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.checks import SBUF_ONLY
from nki_sim.dtypes import BOOL, float32, uint32
from nki_sim.enums import engine as Engine
from nki_sim.machine import Core, current, instruction, sequenced
from nki_sim.memory import PSUM
from nki_sim.numerics import F32, column, read32
from nki_sim.targets import PARTITIONS
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

engine = Engine


_WORDS = 6  # of one generator
_GENERATORS = {"gpsimd": 1, "vector": 4}  # of one partition
_WEYL = np.uint32(362437)


def _states(core: Core, name: str) -> np.ndarray:
    """The generators of an engine, uint32 [partition, generator, word]; unseeded, a fixed state."""
    states: np.ndarray | None = core.random.get(name)
    if states is None:
        states = core.random[name] = _seeded(core.id, name)
    return states


def _seeded(seed: int, name: str) -> np.ndarray:
    """One state per generator from one 32-bit seed."""
    shape = (PARTITIONS, _GENERATORS[name], _WORDS)
    return np.random.SeedSequence(seed).generate_state(int(np.prod(shape))).reshape(shape)


def _draw(core: Core, name: str, t: NkiTensor) -> np.ndarray:
    """32 random bits for each element of a tile, uint32 in its shape; the generators advance."""
    start = t.start_partition
    used = _states(core, name)[start : start + t.shape[0]]  # [P, generators, words]
    x, y, z, w, v, d = (used[:, :, k].copy() for k in range(_WORDS))
    steps = -(-t.free // used.shape[1])
    out = np.empty((steps, *x.shape), np.uint32)
    for step in range(steps):
        turn = x ^ (x >> 2)
        x, y, z, w = y, z, w, v
        v = (v ^ (v << 4)) ^ (turn ^ (turn << 1))
        d = d + _WEYL
        out[step] = d + v
    used[...] = np.stack([x, y, z, w, v, d], axis=2)
    flat = out.transpose(1, 0, 2).reshape(t.shape[0], -1)[:, : t.free]
    return flat.reshape(t.shape)


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
        limit = column(read32(prob), data.ndim)
    else:
        limit = F32(prob)
    made = core.issue("vector", "dropout", (("dst", dst),), reads, data.free, name)
    drawn = (_draw(core, "vector", data) >> 8).astype(F32) * F32(2.0**-24)  # in [0, 1)
    values = np.where(drawn < limit, data.dtype.numpy.type(0), data.values)
    dst.values[...] = values.reshape(dst.shape)
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
    _lanes(core, engine, src_seeds)[...] = src_seeds.values.reshape(src_seeds.shape[0], -1, _WORDS)
    return made


@sequenced
def rand_get_state(
    dst: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Store the generators' state as ``rand_set_state`` takes it: loaded again, it continues."""
    core = current()
    _check_state(dst, "dst", engine, core)
    made = core.issue(engine.name, "rand_get_state", (("dst", dst),), (), dst.free, name)
    dst.values[...] = _lanes(core, engine, dst).reshape(dst.shape)
    return made


def _lanes(core: Core, engine: Engine, t: NkiTensor) -> np.ndarray:
    """The generators of the partitions that a tile of states spans."""
    return _states(core, engine.name)[t.start_partition : t.start_partition + t.shape[0]]


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
