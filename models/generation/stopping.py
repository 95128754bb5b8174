"""When an answer ends: an end-of-sequence token, a stop string in its text, or its length.

Stop strings are looked for in the text and not among the tokens, because a string can be cut into
tokens in many ways. The tokens are kept as they were drawn; the text is cut before the string.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from models.generation.requests import FinishReason
from nki_kernels.errors import InputError

Detokenise = Callable[[Sequence[int]], str]

# What decoders write for bytes that are not, or not yet, a character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def cut(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string in `text` begins, or None."""
    return min((at for each in stop if (at := text.find(each)) >= 0), default=None)


def finish_reason(
    tokens: Sequence[int],
    max_new_tokens: int,
    eos: Collection[int],
    stop: Sequence[str] = (),
    detokenise: Detokenise | None = None,
) -> FinishReason | None:
    """Why an answer ends with its last token, or None.

    The whole text is decoded for each token where there are stop strings: a decoder may write a
    token differently beside others, so no shorter piece of it can be trusted.
    """
    if tokens[-1] in eos:
        return "eos"
    if stop and detokenise is not None and cut(detokenise(tokens), stop) is not None:
        return "stop"
    return "length" if len(tokens) >= max_new_tokens else None


def final_text(tokens: Sequence[int], stop: Sequence[str], detokenise: Detokenise) -> str:
    """The text of a finished answer, without its stop string and what follows."""
    text = detokenise(tokens)
    return text[: cut(text, stop)]


def check_stop(stop: Sequence[str], detokenise: Detokenise | None, vocab_size: int) -> None:
    """Refuses stop strings that can never match; needs the tokenizer, and no weights.

    A character that no token of the vocabulary writes is never written. That can be decided for
    ASCII, and for all characters of a vocabulary without pieces of characters (bytes, which a
    decoder shows as U+FFFD): those may join to any other character.

    Args:
        stop: the strings.
        detokenise: tokens to text.
        vocab_size: tokens are 0 to vocab_size - 1.

    Raises:
        InputError: one string in place of a list, an empty one, one with a character that is never
            written, or no `detokenise`.
    """
    if isinstance(stop, str):
        raise InputError(f"stop is the string {stop!r}; it must be a list of strings")
    if not stop:
        return
    if "" in stop:
        raise InputError("a stop string is empty; it would end every answer before it begins")
    if detokenise is None:
        raise InputError(
            f"stop strings ({stop[0]!r}) need text, but this generator was made without detokenise"
        )
    never = _never_written(
        {character for each in stop for character in each}, detokenise, vocab_size
    )
    for each in stop:
        missing = [character for character in each if character in never]
        if missing:
            raise InputError(
                f"stop string {each!r} can never match: no token of this model writes "
                f"{missing[0]!r}"
            )


def _never_written(
    characters: Collection[str], detokenise: Detokenise, vocab_size: int
) -> frozenset[str]:
    missing, pieces = set(characters), False
    for token in range(vocab_size):
        # Twice, because many decoders drop the space before the first word.
        text = detokenise((token, token))
        missing.difference_update(text)
        pieces = pieces or REPLACEMENT in text
        if pieces:
            missing = {character for character in missing if character.isascii()}
        if not missing:
            break
    return frozenset(missing)
