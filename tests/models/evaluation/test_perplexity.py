from __future__ import annotations

import math
from typing import Any

import pytest

from models.causal_lm import CacheShape, CausalLM
from models.evaluation import perplexity
from nki_kernels.errors import InputError
from tests.models import tiny

pytestmark = pytest.mark.null

TEXT = [(7 * i * i + 3 * i) % 50 for i in range(45)]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny.model()


def prefilled(model: CausalLM, context: list[int], token: int) -> float:
    """Nats of one token behind a context, by a prefill of its own."""
    model.allocate(CacheShape(1, 1, len(context), 1))
    inputs = ([context], [len(context)], [[0]], [0])
    logits = model(*(tiny.int32(each) for each in inputs))
    return -float(logits[0].double().log_softmax(0)[token])


@pytest.mark.parametrize(
    ("window", "stride"), [(45, 22), (128, 45), (20, 10), (20, 19), (20, 1), (2, 1), (13, 5)]
)
def test_each_token_once_behind_its_window(model: CausalLM, window: int, stride: int) -> None:
    expected = 0.0
    for begin in range(1, len(TEXT), stride):
        end = min(begin + stride, len(TEXT))
        for i in range(begin, end):
            expected += prefilled(model, TEXT[max(begin - (window - stride), 0) : i], TEXT[i])
    seen: list[int] = []
    result = perplexity(model, TEXT, window=window, stride=stride, progress=seen.append)
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.tokens == sum(seen) == len(TEXT) - 1
    assert result.perplexity == pytest.approx(math.exp(expected / 44), rel=1e-4)


def test_steps_are_cut_into_chunks(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    whole = perplexity(model, TEXT, window=40, stride=30)
    monkeypatch.setattr(sys.modules["models.evaluation.perplexity"], "CHUNK", 7)
    assert perplexity(model, TEXT, window=40, stride=30).nats == pytest.approx(whole.nats, rel=1e-6)


def test_defaults(model: CausalLM) -> None:
    result = perplexity(model, TEXT)
    assert (result.window, result.stride) == (45, 22)
    result = perplexity(model, [*TEXT * 3])
    assert (result.window, result.stride) == (128, 64)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([1], {}, "the text has 1 tokens"),
        ([1, 50], {}, "token 50, but the model's vocabulary ends at 49"),
        (TEXT, {"window": 129}, "window is 129; it must be 2 to 128"),
        (TEXT, {"window": 1}, "window is 1"),
        (TEXT, {"window": 10, "stride": 10}, "stride is 10; it must be 1 to 9"),
        (TEXT, {"stride": 0}, "stride is 0"),
    ],
)
def test_refused(model: CausalLM, tokens: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        perplexity(model, tokens, **options)
