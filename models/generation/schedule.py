"""Who sits where next: free rows and idle groups to waiting samples, first come first served.

1. A free row goes to a waiting sample of the prompt that its group holds, also of another request
   with the same prompt: it starts from the prompt's stored logits, nothing is read again.
2. An idle group goes to the oldest request that has no row yet.
3. Idle groups that are left go to requests that want more rows than they have, unless their
   `groups` says otherwise; the context is copied.

A request that cannot begin holds back all behind it, so a stream of small or alike requests never
keeps a large one waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.generation import randomness
from models.generation.requests import Answers
from models.generation.slots import Group, Live, Slots

# Brings a prompt into a group of the cache, and says so in the group.
Load = Callable[[Group, tuple[int, ...]], None]


def admit(slots: Slots, queue: Sequence[Answers], load: Load) -> bool:
    """Seats what fits of `queue`, oldest first; whether anybody was seated."""
    seated = False
    for answers in queue:
        seated |= _join(slots, answers)
        if slots.waiting(answers) and not slots.held(answers):
            if not _take(slots, queue, answers, load):
                return seated
            seated = True
    for answers in queue:
        while slots.waiting(answers) and _may_spread(slots, answers):
            if not _take(slots, queue, answers, load):
                return seated
            seated = True
    return seated


def _may_spread(slots: Slots, answers: Answers) -> bool:
    most = answers.request.groups
    return most is None or slots.held(answers) < most


def _join(slots: Slots, answers: Answers) -> bool:
    """Fills free rows of groups in use that hold the prompt."""
    seated = False
    for group in slots.groups:
        if group.prompt != answers.prompt or group.idle:
            continue
        if group.holds(answers) or _may_spread(slots, answers):
            seated |= _fill(slots, group, answers)
    return seated


def _take(slots: Slots, queue: Sequence[Answers], answers: Answers, load: Load) -> bool:
    """Gives `answers` an idle group: one with its prompt, else one that nobody here wants."""
    idle = [group for group in slots.groups if group.idle]
    if not idle:
        return False
    wanted = {each.prompt for each in queue}
    group = min(idle, key=lambda each: (each.prompt != answers.prompt, each.prompt in wanted))
    if group.prompt != answers.prompt:
        load(group, answers.prompt)
    return _fill(slots, group, answers)


def _fill(slots: Slots, group: Group, answers: Answers) -> bool:
    """Seats waiting samples in the free rows of a group."""
    free = [i for i, row in enumerate(group.rows) if row is None]
    starting = slots.waiting(answers)[: len(free)]
    for i, sample in zip(free, starting, strict=False):
        stream = answers.streams[sample.index]
        u = randomness.uniforms(stream, 0, answers.request.max_new_tokens)
        group.rows[i] = Live(answers, sample, u)
    return bool(starting)
