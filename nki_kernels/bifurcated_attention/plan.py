"""What the decode kernel does in which order: a list of jobs, each a chunk of keys against one row
tile. Decided while the kernel is traced, from shapes alone; nothing here runs on the core.

Legal in NKI 0.2 to 0.7. Imports only pieces under that rule.
"""

from __future__ import annotations

from nki_kernels.attention_state.kernel import PARTITIONS

FIRST_KEYS = 1024  # of a call's first block a load: compute starts with those
FEW_ROWS = 64  # a product of the PE array takes the time of as many columns, or more


def share_out(call, core, cores):
    """What a core does: ranges of groups, samples and kv heads, of context slots, and suffixes.

    Cores share out kv heads where their number allows it, else groups: either way each key is
    loaded once. Else, where few rows meet a long context, they share out its slots, the last core
    with the suffixes, and join their states: fewer rows a core would save it nothing. Else they
    share out samples, or the row tiles of a single one.
    """
    G, r, n, h, _ = call["q"].shape
    g = call["k_ctx"].shape[0]
    slots = call["k_ctx"].shape[2] // G
    own: dict = {"groups": (0, G), "samples": (0, r), "kvs": (0, g), "slots": (0, slots)}
    own["suffixes"] = True
    own["joined"] = False  # states of several cores make one
    own["tiles"] = (0, 1)
    if g % cores == 0:
        own["kvs"] = share(g, core, cores)
    elif G % cores == 0:
        own["groups"] = share(G, core, cores)
    elif cores == 2 and r * n * (h // g) <= FEW_ROWS and slots >= call["join_slots"]:
        rows = call["k_suf"].shape[1] // G
        cut = min(slots, (slots + rows + 2 * PARTITIONS - 1) // (2 * PARTITIONS) * PARTITIONS)
        own["slots"] = (0, cut) if core == 0 else (cut, slots)
        own["suffixes"] = core == 1
        own["joined"] = True
    elif r >= cores:
        own["samples"] = share(r, core, cores)
    else:
        own["tiles"] = (core, cores)
    return own


def make_passes(own, n, p, tile_samples, tiles_per_pass, heads_per_pass):
    """The passes of one core, in order: (group, row tiles, first kv head, kv heads) each."""
    tiles = row_tiles(own["samples"], n, p, tile_samples)
    first, last = share(len(tiles), own["tiles"][0], own["tiles"][1])
    tiles = tiles[first:last]
    passes = []
    for group in range(own["groups"][0], own["groups"][1]):
        for first in range(0, len(tiles), tiles_per_pass):
            batch = tiles[first : min(first + tiles_per_pass, len(tiles))]
            for kv in range(own["kvs"][0], own["kvs"][1], heads_per_pass):
                passes.append((group, batch, kv, min(heads_per_pass, own["kvs"][1] - kv)))
    return passes


def share(count, core, cores):
    """The part of 0..count that is a core's."""
    return count * core // cores, count * (core + 1) // cores


def row_tiles(samples, n, p, most):
    """Cut the rows (sample, token, head) of a kv head into tiles of at most 128, in that order.

    Of at most `most` samples. A tile is (sample, samples, token, tokens, head, heads): whole
    samples where they fit, else tokens of one sample, else heads of one token.
    """
    tiles = []
    if n * p <= PARTITIONS:
        step = min(most, PARTITIONS // (n * p))
        for s in range(samples[0], samples[1], step):
            tiles.append((s, min(step, samples[1] - s), 0, n, 0, p))
    else:
        tokens = max(1, PARTITIONS // p)
        for s in range(samples[0], samples[1]):
            for t in range(0, n, tokens):
                for i in range(0, p, PARTITIONS):
                    tiles.append((s, 1, t, min(tokens, n - t), i, min(PARTITIONS, p - i)))
    return tiles


def tile_rows(tile):
    """Rows of a tile."""
    return tile[1] * tile[3] * tile[5]


def new_room(group, tile, kv, heads, g, sizes):
    """What the chunks of one row tile share in one pass over `heads` kv heads from `kv` on."""
    return {
        "group": group,
        "tile": tile,
        "kv": kv,
        "heads": heads,
        "g": g,
        "sizes": sizes,
        "rows": tile_rows(tile),
        "loaded": [],  # queries, rows on partitions
        "queries": [],  # SBUF views [up to 128 of d, rows] a kv head, once loaded
        "starts": [],  # what a window's rows see first, [rows, 1], where rows lie on partitions
        "halves": [],  # SBUF views [d / 2, rows] of even and of odd elements, where keys lie so
        "sinks": [],
        "dead": [],  # masks of the suffix chunks, made for the first head
        "results": [],
    }


def context_blocks(slots, block_slots, ramps, first, last):
    """Cut a context into blocks that are loaded at once: 128 partitions of some consecutive keys.

    Consecutive, so that V is read in long runs. A call's first head starts with blocks of ramps[0]
    slots a partition that double, so that compute starts early, and its last head ends with blocks
    that halve down to ramps[1], so that little is left to compute once the last one has come. What
    fills no partitions evenly is a block of fewer.
    """
    whole = slots // PARTITIONS
    head = []
    tail = []
    up, down = ramps
    while up < block_slots or down < block_slots:
        most = min(block_slots - 1, whole // 4)
        if first and up <= most:
            head.append(up)
            whole -= up
        if last and down <= min(most, whole):
            tail.append(down)
            whole -= down
        up = up * 2
        down = down * 2
    cuts = head
    while whole > 0:
        cuts.append(min(block_slots, whole))
        whole -= cuts[-1]
    for i in range(len(tail)):
        cuts.append(tail[len(tail) - 1 - i])
    blocks = []
    start = 0
    for size in cuts:
        blocks.append({"start": start, "slots": size, "parts": PARTITIONS})
        start += size * PARTITIONS
    if start < slots:
        blocks.append({"start": start, "slots": 1, "parts": slots - start})
    return blocks


def plan_head(jobs, call, rooms, head, sizes, first, last):
    """Append the jobs of one kv head: its context block by block, so that each is loaded once, then
    the row tiles' suffixes, whose loads outlast their compute and are hidden behind the context's.
    With `late_suffixes` those of the head before come there, and these wait in call["late"].
    """
    block_slots, ramps, chunk_columns = sizes
    start, end = call["own"]["slots"]
    blocks = context_blocks(end - start, block_slots, ramps, first, last)
    for cut in blocks:
        cut["start"] += start
    states = []
    for _ in rooms:
        states.append(
            {
                "top": [],  # maxima as logits are shifted by them, unscaled
                "highest": [],  # exact ones, where they are to be returned
                "exact": len(call["stores"]) > 1,
                "jobs": 0,
                "shift": [],  # what the state is shifted by, where that is not the last of "top"
                "cuts": blocks,  # row_chunks.py
                "tops": [],
                "bias": [],
            }
        )
    if call["row_chunks"]:
        plan_rows(jobs, call, rooms, states, head, blocks, [chunk_columns, first, last])
        return
    for cut in blocks:
        block = {"cut": cut, "keys": []}
        for t in range(len(rooms)):
            plan_block(jobs, rooms[t], states[t], head, block, chunk_columns)
    jobs.extend(call["late"])
    call["late"] = []
    suffixes = jobs
    if call["late_suffixes"]:
        suffixes = call["late"]
    if call["own"]["suffixes"]:
        for t in range(len(rooms)):
            plan_suffix(suffixes, rooms[t], states[t], head, chunk_columns)


def plan_rows(jobs, call, rooms, states, head, cuts, order):
    """Append the jobs of one kv head whose context chunks have query rows on partitions.

    As many blocks as stay in SBUF are met by one row tile after the other, some blocks a chunk:
    where a call starts or ends one, elsewhere up to `unit_slots` of keys a partition. A tile's
    suffixes follow at once, so that only the last tile's end is not hidden.
    """
    chunk_columns, first, last = order
    if first and len(cuts) > 0 and not call["old"]:
        cuts[0]["step"] = FIRST_KEYS
    resident: list = [[]]
    held = 0
    for cut in cuts:
        if held > 0 and held + cut["slots"] > call["resident_slots"]:
            resident.append([])
            held = 0
        resident[-1].append({"cut": cut, "keys": []})
        held += cut["slots"]
    for i in range(len(resident)):
        blocks = resident[i]
        for t in range(len(rooms)):
            starts = first and i == 0 and t == 0
            final = i + 1 == len(resident)
            ends = last and final and t + 1 == len(rooms)
            units = join_blocks(
                blocks, call["unit_slots"], singles(len(blocks), starts, ends, call["split_units"])
            )
            start = len(jobs)
            suffix_at = len(units)
            if ends and call["split_units"] and len(units) > 0:
                suffix_at -= 1  # the last job is one of the context: less is left to do after it
            for j in range(len(units) + 1):
                if j == suffix_at and final and call["own"]["suffixes"]:
                    plan_suffix(jobs, rooms[t], states[t], head, chunk_columns)
                if j < len(units):
                    plan_unit(jobs, rooms[t], states[t], head, units[j], call["split_units"])
                    jobs[-1]["ends"] = call["old"] and ends and j + 1 == len(units)
            if ends and call["split_units"] and plain(call):
                put_off(jobs[start:], i > 0)


def plain(call):
    """Whether a state's values over its sum are all that a call wants to know of it."""
    return not call["with_sinks"] and not call["own"]["joined"] and len(call["stores"]) == 1


def put_off(jobs, begun):
    """Leave the last sums of a call with split units to `closing.end_rows`.

    Those of its last unit, of the suffix chunk before it and of the unit before that, where the
    state has begun by then.

    Args:
        jobs: of the last row tile, those in reach of its last blocks.
        begun: whether it has met others.
    """
    units = 1 if begun else 0
    for job in jobs:
        if job["context"] and job["closes"]:
            units += 1
    if units < 3 or len(jobs) < 3:
        return
    last = jobs[len(jobs) - 1]
    suffix = jobs[len(jobs) - 2]
    before = jobs[len(jobs) - 3]
    if suffix["context"] or not last["context"] or not before["context"]:
        return
    before["unit"]["put_off"] = True
    suffix["put_off"] = True
    last["unit"]["put_off"] = True
    last["ending"] = {"unit": before["unit"], "suffix": suffix}


def plan_unit(jobs, room, state, head, blocks, split):
    """Append the jobs of blocks that share one maximum: one of all, or with `split` one a block."""
    pieces: list = [blocks]
    if split:
        pieces = []
        for block in blocks:
            pieces.append([block])
    unit: dict = {"blocks": blocks, "weighed": 0, "folded": 0, "put_off": False}
    for i in range(len(pieces)):
        state["jobs"] += 1
        jobs.append(
            {
                "context": True,
                "room": room,
                "state": state,
                "head": head,
                "blocks": pieces[i],
                "unit": unit,
                "ends": False,  # the call, on NeuronCore-v2
                "closes": i + 1 == len(pieces),  # the unit
                "by_dma": False,
                "copied_by": "",
            }
        )


def singles(count, starts, ends, split):
    """Of so many blocks, those before the first number and from the second on are units alone.

    Where a call starts or ends: half of them, or few if units are split, as their jobs are not
    larger than these.
    """
    first = 0
    last = count
    if starts:
        first = 2 if split else count // 2 + 1
    if ends:
        last = count - 1 if split else count // 2
    return first, last


def join_blocks(blocks, slots, alone):
    """Consecutive blocks in units of at most `slots`; single ones before and behind `alone`."""
    units: list = []
    held = 0
    for i in range(len(blocks)):
        size = blocks[i]["cut"]["slots"]
        single = i < alone[0] or i >= alone[1]
        if len(units) == 0 or single or i == alone[0] or held + size > slots:
            units.append([])
            held = 0
        units[-1].append(blocks[i])
        held += size
    return units


def chosen(at, share):
    """Whether number `at` is among `share` of every 8, evenly spread."""
    return (at + 1) * share // 8 > at * share // 8


def pitch_of(rows):
    """Columns between the tiles of a chunk: the power of two from `rows` on, at most 128.

    It divides a PSUM bank, so that no tile crosses from one bank into the next.
    """
    pitch = 1
    while pitch < rows:
        pitch = pitch * 2
    return pitch


def plan_block(jobs, room, state, head, block, chunk_columns):
    """Append the jobs of one row tile and block of the context."""
    slots = block["cut"]["slots"]
    tiles = max(1, chunk_columns // pitch_of(room["rows"]))
    for first in range(0, slots, tiles):
        state["jobs"] += 1
        jobs.append(
            {
                "context": True,
                "room": room,
                "state": state,
                "head": head,
                "block": block,
                "blocks": [block],
                "first": first,
                "tiles": min(tiles, slots - first),
                "parts": block["cut"]["parts"],
            }
        )


def plan_suffix(jobs, room, state, head, chunk_columns):
    """Append the jobs of one row tile's suffixes for one kv head."""
    sizes = room["sizes"]
    tiles = min(sizes["step"], max(1, chunk_columns // pitch_of(room["rows"])))
    for first in range(0, sizes["slots"], tiles):
        state["jobs"] += 1
        jobs.append(
            {
                "context": False,
                "blocks": [],
                "room": room,
                "state": state,
                "head": head,
                "first": first,
                "tiles": min(tiles, sizes["slots"] - first),
                "number": first // tiles,
                "parts": sizes["parts"],
            }
        )


def suffix_sizes(call, tile, suffix_slots, suffix_tiles):
    """How a row tile's suffix rows lie on partitions.

    A sample's S_dec rows take `span` partitions with `slots` consecutive rows each; `together`
    samples lie side by side, in `blocks` blocks of as many.
    """
    S_dec = call["k_suf"].shape[1] // (call["suffix_len"].shape[0] * call["suffix_len"].shape[1])
    span = 1
    for candidate in range(1, min(S_dec, PARTITIONS) + 1):
        if S_dec % candidate == 0 and S_dec // candidate >= suffix_slots:
            span = candidate
    samples = tile[1]
    together = 1
    for candidate in range(1, min(samples, PARTITIONS // span) + 1):
        if samples % candidate == 0:
            together = candidate
    return {
        "S_dec": S_dec,
        "n": call["q"].shape[2],
        "span": span,
        "slots": S_dec // span,
        "together": together,
        "blocks": samples // together,
        "parts": span * together,
        "step": suffix_tiles,
    }
