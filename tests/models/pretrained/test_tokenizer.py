from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.pretrained.countdown import task, tokenizer

pytestmark = pytest.mark.null

TOKENIZER = tokenizer.build()
words = st.sampled_from([w for w in tokenizer.VOCABULARY if not w.startswith("<") and w != "\n"])
lines = st.lists(words, min_size=1, max_size=8).map(" ".join)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What transformers' AutoTokenizer makes of the files."""
    from transformers import AutoTokenizer

    directory: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory, 512)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(str(directory))


def test_one_token_an_integer() -> None:
    assert len(tokenizer.VOCABULARY) == len(set(tokenizer.VOCABULARY)) == 272
    for i in (0, 1, 9, 10, 100, 255):
        assert TOKENIZER.encode(str(i), add_special_tokens=False).ids == [16 + i]


@given(text=st.lists(lines, min_size=1, max_size=4).map("\n".join))
def test_decoding_gives_back_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text.replace("\n", " \n ").split(" "))
    assert TOKENIZER.decode(ids) == text


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_prompts_survive_transformers(loaded: Any, seed: int) -> None:
    text = task.example_prompt(seed)
    ids = loaded(text).input_ids
    assert ids[0] == tokenizer.BOS == loaded.bos_token_id
    assert tokenizer.UNK not in ids
    assert loaded.decode(ids, skip_special_tokens=True) == text
    assert loaded.decode(ids[1:]) == text


def test_special_tokens(loaded: Any) -> None:
    assert loaded.is_fast
    assert len(loaded) == 272
    assert (loaded.pad_token_id, loaded.bos_token_id) == (tokenizer.PAD, tokenizer.BOS)
    assert (loaded.eos_token_id, loaded.unk_token_id) == (tokenizer.EOS, tokenizer.UNK)
    ids = [tokenizer.TOKEN["7"], tokenizer.EOS]
    assert loaded.decode(ids, skip_special_tokens=True) == "7"
    assert loaded("256 -3.5 word").input_ids.count(tokenizer.UNK) == 3


def test_spaces_are_not_needed() -> None:
    tight = TOKENIZER.encode("12 5->7:12-5=7;3*2=6").ids
    spaced = TOKENIZER.encode("12 5 -> 7 : 12 - 5 = 7 ; 3 * 2 = 6").ids
    assert tight == spaced
