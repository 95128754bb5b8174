"""What a NeuronCore and a host must hold: weights and cache exactly, the rest by rule of thumb.

Weights are those of the network built without storage, the cache is counted by the function that
the network allocates by. Activations and workspace are estimates: the compiler decides what it
spills, and only its log says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from compile.instances import GIB, Instance
from models.causal_lm import CacheShape, CausalLM, ModelConfig
from models.causal_lm.sharding import KVSplit, kv_bytes, split_heads
from models.parallel import TensorParallel
from models.parallel.group import Ranks
from nki_kernels.errors import InputError

MICROCODE = 96 * 2**20
"""Bytes a physical core that the runtime keeps (AWS Neuron documentation, "Neuron Device Memory":
micro-code overhead)."""

INSTRUCTION = 128
"""Bytes an instruction takes on the device, its DMA descriptors included. Assumed."""

COMPILER = 4 * GIB
COMPILER_INSTRUCTION = 30_000
"""Bytes of host memory of one compile worker, and more for each instruction. Assumed; a user of NKI
kernels on trn1.32xlarge reports 30 GB and 30 minutes (github.com/aws-neuron/aws-neuron-sdk/issues,
1374), others that 32 GB did not do (1222)."""

COMPILE_MINUTES = 1.0
MINUTES_PER_MILLION = 60.0
"""Minutes of one worker for a graph, and more for a million instructions. Assumed, as above."""


@dataclass(frozen=True)
class Network:
    """A model as one core holds it.

    Attributes:
        config: with the weights' and cache's dtypes that were asked for.
        tp: ranks.
        dtype: of activations.
        kv_split: see `models.causal_lm.CausalLM`.
        kernels: "nki" or "torch".
        why: the kernels' choice.
        weights: bytes of a rank's parameters, all ranks alike.
    """

    config: ModelConfig
    tp: int
    dtype: torch.dtype
    kv_split: KVSplit
    kernels: str
    why: str
    weights: int

    @property
    def kv_itemsize(self) -> int:
        """Bytes of an element of the cache."""
        return 1 if self.config.kv_dtype == "fp8" else self.dtype.itemsize

    def kv(self, shape: CacheShape) -> int:
        """Bytes of a rank's keys and values, all layers; computed."""
        found = kv_bytes(self.config, shape, self.tp, self.kv_split, self.kv_itemsize)
        return found.context + found.suffix

    def tables(self, shape: CacheShape) -> int:
        """Bytes of the rotation's fp32 tables; computed."""
        return 4 * (shape.S_ctx + shape.S_dec) * self.config.rope.rotated(self.config.d)

    def activations(self, rows: int, keys: int, logits: int) -> int:
        """Bytes that a graph of so many query rows has in flight at its widest; estimated.

        The residual, its norm and two of attention's size, or gate and up; `logits` rows of the
        whole vocabulary in fp32, gathered. In the torch form the attention logits and weights are
        tensors too, of `keys` keys a row, in fp32.
        """
        c, heads = self.config, split_heads(self.config, self.tp, 0)
        h, g = heads.h, heads.g
        wide = max(2 * -(-c.intermediate_size // self.tp), 2 * (h + g) * c.d)
        wide = wide if not c.experts else wide + c.experts * c.hidden_size
        found = rows * (3 * c.hidden_size + wide) * self.dtype.itemsize
        if self.kernels == "torch":
            found = max(found, rows * (2 * c.hidden_size * self.dtype.itemsize + 8 * h * keys))
        return found + 8 * logits * c.vocab_size


def build(
    config: ModelConfig,
    tp: int,
    dtype: torch.dtype,
    kernels: str,
    target: str,
    kv_split: KVSplit = "positions",
) -> Network:
    """The network at `tp`, without storage.

    "auto" is "nki" wherever the kernels have what the model needs.

    Raises:
        InputError: heads cannot be split so; "nki", and the kernels do not have what it takes.
    """
    parallel = TensorParallel(Ranks(0, tp))

    def made(chosen: str) -> CausalLM:
        return CausalLM(
            config, dtype=dtype, device="meta", kernels=chosen, target=target,
            parallel=parallel, kv_split=kv_split,
        )  # fmt: skip

    why = "asked for"
    if kernels == "auto":
        try:
            model, kernels, why = made("nki"), "nki", "the kernels have what the model needs"
        except InputError as error:
            model, kernels, why = made("torch"), "torch", str(error)
    else:
        model = made(kernels)
    weights = sum(p.nbytes for p in model.parameters())
    return Network(config, tp, dtype, kv_split, kernels, why, weights)


@dataclass(frozen=True)
class CoreMemory:
    """Bytes of HBM behind one logical core.

    Attributes:
        weights, kv, tables: computed.
        activations, workspace: estimated.
        hbm: what there is.
    """

    weights: int
    kv: int
    tables: int
    activations: int
    workspace: int
    hbm: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.tables + self.activations + self.workspace

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.total <= self.hbm


def core_memory(
    network: Network, instance: Instance, shape: CacheShape, queries: int, workspace: int
) -> CoreMemory:
    """With one cache of `shape`, and prefill graphs of up to `queries` queries."""
    decode = network.activations(shape.rows, shape.S_ctx + shape.S_dec, shape.rows)
    prefill = network.activations(min(queries, shape.S_ctx), shape.S_ctx, 1)
    return CoreMemory(
        network.weights,
        network.kv(shape),
        network.tables(shape),
        max(decode, prefill),
        workspace,
        instance.hbm_per_core,
    )


def workspace(instance: Instance, instructions: int) -> int:
    """Micro-code, and so many instructions of all graphs together; estimated."""
    return instance.lnc * MICROCODE + INSTRUCTION * instructions


@dataclass(frozen=True)
class HostCost:
    """What compiling and loading ask of one host.

    Attributes:
        loading: bytes of the weights of all ranks of a host; computed.
        worker: bytes of a compile worker at the largest graph; estimated.
        workers: of them at a time, that memory and processors allow; 0 where not one fits.
        minutes: until all graphs are compiled; estimated. Infinite without a worker.
    """

    loading: int
    worker: int
    workers: int
    minutes: float


def host_cost(network: Network, instance: Instance, instructions: list[int]) -> HostCost:
    """For graphs of so many instructions each."""
    here = min(network.tp, instance.cores // instance.hosts)
    worker = COMPILER + COMPILER_INSTRUCTION * max(instructions)
    room = int(0.8 * instance.host_bytes)
    most = max(1, instance.vcpus // instance.hosts // 2)
    workers = min(room // worker, most, len(instructions))
    each = [COMPILE_MINUTES + MINUTES_PER_MILLION * n / 1e6 for n in instructions]
    minutes = max(sum(each) / workers, max(each)) if workers else math.inf
    return HostCost(here * network.weights, worker, workers, minutes)
