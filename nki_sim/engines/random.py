"""Random numbers of VectorE and GpSimdE.

AWS documents what the instructions do, not the bits they give (the names of the states point at
XORWOW). Here each engine of a core has a NumPy generator: the same seed gives the same numbers,
other numbers than the hardware's.
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
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

engine = Engine


def _generator(core: Core, name: str) -> np.random.Generator:
    """The engine's generator; unseeded it starts from a fixed state, as a simulation should."""
    if name not in core.random:
        core.random[name] = np.random.Generator(np.random.Philox(core.id))
    generator: np.random.Generator = core.random[name]
    return generator


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
    bits = _generator(core, engine.name).integers(0, 1 << 32, dst.shape, np.uint32)
    dst.values[...] = bits.astype(f"u{dst.dtype.itemsize}").view(dst.dtype.numpy)
    return made


@instruction
def dropout(dst: NkiTensor, data: NkiTensor, prob: Any, name: str | None = None) -> NkiInstruction:
    """``data`` with each element replaced by zero with probability ``prob``; nothing is
    rescaled."""
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
    drawn = _generator(core, "vector").random(data.shape, dtype=F32)
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
    core.random["vector"] = np.random.Generator(np.random.Philox(seed))
    return made


@sequenced
def rand_set_state(
    src_seeds: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Load the generator's state, uint32 words in each partition, gen3 and newer."""
    core = current()
    _check_state(src_seeds, "src_seeds", engine, core)
    made = core.issue(engine.name, "rand_set_state", (), (("src_seeds", src_seeds),), 1, name)
    words = src_seeds.values.reshape(-1)
    core.random[engine.name] = np.random.Generator(
        np.random.Philox(np.random.SeedSequence(words.tolist()))
    )
    core.random[f"{engine.name} state"] = src_seeds.values.copy()
    return made


@sequenced
def rand_get_state(
    dst: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Store the generator's state as ``rand_set_state`` takes it.

    Raises:
        NotImplementedError: where numbers were drawn since the state was set, or it never was: the
            words of the hardware's generator are not simulated.
    """
    core = current()
    _check_state(dst, "dst", engine, core)
    state = core.random.get(f"{engine.name} state")
    generator = core.random.get(engine.name)
    untouched = False
    if generator is not None and state is not None and state.shape == dst.shape:
        fresh = np.random.Philox(np.random.SeedSequence(state.reshape(-1).tolist())).state
        untouched = str(generator.bit_generator.state) == str(fresh)
    if not untouched:
        raise NotImplementedError("rand_get_state after drawing numbers (hardware generator state)")
    made = core.issue(engine.name, "rand_get_state", (("dst", dst),), (), dst.free, name)
    dst.values[...] = state
    return made


def _check_state(t: NkiTensor, operand: str, engine: Engine, core: Core) -> None:
    checks.member(engine, Engine, "engine")
    if core.version < 3:
        rules.broken(rules.AVAILABILITY, "random state", core.target.generation, "needs gen3")
    if engine is not Engine.gpsimd and (engine is not Engine.vector or core.version < 4):
        rules.broken(rules.ENGINE, "engine", engine.name, core.target.generation)
    checks.tile(t, operand, SBUF_ONLY)
    words = 6 if engine is Engine.gpsimd else 24
    if t.dtype is not uint32 or t.free != words:
        rules.broken(rules.SEED, operand, f"{t.shape} {t.dtype}", f"{words} words per partition")
