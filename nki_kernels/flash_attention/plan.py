"""What the prefill kernel computes, as a list of units, before any instruction.

Plain integers only: the kernel reads them while it is traced. Imports nothing.
"""

from __future__ import annotations

PARTITIONS = 128


def make_units(shape, start, window, query_tiles, key_block, piece, core, cores):
    """The units of one core, in order: prompts, kv heads, passes, key blocks, tiles, heads.

    shape        (B, S, g, p)
    start        position of the first query
    window       positions a query sees, 0 for all
    query_tiles  tiles a pass; a pass loads each of its key blocks once
    key_block    keys a unit, at most; `piece` divides it
    core, cores  kv heads are shared out where `cores` divides g, else query tiles, in snake order
    """
    B, S, g, p = shape
    by_head = g % cores == 0
    units: list = []
    for prompt in range(B):
        for kv in range(g):
            if by_head and kv % cores != core:
                continue
            tiles = []
            for number in range((S + PARTITIONS - 1) // PARTITIONS):
                turn = number % (2 * cores)
                owner = turn if turn < cores else 2 * cores - 1 - turn
                if by_head or owner == core:
                    tiles.append(make_tile(prompt, kv, number * PARTITIONS, S, start, window))
            for at in range(0, len(tiles), query_tiles):
                add_pass(units, tiles[at : at + query_tiles], p, key_block, piece)
    return units


def make_tile(prompt, kv, row, S, start, window):
    """Up to 128 queries from `row`: their position, and the keys low..high that they see."""
    rows = min(PARTITIONS, S - row)
    position = start + row
    low = 0
    if window > 0:
        low = max(0, (position - window + 1) // PARTITIONS * PARTITIONS)
    return {
        "prompt": prompt,
        "kv": kv,
        "row": row,
        "rows": rows,
        "position": position,
        "low": low,
        "high": position + rows,
        "queries": [],
    }


def add_pass(units, tiles, p, key_block, piece):
    """The units of tiles whose states share SBUF while the keys before them stream past."""
    states: list = []
    groups: list = []
    together = max(1, 4 // p)  # tiles whose queries are turned together
    for i in range(len(tiles)):
        states.append([])
        for _ in range(p):
            states[i].append({"shift": None, "o": None, "total": None})
        fits = len(groups) > 0 and len(groups[-1]["tiles"]) < together
        if fits:
            before = groups[-1]["tiles"][-1]
            fits = before["row"] + PARTITIONS == tiles[i]["row"]
            fits = fits and tiles[i]["rows"] == PARTITIONS
        if not fits:
            groups.append({"tiles": [], "loaded": False})
        groups[-1]["tiles"].append(tiles[i])
        tiles[i]["group"] = groups[-1]
    low = tiles[0]["low"]
    high = tiles[-1]["high"]
    # Blocks start at multiples of their size, whatever the pass: that keeps the rounding of a row.
    for base in range(low // key_block * key_block, high, key_block):
        block = {
            "kv": tiles[0]["kv"],
            "prompt": tiles[0]["prompt"],
            "base": base,
            "end": min(base + key_block, high),
            "keys": [],
            "values": [],
        }
        for _ in range(base, block["end"], piece):
            block["keys"].append([])
            block["values"].append([])
        for i in range(len(tiles) - 1, -1, -1):  # the shortest last: nothing overlaps the last one
            begin = max(base, tiles[i]["low"])
            end = min(block["end"], tiles[i]["high"])
            if begin < end:
                spans = make_spans(base, begin, end, piece)
                for head in range(p):
                    unit = {
                        "tile": tiles[i],
                        "group": tiles[i]["group"],
                        "state": states[i][head],
                        "head": head,
                        "block": block,
                        "spans": [],
                        "width": end - begin,
                        "first": begin == tiles[i]["low"],
                        "last": end == tiles[i]["high"],
                    }
                    for span in spans:
                        unit["spans"].append(dict(span))
                    units.append(unit)


def make_spans(base, begin, end, piece):
    """Keys begin..end cut where pieces of the block at `base` end."""
    spans: list = []
    at = begin
    while at < end:
        number = (at - base) // piece
        stop = min(end, base + (number + 1) * piece)
        spans.append(
            {
                "piece": number,
                "from": at - base - number * piece,
                "size": stop - at,
                "key": at,
                "column": at - begin,
            }
        )
        at = stop
    return spans


def columns_of(low, high, begin, end):
    """The part of low..high that lies in begin..end."""
    return max(low, begin), min(high, end)
