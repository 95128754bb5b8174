"""Failures of compiler and runtime, by lines of AWS's documentation and of public issues."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compile import known_failures
from compile.failures import NeuronFailure, explain, read_log, whole_message
from scripts import planning

pytestmark = pytest.mark.null

SDK = "aws-neuron/aws-neuron-sdk"
SAMPLES = "aws-neuron/aws-neuron-samples"

# (line, words of the cause, where the line was published)
LINES = [
    (
        "2023-12-26T08:37:54Z USER 26191 [neuronxcc.driver.CommandDriver]: [F137] neuronx-cc was "
        "forcibly killed - This most commonly occurs due to insufficient system memory.",
        "killed",
        f"{SAMPLES} issue 64",
    ),
    (
        "2023-12-26T08:37:54Z INFO 26191 [root]: Subcommand returned with exitcode=-9",
        "exit -9",
        f"{SAMPLES} issue 64",
    ),
    ("RuntimeError: neuronx-cc failed with -9", "exit -9", f"{SDK} issue 706"),
    ("INFO:Neuron:Compile command returned: -9", "exit -9", f"{SDK} issue 431"),
    (
        "OSError: [Errno 28] No space left on device: 'graph.neff'",
        "disk is full",
        "errno(3)",
    ),
    (
        "ValueError: Message torch_neuronx.pyhlo.HloModuleProto exceeds maximum protobuf size of "
        "2GB: 2416960823",
        "2 GiB",
        f"{SDK} issue 987",
    ),
    (
        "neuronxcc/starfish/bin/walrus_driver: error while loading shared libraries: libxml2.so.2: "
        "cannot open shared object file: No such file or directory",
        "libxml2",
        "huggingface/optimum-neuron issue 698",
    ),
    (
        "ImportError: cannot import name 'neuron_xla_compile' from 'libneuronxla' "
        "(/home/ssm-user/aws_neuron_venv_pytorch/lib64/python3.7/site-packages/libneuronxla/"
        "__init__.py)",
        "libneuronxla is older",
        "aws-neuron/transformers-neuronx issue 33",
    ),
    (
        "[Errno 2] No such file or directory: 'libneuronpjrt-path'",
        "libneuronxla is missing",
        f"{SAMPLES} issue 69",
    ),
    (
        "AssertionError: ModelBuilder requires torch-neuronx>=2.* but found torch-neuronx==1.0.",
        "empty package",
        "neuronx_distributed/trace/model_builder_v2.py",
    ),
    (
        "ERROR NEFF:neff_parse NEFF version: 2.0, features: 0x100 are not supported. Currently "
        "supporting: 0x80000000000000ff",
        "newer compiler",
        f"{SDK} issue 820",
    ),
    ("RuntimeError: nrt_load_collectives status=10", "newer compiler", f"{SDK} issue 820"),
    (
        "NEFF version mismatch supported: 1.1 received: 2.0",
        "newer compiler",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    (
        "2023-Jul-28 22:23:13.0357 101413:101422 ERROR  TDRV:translate_one_pseudo_instr_v2         "
        "  Unsupported hardware operator code 214 found in neff.",
        "newer compiler",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    (
        "2021-Aug-11 18:38:27.0917 13713:13713 ERROR   NRT:nrt_init      Unable to determine "
        "Neuron Driver version. Please check aws-neuron-dkms package is installed.",
        "driver is missing",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    (
        "2021-Aug-11 19:18:21.0661 24616:24616 ERROR   NRT:nrt_init      This runtime requires "
        "Neuron Driver version 2.0 or greater. Please upgrade aws-neuron-dkms package.",
        "driver is missing",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    (
        "2023-09-19T09:36:54Z Too many instructions after unroll for function sg0000 !",
        "more instructions",
        f"{SAMPLES} issue 40",
    ),
    (
        "[XTP002] Number of instructions (8658944) is over the threshold (5000000). Tiling could "
        "potentially do a better job.",
        "more instructions",
        f"{SDK} issue 987",
    ),
    (
        "2023-12-12T00:41:38Z [LUR015]  Compiler generated too many instructions (9530773). This "
        "maybe due to a failure in parallelism extraction by the tensorizer.",
        "more instructions",
        f"{SDK} issue 801",
    ),
    (
        "2024-04-30T20:50:00Z [TEN404] Internal tensorizer error - Please open a support ticket at "
        "https://github.com/aws-neuron/aws-neuron-sdk/issues/new",
        "internal error",
        f"{SDK} issue 881",
    ),
    (
        "[INTERNAL_ERROR] [NCC_ITEN406] Too many partition dimensions detected at "
        "{{0,+,38}[9],+,380}[12].",
        "internal error",
        "vllm-neuron/docs/model-dev/debugging.md",
    ),
    (
        "2025-02-24T00:04:00Z USER 5521 [neuronxcc.driver.CommandDriver]: [NLA001]  Unhandled "
        "exception with message: Allocated memory out of bound",
        "internal error",
        f"{SDK} issue 1118",
    ),
    (
        "[F134] neuronx-cc terminated abnormally - Please open a support ticket",
        "internal error",
        "aws-neuron/nki-samples issue 24",
    ),
    (
        "nrt_load_collectives: Unsupported topology. Supported number of Neuron Cores is 1, 2, 8, "
        "16 or a multiple of 32.",
        "number of ranks",
        "huggingface/optimum-neuron issue 619",
    ),
    (
        "2021-Aug-27 23:22:12.0323 28078:28078 ERROR   NRT:nrt_allocate_neuron_cores               "
        "NeuronCore(s) not available - Requested:nc1-nc1 Available:0",
        "another process",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    ("Could not open the nd1", "more cores", "neuron-runtime/nrt-troubleshoot.rst"),
    (
        'RuntimeError: nrt_load_collectives status=4 message="Allocation Failure"',
        "collectives do not fit",
        f"{SAMPLES} issue 96",
    ),
    (
        "ERROR 02-11 14:20:32 engine.py:389] RuntimeError: nrt_tensor_allocate status=4 "
        'message="Allocation Failure"',
        "memory is full",
        "vllm-project/vllm issue 12443",
    ),
    (
        "2025-May-15 20:58:33.897479 224822:224822 ERROR  TDRV:log_dev_mem                         "
        "    Failed to allocate 4.000GB (alignment: none, usage: tensors) on ND 0:NC 4",
        "memory is full",
        "neuron-runtime/explore/device-memory.rst",
    ),
    (
        "2024-Oct-15 18:01:17.728750  3882:3882  ERROR  TDRV:dmem_alloc_internal                   "
        "  Failed to alloc DEVICE memory: 180355072",
        "memory is full",
        f"{SDK} issue 1014",
    ),
    (
        "2024-Jul-30 14:22:31.305961 65191:69012 ERROR   NRT:nrt_infodump                          "
        "  Failure: NRT_RESOURCE in nrt_load()",
        "memory is full",
        "huggingface/optimum-neuron pull request 668",
    ),
    (
        "RuntimeError: Bad StatusOr access: RESOURCE_EXHAUSTED",
        "memory is full",
        "pytorch/xla issue 7827 (its title; of a TPU, the words are PyTorch/XLA's)",
    ),
    (
        "2024-Jun-26 00:32:47.943821 30294:32381 ERROR  TDRV:generate_custom_notification_msg      "
        "  nd0:nc0:h_model.id1001: Received notification generated at runtime: failed to run "
        "scatter/gather (indirect memory copy), due to out-of-bound access.",
        "outside its bucket",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    (
        "2024-Jun-26 00:32:47.948678 30294:32381 ERROR  NMGR:dlr_infer                             "
        "  Inference completed with err: 1006. mode->h_nn=1001, start_nc=0, nc_count=1",
        "outside its bucket",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    (
        "nrtd[nnnnn]: ....  Error notifications found on NC .... INFER_ERROR_SUBTYPE_NUMERICAL",
        "NaN",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    (
        "2025-Oct-01 23:48:34.002207 516278:516288 ERROR   NRT:nrt_infodump                        "
        "    Failure: NRT_EXEC_SW_NQ_OVERFLOW in nrt_execute()",
        "overflowed",
        "neuron-runtime/nrt-troubleshoot.rst",
    ),
    ("Failed to initialize devices, error:5", "left the devices", "nrt-troubleshoot.rst"),
    (
        "(0) INTERNAL: Nrt::Load failed on NeuronCores 0-0(2): nrt_load status=1, error message="
        '"Non specific failure".',
        "nrt_load gave status 1",
        f"{SDK} issue 779",
    ),
]

# Every code of AWS's list (compiler/error-codes/index.rst, dated 2026-07-14).
_REST = (
    "EARG001 EBIR023 EBVF030 EHCA005 EMOD025 EOOM001 EOOM002 ESFH002 ESPP004 ESPP047 EUOC002 "
    "EXSP001 EXTP004"
)
_VERIFIER = (
    "001 004 005 006 007 009 010 011 013 015 016 017 018 019 022 031 035 036 037 038 039 040 "
    "041 042 043 044 045 046 047 048 049 050 051 052 053 054 055 056 057 058 059 060 061 062 "
    "063 064 065"
)
CODES = _REST.split(" ") + [f"EVRF{number}" for number in _VERIFIER.split(" ")]


@pytest.mark.parametrize(("line", "words", "source"), LINES, ids=[line[:40] for line, *_ in LINES])
def test_recorded_lines(line: str, words: str, source: str) -> None:
    log = f"INFO before\n{line}\nINFO after\n"
    found = explain(log)
    assert found is not None and words in found.cause
    assert found.advice and found.source and found.line == line.strip()


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_the_compiler(code: str) -> None:
    found = explain(f"ERROR: [NCC_{code}] something of this kind")
    assert found is not None and found.advice
    assert "internal error" not in found.cause
    if not any(code in known.pattern for known in known_failures.KNOWN):
        assert code in found.cause and f"/{code}.html" in found.advice


def test_every_pattern_has_a_recorded_line() -> None:
    """A pattern that no line above exercises could be dead; codes are their own lines."""
    seen = {explain(line).cause for line, *_ in LINES}  # type: ignore[union-attr]
    seen |= {explain(f"[NCC_{code}]").cause for code in CODES}  # type: ignore[union-attr]
    statuses = {"a rank waited for the others until it gave up", "the hardware failed"}
    for name in ("NRT_EXEC_HW_ERR_COLLECTIVES", "NRT_EXEC_HW_ERR_HBM_UE"):
        seen.add(explain(f"Failure: {name} in nrt_execute()").cause)  # type: ignore[union-attr]
    assert statuses <= seen
    assert {known.cause for known in known_failures.KNOWN} <= seen


def test_advice_names_options_that_there_are() -> None:
    """Of scripts/compile.py; the one flag beside them is the compiler's own."""
    named = {
        option
        for known in known_failures.KNOWN
        for option in re.findall(r"--[a-z][a-z-]+", known.advice)
    }
    assert "--workers" in named
    options = {option for action in planning.parser()._actions for option in action.option_strings}
    assert named - options <= {"--implicit-integer-downcast"}


