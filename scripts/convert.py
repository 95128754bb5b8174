"""Write a checkpoint anew: split into one file a rank.

python scripts/convert.py --model DIR --tp 8 --out OUT    each rank of 8 reads one file of its own
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

from models.causal_lm import find_checkpoint
from models.causal_lm.convert import split
from nki_kernels.errors import InputError
from scripts import command_line


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, metavar="DIR|ID", help="checkpoint directory or hub id")
    add("--out", required=True, metavar="OUT", help="a new folder, or one left unfinished")
    add("--tp", type=int, required=True, help="tensor-parallel degree: files to write")
    add("--dtype", help="float32 or bfloat16 (the checkpoint's own)")
    return parser.parse_args()


def main() -> None:
    """Find, check, write."""
    args = parse()
    if not args.out.strip():
        raise InputError("--out is empty; give the name of a folder")
    directory, out = find_checkpoint(args.model), Path(args.out)
    try:
        split(directory, out, args.tp, args.dtype, progress=True)
    except KeyboardInterrupt:
        print(f"convert.py: interrupted; the same command goes on in {out}", file=sys.stderr)
        sys.exit(command_line.INTERRUPTED)
    files = sorted(out.glob("*.safetensors"))
    print(f"written   {out}: {len(files)} files, {sum(f.stat().st_size for f in files):,} bytes")


if __name__ == "__main__":
    command_line.run(main)
