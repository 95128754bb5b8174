"""A plan as JSON and as text; each figure with its kind of evidence."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from compile.plan import MOST_SAMPLES, Plan


def as_json(plan: Plan) -> dict[str, Any]:
    """All of a plan, in bytes, instructions and minutes."""
    r, core, host, net = plan.request, plan.core, plan.host, plan.network
    return {
        "model": {"family": plan.config.family, "layers": plan.config.layers, "h": plan.config.h,
                  "g": plan.config.g, "d": plan.config.d, "weights": plan.config.weights,
                  "kv_dtype": plan.config.kv_dtype},
        "instance": asdict(plan.instance) | {"cores": plan.instance.cores},
        "tp": r.tp,
        "dtype": str(r.dtype).removeprefix("torch."),
        "kernels": {"chosen": net.kernels, "why": net.why},
        "graphs": [
            {
                "name": g.name, "phase": g.phase, "queries": g.queries,
                "shape": asdict(g.shape) if g.shape else None, "attention": g.attention,
                "why": g.why,
                "instructions": {
                    "total": g.count.total,
                    "attention": {"count": g.count.attention,
                                  "evidence": g.count.attention_evidence},
                    "rest": {"count": g.count.rest, "evidence": "estimated"},
                },
            }
            for g in plan.graphs
        ],
        "core_memory": {
            "cache_shape": asdict(plan.cache),
            "computed": {"weights": core.weights, "kv": core.kv, "tables": core.tables},
            "estimated": {"activations": core.activations, "workspace": core.workspace},
            "total": core.total,
            "hbm": core.hbm,
            "fits": core.fits,
        },
        "host": {
            "computed": {"loading": host.loading},
            "estimated": {
                "worker": host.worker, "workers": host.workers,
                "minutes": None if math.isinf(host.minutes) else round(host.minutes, 1),
            },
            "memory": plan.instance.host_bytes,
        },
        "largest": [
            {"way": each.way, "samples": each.samples, "context": each.context, "kv": each.kv,
             "evidence": "estimated"}
            for each in plan.largest
        ],
        "warnings": list(plan.warnings),
        "suggestions": list(plan.suggestions),
    }  # fmt: skip


def as_text(plan: Plan) -> str:
    """The plan as tables."""
    r, core, host, instance = plan.request, plan.core, plan.host, plan.instance
    lines = [
        f"{plan.config.family}, {plan.config.layers} layers, tp = {r.tp} of {instance.cores} cores "
        f"of {instance.name}, {str(r.dtype).removeprefix('torch.')}; kernels: "
        f"{plan.network.kernels} ({plan.network.why})",
        "",
        "graphs",
    ]
    rows: list[tuple[str, ...]] = [
        ("name", "attention", "instructions", "of them attention", "why")
    ]
    rows += [
        (
            g.name, g.attention, f"{g.count.total:,} estimated",
            f"{g.count.attention:,} {g.count.attention_evidence}", g.why,
        )
        for g in plan.graphs
    ]  # fmt: skip
    lines += _table(rows)
    shape = plan.cache
    lines += [
        "",
        f"memory of a core, one cache of (G={shape.G}, r={shape.r}, S_ctx={shape.S_ctx}, "
        f"S_dec={shape.S_dec})",
    ]
    lines += _table([
        ("weights", size(core.weights), "computed"),
        ("keys and values", size(core.kv), "computed"),
        ("rotation tables", size(core.tables), "computed"),
        ("activations", size(core.activations), "estimated"),
        ("workspace", size(core.workspace), "estimated"),
        ("total", size(core.total), "estimated"),
        ("HBM", size(core.hbm), instance.source),
        ("fits" if core.fits else "DOES NOT FIT", f"{core.total / core.hbm:.0%}", ""),
    ])  # fmt: skip
    minutes = "not here" if math.isinf(host.minutes) else f"{host.minutes:.0f} minutes"
    lines += ["", f"a host ({size(instance.host_bytes)})"]
    lines += _table([
        ("weights of its ranks", size(host.loading), "computed"),
        ("a compile worker", size(host.worker), "estimated"),
        ("workers at a time", str(host.workers), "estimated"),
        ("compiling", minutes, "estimated"),
    ])  # fmt: skip
    lines += ["", "the most that fits (estimated, as activations and workspace are)"]
    header = ["way", "KV of the largest buckets"]
    header += [f"b at {S}" for S in r.contexts] + [f"m_c at b = {b}" for b in r.samples]
    lines += _table(
        [tuple(header)]
        + [
            (each.way, size(each.kv), *map(_samples, each.samples.values()),
             *(_positions(plan, n) for n in each.context.values()))
            for each in plan.largest
        ]
    )  # fmt: skip
    for title, notes in (("warnings", plan.warnings), ("to make it fit", plan.suggestions)):
        if notes:
            lines += ["", title, *(f"  - {note}" for note in notes)]
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if count >= 1 << power:
            return f"{count / (1 << power):,.2f} {unit}"
    return f"{count / 1024:,.1f} KiB"


def _samples(b: int) -> str:
    return f"{b:,} or more" if b == MOST_SAMPLES else f"{b:,}"


def _positions(plan: Plan, m_c: int) -> str:
    most = plan.config.max_position - plan.request.max_new_tokens
    return f"{m_c:,} (the model's)" if m_c == most else f"{m_c:,}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
    ]
