"""The errors that are planted in the kernels' sources, as data; planted.py runs them."""

from __future__ import annotations

from dataclasses import dataclass

STATE = "attention_state"
DECODE = "bifurcated_attention"
PREFILL = "flash_attention"


@dataclass(frozen=True)
class Planted:
    """One planted error: in a kernel source of `room`, `old` (found once) becomes `new`."""

    name: str
    room: str
    old: str
    new: str


ERRORS = [
    Planted(
        "context mask lets one slot too many through",
        DECODE,
        "operand0=slots * 1.0,\n        op1=nl.greater_equal,",
        "operand0=slots * 1.0,\n        op1=nl.greater,",
    ),
    Planted(
        "context mask of a neighbouring slot",
        DECODE,
        'offset=job["first"] + first * group,\n            ),\n        )\n\n\ndef context_product',
        "offset=first * group,\n            ),\n        )\n\n\ndef context_product",
    ),
    Planted(
        "suffix mask lets one slot too many through",
        DECODE,
        'operand0=job["first"] * 1.0,\n        op1=nl.greater_equal,',
        'operand0=job["first"] * 1.0,\n        op1=nl.greater,',
    ),
    Planted(
        "suffix mask forgets where its chunk starts",
        DECODE,
        'operand0=job["first"] * 1.0,',
        "operand0=0.0,",
    ),
    Planted(
        "a sample sees its neighbour's suffix",
        DECODE,
        "operand0=-FAR",
        "operand0=0.0",
    ),
    Planted(
        "tokens of a step see each other's future",
        DECODE,
        'offset=sizes["n"] - 1 - t',
        'offset=sizes["n"] - 1 - t, channel_multiplier=-1',
    ),
    Planted(
        "tokens of a step miss themselves",
        DECODE,
        'offset=sizes["n"] - 1 - t',
        'offset=sizes["n"] - t',
    ),
    Planted(
        "keys left over from whole blocks skipped",
        DECODE,
        "    if start < slots:\n        blocks.append",
        "    if start == 0 and start < slots:\n        blocks.append",
    ),
    Planted(
        "last slots of the suffixes skipped",
        DECODE,
        'for first in range(0, sizes["slots"], tiles):',
        'for first in range(0, max(sizes["slots"] - 4, 1), tiles):',
    ),
    Planted(
        "every row tile reads the first one's suffix lengths",
        DECODE,
        'offset=room["group"] * r + s,',
        'offset=room["group"] * r,',
    ),
    Planted(
        "every group reads the first one's context length",
        DECODE,
        'shared["context_len"][0:slots, group : group + 1]',
        'shared["context_len"][0:slots, 0:1]',
    ),
    Planted(
        "every group reads the first one's context values",
        DECODE,
        "offset=(kv * width + at) * d",
        'offset=(kv * width + block["cut"]["start"]) * d',
    ),
    Planted(
        "suffix rows of the neighbouring sample",
        DECODE,
        'call["suffix_len"].shape[1] + room["tile"][0])',
        'call["suffix_len"].shape[1] + max(room["tile"][0] - 1, 0))',
    ),
    Planted(
        "logits not scaled",
        DECODE,
        "data=group_logits(chunk, 0, tiles // group),\n        scale=scale,",
        "data=group_logits(chunk, 0, tiles // group),\n        scale=1.0,",
    ),
    Planted(
        "state not decayed",
        DECODE,
        'operand0=chunk["decay"],',
        "operand0=1.0,",
    ),
    Planted(
        "max forgotten between chunks",
        DECODE,
        'data1=rounded, data2=state["top"][-1], op=nl.maximum',
        "data1=rounded, data2=rounded, op=nl.maximum",
    ),
    Planted(
        "shift not taken from the logits",
        DECODE,
        "nisa.memset(dst=minus, value=-1.0)",
        "nisa.memset(dst=minus, value=0.0)",
    ),
    Planted(
        "a row without keys counts its masked slots",
        DECODE,
        "nisa.tensor_scalar(dst=top, data=rounded, op0=nl.maximum, operand0=FLOOR)",
        "nisa.tensor_copy(dst=top, src=rounded)",
    ),
    Planted(
        "every tile meets the first one's weights",
        DECODE,
        'weights = tile_weights(job["chunk"], tile, 0, rows)',
        'weights = tile_weights(job["chunk"], 0, 0, rows)',
    ),
    Planted(
        "weights of one tile left out of the sum",
        DECODE,
        'for tile in range(chunk["tiles"]):\n        nisa.nc_matmul(\n            dst=product[:, d',
        "for tile in range(1):\n        nisa.nc_matmul(\n            dst=product[:, d",
    ),
    Planted(
        "decode output not divided",
        DECODE,
        "nisa.reciprocal(dst=inverse, data=inverse)",
        "pass",
    ),
    Planted(
        "query heads interleaved over kv heads",
        DECODE,
        "[width, count], [p * width, heads], [1, width]]\n"
        "    offset = (((group * r + s) * n + t) * h + kv * p + head) * width",
        "[g * width, count], [width, heads], [1, width]]\n"
        "    offset = (((group * r + s) * n + t) * h + kv + head * g) * width",
    ),
    Planted(
        "window hides one position too many",
        DECODE,
        'offset=2 - n - call["window"]',
        'offset=3 - n - call["window"]',
    ),
    Planted(
        "window keeps a position too many",
        DECODE,
        'offset=2 - n - call["window"]',
        'offset=1 - n - call["window"]',
    ),
    Planted(
        "a step's tokens share one window",
        DECODE,
        "pattern=[[0, G * r], [1, n]]",
        "pattern=[[0, G * r], [0, n]]",
    ),
    Planted(
        "every prompt has the first one's windows",
        DECODE,
        "offset=(group * r + s) * n + t,",
        "offset=s * n + t,",
    ),
    Planted(
        "query_position ignored",
        DECODE,
        'if call["with_position"]:',
        "if False:",
    ),
    Planted(
        "window forgets where the context ends",
        DECODE,
        "op1=nl.maximum,\n        operand1=outside",
        "op1=nl.minimum,\n        operand1=outside",
    ),
    Planted(
        "window of a neighbouring chunk",
        DECODE,
        'offset=cut["start"] + job["first"],',
        'offset=cut["start"],',
    ),
    Planted(
        "window in the suffix off by one",
        DECODE,
        'job["first"] + call["window"] + 1.0',
        'job["first"] + call["window"] + 0.0',
    ),
    Planted(
        "window forgotten in the suffix",
        DECODE,
        "nisa.tensor_tensor(dst=dead, data1=dead, data2=past, op=nl.maximum)",
        "pass",
    ),
    Planted(
        "cap before scale",
        DECODE,
        'return call["scale"] / call["softcap"]',
        'return 1.0 / call["softcap"]',
    ),
    Planted(
        "capped logits scaled once more",
        DECODE,
        'return call["softcap"]  # they are',
        'return call["softcap"] * call["scale"]  # they are',
    ),
    Planted(
        "cap forgotten behind the tanh",
        DECODE,
        'return call["softcap"]  # they are',
        "return 1.0  # they are",
    ),
    Planted(
        "decode sink left out of the sum",
        DECODE,
        "nisa.tensor_tensor(dst=total, data1=total, data2=extra, op=nl.add)",
        "pass",
    ),
    Planted(
        "old state not decayed by a sink",
        DECODE,
        'nisa.tensor_scalar(dst=state["o"], data=state["o"], op0=nl.multiply, operand0=decay)',
        "pass",
    ),
    Planted(
        "every kv head has the first one's sinks",
        DECODE,
        'offset=room["kv"] * p + head,',
        "offset=head,",
    ),
    Planted(
        "second half of a wide head left out of context logits",
        DECODE,
        'for i in range(len(queries)):\n            keys = job["block"]',
        'for i in range(1):\n            keys = job["block"]',
    ),
    Planted(
        "second half of a wide head left out of suffix logits",
        DECODE,
        "for i in range(len(keys)):",
        "for i in range(1):",
    ),
    Planted(
        "first half of the suffix's values taken twice",
        DECODE,
        "[:, low : low + size],\n                    moving=tile_weights",
        "[:, 0:size],\n                    moving=tile_weights",
    ),
    Planted(
        "8-bit keys without their factor",
        DECODE,
        'return call["factors"][0:partitions, kv_head(job) : kv_head(job) + 1]',
        'return call["scale"]',
    ),
    Planted(
        "every head has the first one's factor",
        DECODE,
        'return call["factors"][0:partitions, kv_head(job) : kv_head(job) + 1]',
        'return call["factors"][0:partitions, 0:1]',
    ),
    Planted(
        "8-bit values without their factor",
        DECODE,
        "        scale_values(call, job, inverse)",
        "        pass",
    ),
    Planted(
        "factor of keys left out of bent logits",
        DECODE,
        'return call["bends"][0:partitions, kv_head(job) : kv_head(job) + 1]',
        'return call["scale"] / call["softcap"]',
    ),
    Planted(
        "float16 weights against a rounded shift",
        DECODE,
        "exact = nl.float32 if dtype == nl.float16 else nl.bfloat16",
        "exact = nl.bfloat16",
    ),
    Planted(
        "states of two cores joined without their factors",
        DECODE,
        "op0=nl.multiply, operand0=their_decay",
        "op0=nl.multiply, operand0=1.0",
    ),
    Planted(
        "both cores read the whole context",
        DECODE,
        'own["slots"] = (0, cut) if core == 0 else (cut, slots)',
        "pass",
    ),
    Planted(
        "the second core's context starts where the first one's does",
        DECODE,
        'cut["start"] += start',
        'cut["start"] += 0',
    ),
    Planted(
        "a share's last part forgotten",
        DECODE,
        "return count * core // cores, count * (core + 1) // cores",
        "return count * core // cores, count // cores * (core + 1)",
    ),
    Planted("a row without keys counts its masked slots", STATE, "FLOOR = -1.0e30", "FLOOR = MASK"),
    Planted(
        "with rows on partitions, a span's mask starts at the context's first key",
        DECODE,
        "range_start=key,",
        "range_start=0,",
    ),
    Planted(
        "with rows on partitions, NeuronCore-v2 masks every span as the first",
        DECODE,
        "number = (start + at) % per_tile // PARTITIONS",
        "number = at % per_tile // PARTITIONS",
    ),
    Planted(
        "maximum over all spans but the last",
        DECODE,
        'data=tops[:, 0 : state["spans"]], axis=1)\n        nisa.tensor_scalar(dst=bias',
        'data=tops[:, 0 : state["spans"] - 1], axis=1)\n        nisa.tensor_scalar(dst=bias',
    ),
    Planted(
        "a unit's values added to a state that has not decayed",
        DECODE,
        'operand0=unit["decay"],\n        op1=nl.add,\n        operand1=product,',
        "operand0=1.0,\n        op1=nl.add,\n        operand1=product,",
    ),
    Planted(
        "a unit's sum added to one that has not decayed",
        DECODE,
        'data=total, scale=unit["decay"], bias=unit["total"])\n    inverse',
        'data=total, scale=1.0, bias=unit["total"])\n    inverse',
    ),
    Planted(
        "the sum of a split unit starts where the last one ended",
        DECODE,
        "reduce_cmd=nisa.reduce_cmd.reset_reduce if first else nisa.reduce_cmd.reduce",
        "reduce_cmd=nisa.reduce_cmd.reduce",
    ),
    Planted(
        "turned weights of the block before",
        DECODE,
        'stationary=chunk["turned"][at],',
        'stationary=chunk["turned"][max(at - 1, 0)],',
    ),
    Planted(
        "the last unit but one does not decay",
        DECODE,
        '(decays[1], before["product"]),',
        '(decays[0], before["product"]),',
    ),
    Planted(
        "the old state decays by the last unit's share alone",
        DECODE,
        "data=o, scale=decays[2])",
        "data=o, scale=decays[0])",
    ),
    Planted(
        "odd elements of 8-bit keys taken for even ones",
        DECODE,
        "offset=2 * at + odd,",
        "offset=2 * at,",
    ),
    Planted(
        "rows are shifted by unscaled maxima of 8-bit keys",
        DECODE,
        'spread_factors(call["k_scale"], -call["scale"])',
        'spread_factors(call["v_scale"], -call["scale"])',
    ),
    Planted(
        "rows are shifted by maxima without the cap",
        DECODE,
        'return -call["softcap"]',
        "return -1.0",
    ),
    Planted(
        "every row has the first one's window",
        DECODE,
        "pattern=[[G * r * n, 1], [1, samples * tokens], [0, count]],",
        "pattern=[[G * r * n, 1], [0, samples * tokens], [0, count]],",
    ),
    Planted(
        "values put off are left out",
        DECODE,
        'nisa.tensor_tensor(dst=o, data1=unit["product"], data2=o, op=nl.add)',
        "pass",
    ),
    Planted(
        "diagonal hides itself",
        PREFILL,
        "data=grid, op0=nl.greater, operand0=0.0",
        "data=grid, op0=nl.greater_equal, operand0=0.0",
    ),
    Planted(
        "diagonal lets the next position through",
        PREFILL,
        "data=grid, op0=nl.greater, operand0=0.0",
        "data=grid, op0=nl.greater, operand0=1.0",
    ),
    Planted(
        "no diagonal mask",
        PREFILL,
        'columns_of(tile["position"], tile["position"] + rows, key + at, key + end)',
        "0, 0",
    ),
    Planted(
        "range_select lets the next position through",
        PREFILL,
        "pattern=[[1, 1]], offset=reach, channel_multiplier=1",
        "pattern=[[1, 1]], offset=reach + 1, channel_multiplier=1",
    ),
    Planted(
        "range_select keeps a key that the window has left",
        PREFILL,
        'lowest = reach - call["window"] + 1',
        'lowest = reach - call["window"]',
    ),
    Planted(
        "window hides one key too many",
        PREFILL,
        "op0=nl.less_equal, operand0=127.0",
        "op0=nl.less_equal, operand0=128.0",
    ),
    Planted(
        "window starts a tile late",
        PREFILL,
        "(position - window + 1) // PARTITIONS * PARTITIONS",
        "(position - window + PARTITIONS) // PARTITIONS * PARTITIONS",
    ),
    Planted(
        "soft-capped logits are masked one position late",
        PREFILL,
        'offset=tile["position"] - low,',
        'offset=tile["position"] - low + 1,',
    ),
    Planted(
        "last key block skipped",
        PREFILL,
        "in range(low // key_block * key_block, high, key_block):",
        "in range(low, max(high - key_block, low + 1), key_block):",
    ),
    Planted(
        "every prompt reads the first one's keys",
        PREFILL,
        'return block["prompt"] * slots + begin,',
        "return begin,",
    ),
    Planted(
        "query heads start one a kv head apart",
        PREFILL,
        '* h + tiles[0]["kv"] * p) * d',
        '* h + tiles[0]["kv"]) * d',
    ),
    Planted("stored keys forgotten", PREFILL, "position = start + row", "position = row"),
    Planted(
        "old output not decayed between blocks",
        PREFILL,
        'operand0=unit["decay"],\n            op1=nl.add,\n            operand1=o,',
        "operand0=1.0,\n            op1=nl.add,\n            operand1=o,",
    ),
    Planted(
        "old sum not decayed between blocks",
        PREFILL,
        'operand0=unit["decay"],\n            op1=nl.add,\n            operand1=total,',
        "operand0=1.0,\n            op1=nl.add,\n            operand1=total,",
    ),
    Planted(
        "decay against the new maximum alone",
        PREFILL,
        'unit["before"] = state["shift"]',
        'unit["before"] = shift',
    ),
    Planted(
        "sum of the first exponentials alone",
        PREFILL,
        'for more in unit["sums"][1:]:',
        'for more in unit["sums"][2:]:',
    ),
    Planted(
        "every chunk meets the piece's first values",
        PREFILL,
        "moving=values[first + c][0:keys, :]",
        "moving=values[first][0:keys, :]",
    ),
    Planted(
        "the DMA turns the block's first piece again and again",
        PREFILL,
        'offset=span["column"],\n',
        "offset=0,\n",
    ),
    Planted(
        "sink left out of the sum",
        PREFILL,
        'nisa.tensor_tensor(dst=total, data1=total, data2=unit["extra"], op=nl.add)',
        "pass",
    ),
    Planted(
        "every head has the first one's sink",
        PREFILL,
        'head = unit["tile"]["kv"] * call["p"] + unit["head"]',
        "head = 0",
    ),
    Planted(
        "soft cap bends unscaled logits",
        PREFILL,
        'scale=call["scale"] / call["softcap"]',
        'scale=1.0 / call["softcap"]',
    ),
    Planted(
        "weights of unscaled logits",
        PREFILL,
        'bias=unit["shift"],\n        scale=call["factor"],\n        reduce_op',
        'bias=unit["shift"],\n        scale=1.0,\n        reduce_op',
    ),
    Planted(
        "second half of a wide head left out of q·K",
        PREFILL,
        "for i in range(len(queries)):",
        "for i in range(1):",
    ),
]
