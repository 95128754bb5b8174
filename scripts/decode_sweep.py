"""`profile_kernel.py sweep`: predicted decode times over samples and context, as tables and plots.

python scripts/profile_kernel.py sweep --samples 1,16,64 --context 1024,8192 --out sweep

writes sweep.csv, sweep.json, sweep.md and, with matplotlib, sweep.png. Rows that the CSV already
holds for the same kernels are kept, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

import nki_kernels
from models.files import output_path, write_json, write_text
from nki_kernels.errors import InputError, require
from nki_kernels.ordinary_attention.switch import decode_path
from nki_kernels.predict import Layer, Prediction, predict, predict_rest, shape_of
from nki_kernels.speed_of_light import Decode, speed_of_light
from nki_sim.targets import get_target
from scripts import command_line

SHAPES = {
    "mha": ("7B MHA", Layer(h=4, g=4, d=128, H=4096, I=1376)),
    "gqa": ("8B GQA", Layer(h=4, g=1, d=128, H=4096, I=1792)),
}
"""Of a 7B model with 32 heads and an 8B one with 32 heads on 8: what a core has at tp = 8."""

PLACES = (
    "nki_kernels/predict.py",
    "nki_kernels/tuned.*",
    "nki_kernels/*/*.py",
    "nki_kernels/*/*.json",
    "nki_sim/timeline/*.py",
    "nki_sim/data/timing_*.json",
)
APART = ("reference", "cuda", "validate", "__init__", "report", "plot", "perfetto", "published")
"""Files that decide a prediction, and those among them that do not."""

TARGETS = ("trn1", "inf2", "trn2")
SAMPLES = (1, 4, 16, 32, 64, 128, 256, 1024)
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True)
class Row:
    """One shape: times in us, predicted; the baseline has a copy of the context a sample."""

    target: str
    shape: str
    b: int
    m_c: int
    m_d: int
    path: str
    us: float
    low_us: float
    high_us: float
    bound_us: float
    bound: str
    fraction: float
    limited_by: str
    baseline_us: float
    baseline_low_us: float
    baseline_high_us: float
    baseline_bound_us: float
    speedup: float
    kv_write_us: float
    rest_of_layer_us: float
    layer_speedup: float
    extrapolated: str
    kernels: str

    @property
    def key(self) -> tuple[str, str, int, int, int, str]:
        """What a row is about, and of which kernels it speaks."""
        return (self.target, self.shape, self.b, self.m_c, self.m_d, self.kernels)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line of the sweep."""
    parser = command_line.Parser(
        prog="profile_kernel.py sweep", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--samples", default=_text(SAMPLES), help="samples b, with commas (%(default)s)")
    add("--context", default=_text(CONTEXTS), help="context keys m_c, with commas (%(default)s)")
    add("--suffix", type=int, default=128, help="suffix keys m_d of a sample (%(default)s)")
    add("--shape", default=_text(SHAPES), help="mha and gqa, with commas (%(default)s)")
    add("--target", default=_text(TARGETS), help="core generations, with commas (%(default)s)")
    add("--out", required=True, metavar="PREFIX", help="PREFIX.csv, .json, .md and .png")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Sweep, write after every row, draw at the end."""
    options = parse(arguments)
    samples = numbers(options.samples, "--samples")
    contexts = numbers(options.context, "--context")
    require(options.suffix >= 1, f"--suffix must be at least 1, got {options.suffix}")
    shapes, targets = options.shape.split(","), options.target.split(",")
    for name in shapes:
        require(name in SHAPES, f"--shape {name!r} is none of {', '.join(SHAPES)}")
    for target in targets:
        require(
            target in (*TARGETS, "trn3"), f"--target {target!r} is none of trn1, inf2, trn2, trn3"
        )
    csv_path = output_path(f"{options.out}.csv", "--out")
    others = {end: output_path(f"{options.out}.{end}", "--out") for end in ("json", "md", "png")}
    digest = fingerprint()
    done = read(csv_path)
    rows = {row.key: row for row in done if row.kernels == digest}
    todo = [
        (target, name, b, m_c)
        for name in shapes
        for b in samples
        for m_c in contexts
        for target in targets
    ]
    sweep = Sweep(options.suffix, digest)
    asked = []
    for target, name, b, m_c in (bar := tqdm(todo, unit="shape", dynamic_ncols=True)):
        bar.set_description(f"{target} {name} b = {b}, m_c = {m_c}")
        key = (target, name, b, m_c, options.suffix, digest)
        if key not in rows:
            rows[key] = sweep.row(target, name, b, m_c)
            write_text(csv_path, as_csv(list(rows.values())))
        asked.append(rows[key])
    write_json(others["json"], [asdict(row) for row in asked])
    write_text(others["md"], as_markdown(asked))
    print(as_markdown(asked))
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: pip install 'bifork[plot]'")
    else:
        draw(asked, others["png"])


def numbers(text: str, argument: str) -> list[int]:
    """Whole numbers above 0, with commas between them."""
    parts = text.split(",")
    require(
        all(part.strip().isdigit() and int(part) > 0 for part in parts),
        f"{argument} {text}: write whole numbers above 0 with commas, as 1,16,64",
    )
    return [int(part) for part in parts]


def _text(values: Any) -> str:
    return ",".join(str(value) for value in values)


def fingerprint() -> str:
    """Eight digits for all that a prediction depends on: our kernels, the timeline, its data."""
    root = Path(nki_kernels.__file__).parent
    files = [file for place in PLACES for file in root.parent.glob(place)]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.stem not in APART):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


class Sweep:
    """Predictions, each made once a core generation: trn1 and inf2 have the same core."""

    def __init__(self, m_d: int, digest: str) -> None:
        self.m_d = m_d
        self.digest = digest
        self.predictions: dict[tuple[Any, ...], Prediction] = {}
        self.rests: dict[tuple[Any, ...], dict[str, float]] = {}

    def row(self, target: str, name: str, b: int, m_c: int) -> Row:
        """Everything about one shape on one target."""
        layer = SHAPES[name][1]
        work = Decode(1, b, 1, layer.h, layer.g, layer.d, m_c, self.m_d)
        copies = Decode(b, 1, 1, layer.h, layer.g, layer.d, m_c, self.m_d)
        bound, baseline_bound = speed_of_light(work, target), speed_of_light(copies, target)
        path = decode_path(shape_of(work), 2, target).path
        found = self._predict(path, work, target)
        baseline = self._predict("ordinary", copies, target)
        rest = self._rest(layer, b, target)
        others = sum(rest.values())
        return Row(
            target=target,
            shape=name,
            b=b,
            m_c=m_c,
            m_d=self.m_d,
            path=path,
            us=round(found.us, 2),
            low_us=round(found.low_us, 2),
            high_us=round(found.high_us, 2),
            bound_us=round(bound.us, 2),
            bound=bound.resource,
            fraction=round(bound.us / found.us, 4),
            limited_by=found.limited_by,
            baseline_us=round(baseline.us, 2),
            baseline_low_us=round(baseline.low_us, 2),
            baseline_high_us=round(baseline.high_us, 2),
            baseline_bound_us=round(baseline_bound.us, 2),
            speedup=round(baseline.us / found.us, 2),
            kv_write_us=round(rest["write_kv"], 2),
            rest_of_layer_us=round(others, 2),
            layer_speedup=round((baseline.us + others) / (found.us + others), 2),
            extrapolated="+".join(
                name
                for name, each in (("kernel", found), ("baseline", baseline))
                if each.extrapolated
            ),
            kernels=self.digest,
        )

    def _predict(self, path: str, work: Decode, target: str) -> Prediction:
        key = (path, work, get_target(target).generation)
        if key not in self.predictions:
            self.predictions[key] = predict(path, work, target)
        return self.predictions[key]

    def _rest(self, layer: Layer, b: int, target: str) -> dict[str, float]:
        key = (layer, b, get_target(target).generation)
        if key not in self.rests:
            self.rests[key] = predict_rest(layer, b, target)
        return self.rests[key]


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with a line of names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read(path: Path) -> list[Row]:
    """The rows of a CSV that `as_csv` wrote; none where there is no file.

    Raises:
        InputError: the file is something else.
    """
    if not path.is_file() or not path.read_text():
        return []
    kinds = {"str": str, "int": int, "float": float}
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            try:
                values = {
                    field.name: kinds[str(field.type)](line[field.name]) for field in fields(Row)
                }
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"--out: {path} is not a sweep of this version: {error}"
                ) from error
            found.append(Row(**values))
    return found


def as_markdown(rows: Sequence[Row]) -> str:
    """A table a shape and target; times in us."""
    parts = []
    for target in dict.fromkeys(row.target for row in rows):
        for name in dict.fromkeys(row.shape for row in rows):
            parts.append(f"### {SHAPES[name][0]}, {target}\n")
            parts.append(
                "| b | m_c | path | us | low to high | bound | fraction | limited by | ordinary us"
                " | speed-up | KV write | layer speed-up |"
            )
            parts.append("| ---: " * 2 + "| --- " + "| ---: " * 4 + "| --- " + "| ---: " * 4 + "|")
            for row in rows:
                if (row.target, row.shape) == (target, name):
                    parts.append(
                        f"| {row.b} | {row.m_c} | {row.path} | {row.us:.1f}"
                        f" | {row.low_us:.0f} to {row.high_us:.0f} | {row.bound_us:.1f} {row.bound}"
                        f" | {row.fraction:.2f} | {row.limited_by} | {row.baseline_us:.1f}"
                        f" | {row.speedup:.1f} x | {row.kv_write_us:.1f}"
                        f" | {row.layer_speedup:.1f} x |"
                    )
            parts.append("")
    return "\n".join(parts)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time and speed-up over samples, a line a context, a column a shape and target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys((row.shape, row.target) for row in rows))
    figure, axes = pyplot.subplots(
        2, len(cases), figsize=(4.2 * len(cases), 7), squeeze=False, sharex=True
    )
    for column, (name, target) in enumerate(cases):
        mine = [row for row in rows if (row.shape, row.target) == (name, target)]
        top, bottom = axes[0][column], axes[1][column]
        for m_c in dict.fromkeys(row.m_c for row in mine):
            line = sorted((row for row in mine if row.m_c == m_c), key=lambda row: row.b)
            b = [row.b for row in line]
            (drawn,) = top.plot(b, [row.us for row in line], marker="o", label=f"m_c = {m_c}")
            colour = drawn.get_color()
            top.plot(b, [row.bound_us for row in line], linestyle=":", color=colour)
            top.fill_between(
                b, [row.low_us for row in line], [row.high_us for row in line], alpha=0.15
            )
            bottom.plot(b, [row.speedup for row in line], marker="o", color=colour)
        top.set_title(f"{SHAPES[name][0]}, {target}")
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
        bottom.set_xlabel("samples b")
    axes[0][0].set_ylabel("attention, us (predicted; dotted: speed of light)")
    axes[1][0].set_ylabel("speed-up over ordinary")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
