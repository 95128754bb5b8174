"""What each graph tells neuronx-cc: flags as data, each with its reason and its source.

neuronx-distributed adds `--auto-cast=none`, `-O1` and `--verbose=35` where a string lacks them, and
`--model-type=transformer` only where there is no string at all, so a string names all of them
(`append_default_compiler_flags`, neuronx_distributed/trace/functions.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from nki_kernels.errors import InputError

_CLI = (
    "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/neuronx-cc/"
    "api-reference-guide/index.html"
)
_NXD = "https://github.com/aws-neuron/neuronx-distributed/blob/main/src/neuronx_distributed/"
_ERRORS = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/error-codes/"

TARGETS = ("trn1", "inf2", "trn2")
"""What `--target` may name, of the cores planned for here (trn1n has those of trn1)."""


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        text: as it stands on the command line.
        why: it is there.
        source: who says so.
    """

    text: str
    why: str
    source: str


MODEL_TYPE = Flag("--model-type=transformer", "optimisations for transformers", _CLI)
AUTO_CAST = Flag(
    "--auto-cast=none", "fp32 stays fp32: softmax states and the draw rely on it", _CLI
)
SATURATE = Flag(
    "--enable-saturate-infinity",
    "the compiler's own transposes by matrix product make NaN of infinities; needed on trn1 only, "
    "accepted elsewhere",
    _CLI,
)
OPTIMISE = {
    "prefill": Flag(
        "-O1",
        "long prompts unroll to many instructions, and -O1 compiles them faster; what "
        "neuronx-distributed takes by itself",
        _NXD + "trace/functions.py",
    ),
    "decode": Flag("-O2", "runs once a token, so its speed is worth compile time", _CLI),
}
FP8 = Flag(
    "--internal-hlo2tensorizer-options='--experimental-unsafe-fp8e4m3fn-as-fp8e4m3'",
    "cores before trn3 know float8_e4m3 and not float8_e4m3fn; values here stay within ±240, where "
    "the two agree",
    _ERRORS + "EVRF051.html",
)


def target_flag(target: str) -> Flag:
    """The core generation, named so that a host without Neuron devices can compile."""
    return Flag(f"--target={target}", "the cores that the graph is for", _CLI)


def lnc_flag(lnc: int) -> Flag:
    """How many physical cores a logical one is."""
    return Flag(f"--lnc={lnc}", "physical cores of a logical one; trn2 alone knows it", _CLI)


def flags(phase: str, target: str, lnc: int = 1, fp8: bool = False) -> tuple[Flag, ...]:
    """The flags of a graph.

    Args:
        phase: "prefill" or "decode".
        target: core generation, one of `TARGETS`.
        lnc: physical cores of a logical one; above 1 on trn2 only.
        fp8: whether weights or cache are float8_e4m3fn.

    Raises:
        InputError: a phase, target or lnc that is not documented.
    """
    if phase not in OPTIMISE:
        raise InputError(f"phase is {phase!r}; it must be {' or '.join(OPTIMISE)}")
    if target not in TARGETS:
        raise InputError(
            f"target is {target!r}; neuronx-cc documents {', '.join(TARGETS)} for --target ({_CLI})"
        )
    if lnc not in (1, 2) or (lnc == 2 and target != "trn2"):
        raise InputError(f"lnc is {lnc}; {target} has {'1 or 2' if target == 'trn2' else '1'}")
    found = [MODEL_TYPE, AUTO_CAST, SATURATE, OPTIMISE[phase], target_flag(target)]
    if target == "trn2":
        found.append(lnc_flag(lnc))
    if fp8:
        found.append(FP8)
    return tuple(found)


def flag_text(phase: str, target: str, lnc: int = 1, fp8: bool = False) -> str:
    """`flags` as one command line."""
    return " ".join(flag.text for flag in flags(phase, target, lnc, fp8))
