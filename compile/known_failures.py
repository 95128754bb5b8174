"""What goes wrong between a graph and a NeuronCore, as data: how it shows, why, and what to do.

The lines are of AWS's documentation and of public issues, as `source` says; the advice is ours, in
this project's options. `compile.failures` searches them in this order, so what names a cause stands
before what names only a symptom.
"""

from __future__ import annotations

from dataclasses import dataclass

_DOCS = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/"
_SDK = "https://github.com/aws-neuron/aws-neuron-sdk/issues/"
_SAMPLES = "https://github.com/aws-neuron/aws-neuron-samples/issues/"
_TROUBLE = _DOCS + "neuron-runtime/nrt-troubleshoot.html"
STATUS_SOURCE = _DOCS + "neuron-runtime/api/nrt_status.html"


@dataclass(frozen=True)
class Known:
    """A failure that has been seen.

    Attributes:
        pattern: regular expression, searched in a log or message.
        cause: what it means.
        advice: what to do next.
        source: where it is documented or was reported.
    """

    pattern: str
    cause: str
    advice: str
    source: str


_FEWER = (
    "take a smaller --context or --samples bucket, or a higher --tp; scripts/compile.py --dry-run "
    "counts the instructions of each graph"
)
_LESS = (
    "compare with scripts/compile.py --dry-run; raise --tp, take smaller buckets, --weights int8 "
    "or --kv-dtype fp8"
)
_UPDATE = (
    "install torch-neuronx, neuronx-cc, libneuronxla, neuronx-distributed and the runtime packages "
    "of one SDK release (its release page lists them), in a fresh environment"
)

