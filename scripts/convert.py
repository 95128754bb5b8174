"""Write a checkpoint anew: split into one file a rank, or with weights or caches in 8 bits.

python scripts/convert.py --model DIR --out OUT --tp 8            a file for each rank of 8
python scripts/convert.py --model DIR --out OUT --weights int8    projections in 8 bits
python scripts/convert.py --model DIR --out OUT --kv-dtype fp8    keys and values in 8 bits

What was quantised can be split; a command does one of the two.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from models.causal_lm import Tokenizer, find_checkpoint
from models.causal_lm.convert import quantise, split
from nki_kernels.errors import InputError
from scripts import command_line


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, metavar="DIR|ID", help="checkpoint directory or hub id")
    add("--out", required=True, metavar="OUT", help="a new folder, or one left unfinished")
    add("--tp", type=int, help="tensor-parallel degree: files to write")
    add("--weights", choices=("int8", "fp8"), help="8 bits for projections, a factor a channel")
    add("--kv-dtype", choices=("fp8",), help="8 bits for keys and values")
    add(
        "--calibration",
        metavar="F",
        help="a UTF-8 text that the model is run on, to choose the factors of --kv-dtype (they "
        "are 1)",
    )
    add("--dtype", help="of all else: float32 or bfloat16 (the checkpoint's own)")
    return parser.parse_args()


def main() -> None:
    """Find, check, write."""
    args = parse()
    if not args.out.strip():
        raise InputError("--out is empty; give the name of a folder")
    directory, out = find_checkpoint(args.model), Path(args.out)
    eight = args.weights is not None or args.kv_dtype is not None
    if eight == (args.tp is not None):
        raise InputError("give either --tp, or --weights or --kv-dtype")
    if args.calibration is not None and args.kv_dtype is None:
        raise InputError("--calibration is for --kv-dtype")
    try:
        if eight:
            quantise(
                directory,
                out,
                args.weights or "float",
                args.kv_dtype or "model",
                args.dtype,
                read_calibration(args.calibration, directory),
                progress=True,
            )
        else:
            split(directory, out, args.tp, args.dtype, progress=True)
    except KeyboardInterrupt:
        print(f"convert.py: interrupted; the same command goes on in {out}", file=sys.stderr)
        sys.exit(command_line.INTERRUPTED)
    files = sorted(out.glob("*.safetensors"))
    print(f"written   {out}: {len(files)} files, {sum(f.stat().st_size for f in files):,} bytes")


def read_calibration(name: str | None, directory: Path) -> list[int]:
    """The tokens of the text in a file."""
    if name is None:
        return []
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--calibration {name} cannot be read as UTF-8: {error}") from error
    tokens = Tokenizer.load(directory).encode(text)
    if not text.strip() or not tokens:
        raise InputError(f"--calibration {name} holds no text")
    return tokens


if __name__ == "__main__":
    command_line.run(main)