@pytest.mark.parametrize("text", ["", "INFO all is well", "Compiler status PASS"])
def test_silence_is_not_explained(text: str) -> None:
    assert explain(text) is None


def test_unknown_status() -> None:
    found = explain("RuntimeError: nrt_execute status=4711")
    assert found is not None and "status 4711: unknown" in found.cause


def test_message_names_graph_flags_and_log(tmp_path: Path) -> None:
    folder = tmp_path / "decode_1x4_64_7" / "2026-11-22T00-00-00"
    folder.mkdir(parents=True)
    log = folder / "log-neuron-cc.txt"
    log.write_text("x\n" * 1000 + "[NCC_EOOM001] too large\n")
    text, path = read_log(tmp_path)
    assert path == log and len(text.splitlines()) == 200
    failure = NeuronFailure("compiling", text, graph="decode_1x4_64_7", flags="-O2", log=path)
    for words in ("graph decode_1x4_64_7", "do not fit", "next: ", "flags: -O2", f"log: {log}"):
        assert words in str(failure)
    assert read_log(tmp_path / "none") == ("", None)


def test_unknown_failures_say_so() -> None:
    failure = NeuronFailure("loading", "first\n\nthe last words\n")
    assert "not a failure known here: the last words" in str(failure)
    assert failure.explanation is None


def test_causes_of_an_error_are_read_too() -> None:
    try:
        try:
            raise RuntimeError("neuronx-cc failed with -9")
        except RuntimeError as error:
            raise RuntimeError("Compilation failed for decode") from error
    except RuntimeError as error:
        found = explain(whole_message(error))
    assert found is not None and "exit -9" in found.cause
