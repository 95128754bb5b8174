from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from models.causal_lm import CacheShape, CausalLM
from models.generation import Generator, Request, Sampling, check_stop, generate
from models.generation.stopping import final_text, finish_reason
from nki_kernels.errors import InputError
from tests.models import tiny

pytestmark = pytest.mark.null

PIECES = ["a", "b", "ab", " a", "", "c\n"]


def pieces(tokens: Sequence[int]) -> str:
    """Tokens of several characters, and a decoder that drops the space before the first word."""
    return "".join(PIECES[token] for token in tokens).removeprefix(" ")


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("A") + token) for token in tokens)


def byte_pieces(tokens: Sequence[int]) -> str:
    """A vocabulary of the 256 bytes."""
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("tokens", "stop", "reason", "text"),
    [
        ([0, 1], ["ab"], "stop", ""),  # one string over two tokens
        ([1, 2], ["ba"], "stop", ""),  # the end of it inside a token
        ([5, 2], ["b"], "stop", "c\na"),
        ([5, 2], ["b", "ab"], "stop", "c\n"),  # the earliest
        ([0, 3, 4], [" a"], "stop", "a"),
        ([3], [" a"], None, None),  # the decoder writes no space there
        ([0, 0], ["b"], None, None),
        ([0, 0, 0], ["b"], "length", "aaa"),
        ([0, 0, 1], ["b"], "stop", "aa"),  # before the length
        ([0, 1, 4], ["b"], "eos", "a"),  # its text is cut all the same
    ],
)
def test_ends(tokens: list[int], stop: list[str], reason: str | None, text: str | None) -> None:
    assert finish_reason(tokens, 3, {4} if reason == "eos" else (), stop, pieces) == reason
    if text is not None:
        assert final_text(tokens, stop, pieces) == text


@pytest.mark.parametrize(
    ("stop", "detokenise", "vocab_size", "message"),
    [
        (["b", ""], pieces, 6, "is empty"),
        ("ab", pieces, 6, "must be a list"),
        (["a"], None, 6, "without detokenise"),
        (["ab", "ax"], pieces, 6, "'ax' can never match: no token .* writes 'x'"),
        (["\t"], pieces, 6, r"'\\t' can never match"),
        (["é"], pieces, 6, "'é' can never match"),
        (["A"], byte_pieces, 0x40, "'A' can never match"),
        (["A"], byte_pieces, 0x41, "'A' can never match"),
    ],
)
def test_stop_strings_that_are_refused(
    stop: Any, detokenise: Any, vocab_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_stop(stop, detokenise, vocab_size)


@pytest.mark.parametrize(
    ("stop", "detokenise", "vocab_size"),
    [
        ([], None, 6),
        (["c\n a"], pieces, 6),
        ([" "], pieces, 6),  # only written behind another token
        (["é", "日"], byte_pieces, 256),  # no token writes them, two or three together do
        (["A"], byte_pieces, 0x42),
    ],
)
def test_stop_strings_that_may_match(stop: Any, detokenise: Any, vocab_size: int) -> None:
    check_stop(stop, detokenise, vocab_size)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny.model()


def test_tokens_are_kept_and_the_text_is_cut(model: CausalLM) -> None:
    options: dict[str, Any] = {"samples": 16, "max_new_tokens": 12, "detokenise": letters}
    free = generate(model, [1, 2, 3], **options).samples
    stop = [letters(free[5].tokens[3:5]), letters(free[2].tokens[6:7])]
    cut = generate(model, [1, 2, 3], stop=stop, **options).samples
    for one, other in zip(free, cut, strict=True):
        text = letters(one.tokens)
        assert one.text == text
        ends = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
        end, begin = min(ends, default=(len(text), len(text)))
        assert other.tokens == one.tokens[:end]
        assert other.logprobs == pytest.approx(one.logprobs[:end], abs=1e-5)
        assert other.text == text[:begin]
        assert other.finish == ("stop" if ends else "length")
    assert cut[5].text == letters(free[5].tokens[:3])


def test_a_request_with_a_bad_stop_string_is_not_begun(model: CausalLM) -> None:
    with pytest.raises(InputError, match="never match"):
        generate(model, [1], max_new_tokens=2, stop=["é"], detokenise=letters)
    generator = Generator(model, CacheShape(1, 1, 4, 4), detokenise=letters)
    good, bad = (
        Request([1, 2], max_new_tokens=2, sampling=Sampling(0), stop=[stop]) for stop in ("B", "é")
    )
    with pytest.raises(InputError, match="never match"):
        generator.run_all([good, bad])
    assert not generator.step()
    assert generator.occupancy.prefills == 0