KNOWN = (
    # --- the host, while compiling
    Known(
        r"\[F137\]|forcibly killed",
        "the compiler was killed; nearly always the host ran out of memory",
        "compile with fewer --workers, smaller buckets, or on a host with more memory (a graph for "
        "a small inf2 can be compiled on a larger machine)",
        _SAMPLES + "64",
    ),
    Known(
        r"(failed with|returned:?|code|exitcode=|exit status:?)\s*-9\b|SIGKILL"
        r"|died with <Signals\.SIGKILL",
        "the compiler was killed without a word (exit -9); nearly always by the kernel, which was "
        "out of memory, as `dmesg | tail` will say",
        "compile with fewer --workers, smaller buckets, or on a host with more memory",
        _SDK + "706",
    ),
    Known(
        r"No space left on device|Errno 28",
        "a disk is full",
        "free space, or give --cache on another disk; compiled graphs that are whole are kept",
        "errno(3)",
    ),
    Known(
        r"exceeds maximum protobuf size of 2GB",
        "the graph holds constants of more than 2 GiB",
        "weights must be parameters and tables small: report it with the graph's HLO",
        _SDK + "987",
    ),
    Known(
        r"libxml2\.so\.2: cannot open shared object",
        "the compiler needs the system library libxml2",
        "apt-get install libxml2 (or the distribution's package of that name)",
        "https://github.com/huggingface/optimum-neuron/issues/698",
    ),
    # --- versions that do not belong together
    Known(
        r"cannot import name '(neuron_xla_compile|neuron_xla_wlo_compile)' from 'libneuronxla'",
        "libneuronxla is older than torch-neuronx or neuronx-distributed expects",
        _UPDATE,
        "https://github.com/huggingface/optimum-neuron/issues/213",
    ),
    Known(
        r"libneuronpjrt-path",
        "libneuronxla is missing, or of another release than torch-neuronx",
        _UPDATE,
        _SAMPLES + "69",
    ),
    Known(
        r"requires torch-neuronx>=2",
        "the installed torch-neuronx is the public index's empty package, or older than 2",
        _UPDATE,
        "https://github.com/aws-neuron/neuronx-distributed/blob/main/src/neuronx_distributed/"
        "trace/model_builder_v2.py",
    ),
    Known(
        r"NEFF version[^\n]*(mismatch|not supported)|features: 0x\w+ are not supported"
        r"|status=10\b|NRT_UNSUPPORTED_NEFF_VERSION",
        "the graph was compiled by a newer compiler than this machine's runtime understands",
        "update aws-neuronx-runtime-lib and the driver, or compile again with this machine's SDK",
        _SDK + "820",
    ),
    Known(
        r"Unsupported hardware operator code",
        "the graph was compiled by a newer compiler than this machine's runtime understands",
        "update aws-neuronx-runtime-lib and aws-neuronx-collectives",
        _TROUBLE,
    ),
    Known(
        r"not compatible with the installed aws-neuron|requires Neuron Driver version"
        r"|Unable to determine Neuron Driver version",
        "the Neuron driver is missing, or older than the runtime needs",
        "install or update aws-neuronx-dkms, then sudo rmmod neuron; sudo modprobe neuron",
        _TROUBLE,
    ),
    # --- the compiler
    Known(
        r"Too many instructions after unroll|generated too many instructions"
        r"|Number of instructions \(\d+\) is over the threshold"
        r"|NCC_(EVRF007|EXTP004|EBVF030)",
        "the graph has more instructions than the compiler takes",
        _FEWER + "; try -O1 for this graph",
        _SDK + "987",
    ),
    Known(
        r"NCC_(EOOM001|EOOM002|EVRF009|EXSP001)",
        "the compiler finds that the graph's tensors do not fit a core's memory",
        _LESS,
        _DOCS + "compiler/error-codes/EOOM001.html",
    ),
    Known(
        r"NCC_EARG001",
        "this LNC is not known to these cores",
        "LNC 2 is for trn2; on trn1 and inf2 unset NEURON_LOGICAL_NC_CONFIG",
        _DOCS + "compiler/error-codes/EARG001.html",
    ),
    Known(
        r"NCC_(EHCA005|EVRF015)",
        "the graph holds a custom call that this compiler does not know",
        "scripts/compile.py --lower lists the graph's custom calls; --kernels torch has none of "
        "NKI's; an SDK older than 2.29 does not know them",
        _DOCS + "compiler/error-codes/EVRF015.html",
    ),
    Known(
        r"NCC_(EVRF059|EVRF065)",
        "the NKI kernels in the graph were traced elsewhere, or by another NKI",
        "trace again on this machine (delete the graph's folder); or --kernels torch, which has no "
        "NKI",
        _DOCS + "compiler/error-codes/EVRF059.html",
    ),
    Known(
        r"NCC_(EVRF001|EUOC002)",
        "the graph holds an operation that the compiler does not have",
        "scripts/compile.py --lower shows what the graph holds; report it with the graph's HLO",
        _DOCS + "compiler/error-codes/EVRF001.html",
    ),
    Known(
        r"NCC_EVRF013",
        "a top-k of integers",
        "the draw uses fp32 only: report it with the graph's HLO",
        _DOCS + "compiler/error-codes/EVRF013.html",
    ),
    Known(
        r"NCC_(EVRF051|ESPP047|EVRF005)",
        "8-bit floats of a kind that these cores do not have",
        "--kv-dtype fp8 and --weights fp8 need the flag that compile/flags.py gives; otherwise "
        "--weights int8",
        _DOCS + "compiler/error-codes/EVRF051.html",
    ),
    Known(
        r"NCC_(EVRF031|EVRF056)",
        "an index that the graph computes lies beyond a buffer",
        "report it with the plan: buckets and cache must agree",
        _DOCS + "compiler/error-codes/EVRF031.html",
    ),
    Known(
        r"NCC_EMOD025",
        "a shape that is not static",
        "report it with the graph's HLO; every graph here has static shapes",
        _DOCS + "compiler/error-codes/EMOD025.html",
    ),
    Known(
        r"NCC_(EVRF035|EVRF060|EVRF061|EVRF062|EVRF063)",
        "integers where the compiler computes in floating point",
        "--compiler-flags=--implicit-integer-downcast=all lets it (lossy above 2**24); report it "
        "with the HLO",
        _DOCS + "compiler/error-codes/EVRF035.html",
    ),
    Known(
        r"\[(NCC_I)?TEN404\]|Internal tensorizer error|\[NLA001\]|\[F134\]|NCC_I[A-Z]{3}\d+"
        r"|Internal Compiler Error",
        "an internal error of the compiler",
        "try --compiler-flags=-O1, then --kernels torch, then another SDK release; report it to "
        "AWS with the log and model/graph.hlo",
        _SDK + "1152",
    ),
    # --- loading and running
    Known(
        r"Unsupported topology",
        "the runtime does not have this number of ranks on this instance",
        "scripts/compile.py --dry-run refuses such degrees and lists those that there are",
        "https://github.com/huggingface/optimum-neuron/issues/619",
    ),
    Known(
        r"NeuronCore\(s\) not available|NRT_EXEC_NC_BUSY|NRT_LOAD_NOT_ENOUGH_NC",
        "the NeuronCores are taken by another process, or there are too few",
        "neuron-ls shows who holds them; end it, or set NEURON_RT_VISIBLE_CORES to free ones",
        _TROUBLE,
    ),
    Known(
        r"Could not open the nd\d+|Could not find VNC id",
        "the graph asks for more cores than this instance has",
        "compile with this instance's name and a --tp within its cores",
        _TROUBLE,
    ),
    Known(
        r"nrt_load_collectives status=4",
        "a graph and its collectives do not fit the cores' memory beside what is loaded",
        "fewer or smaller buckets (each graph has its own code and workspace); " + _LESS,
        _SAMPLES + "96",
    ),
    Known(
        r"nrt_tensor_allocate status=4|RESOURCE_EXHAUSTED|Failed to allocate [\d.]+[GMK]B"
        r"|Failed to alloc DEVICE memory|NRT_RESOURCE|mc_alloc: device mempool",
        "a core's memory is full: weights, cache and the graphs' workspace together",
        _LESS + "; the runtime's table says what holds it",
        "https://github.com/vllm-project/vllm/issues/12443",
    ),
    Known(
        r"out-of-bound access|NRT_EXEC_OOB|(err|status)[:=]\s*1006\b",
        "a graph was given lengths or indices outside its bucket",
        "NEURON_RT_DBG_DUMP_INPUTS_ON_ERR=1006 keeps the inputs; report it with them",
        _TROUBLE,
    ),
    Known(
        r"INFER_ERROR_SUBTYPE_NUMERICAL|NRT_EXEC_COMPLETED_WITH_NUM_ERR|(err|status)[:=]\s*1003\b",
        "a graph computed NaN",
        "check the checkpoint (scripts/verify_checkpoint.py), then the dtype; report it with the "
        "prompt",
        _TROUBLE,
    ),
    Known(
        r"NRT_EXEC_SW_NQ_OVERFLOW|DGE notifications",
        "notifications of the DMA engines overflowed",
        "set NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0",
        _TROUBLE,
    ),
    Known(
        r"NRT_EXEC_HW_ERR_COLLECTIVES|NRT_TIMEOUT|NRT_NETWORK_PROXY_FAILURE",
        "a rank waited for the others until it gave up",
        "see which rank failed first; across hosts check EFA and that all run the same artefact",
        STATUS_SOURCE,
    ),
    Known(
        r"NRT_EXEC_HW_ERR_\w+|NRT_EXEC_UNIT_UNRECOVERABLE|NRT_HW_ERROR",
        "the hardware failed",
        "run again; if it returns, stop and start the instance, so that it moves to another host",
        _TROUBLE,
    ),
    Known(
        r"Failed to initialize devices|TDRV not initialized",
        "a process before this one left the devices running",
        "sudo rmmod neuron; sudo modprobe neuron",
        _TROUBLE,
    ),
)

STATUS = {
    1: "a failure that the runtime does not explain",
    2: "an invalid graph, or inputs of another shape than it has",
    3: "a handle that is not valid",
    4: "memory or another resource is exhausted",
    5: "a time-out",
    6: "a hardware failure",
    7: "too many requests are waiting",
    9: "too few NeuronCores are free",
    10: "a graph that this runtime's version does not understand",
    11: "the host's memory is exhausted",
    13: "the runtime was not initialised",
    14: "the runtime is closed",
    15: "an empty queue",
    101: "a core cannot recover",
    1002: "invalid inputs",
    1003: "NaN in the results",
    1004: "an error while a graph ran",
    1005: "a core that another process uses",
    1006: "an index out of bounds",
    1100: "a collective that is still pending",
    1200: "a collective that hangs",
    1201: "an uncorrectable error of HBM",
    1202: "a parity error in a core's memory",
    1203: "an aborted DMA",
    1204: "an overflow of notifications",
    1205: "a repairable error of HBM",
    1206: "a failure of the network between hosts",
}
"""The runtime's status codes (NRT_STATUS), in our words."""
