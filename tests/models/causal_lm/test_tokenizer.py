from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.causal_lm import Tokenizer
from models.causal_lm.tokenizer import load_generation_defaults
from nki_kernels.errors import InputError
from tests.models.causal_lm.test_config import LLAMA

pytestmark = pytest.mark.null

WORDS = ["<unk>", "<s>", "</s>", "<user>", "<assistant>", "12", "5", "17", "+", "=", ";"]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('roles!') }}{% endif %}"
    "<s> <{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory without weights: config and a tokenizer of words."""
    from tokenizers import Tokenizer as Words
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Words(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(LLAMA))
    return path


@pytest.fixture
def copied(directory: Path, tmp_path: Path) -> Path:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def write_generation_config(directory: Path, **fields: Any) -> None:
    (directory / "generation_config.json").write_text(json.dumps(fields))


def test_text_there_and_back(directory: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    assert len(tokenizer) == len(WORDS)
    tokens = tokenizer.encode("12 + 5 = 17")
    assert tokens == [1, 5, 8, 6, 9, 7]
    assert tokenizer.decode([*tokens, 2]) == "12 + 5 = 17"


def test_chat(directory: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    expected = [1, 3, 5, 8, 6, 4]  # one BOS, the template's own
    assert tokenizer.encode_chat("12 + 5") == expected
    assert tokenizer.encode_chat([{"role": "user", "content": "12 + 5"}]) == expected


def test_chat_template_refuses(directory: Path) -> None:
    with pytest.raises(InputError, match=r"chat template refuses.*roles!"):
        Tokenizer.load(directory).encode_chat([{"role": "robot", "content": "5"}])


def test_no_chat_template(copied: Path) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (copied / name).unlink(missing_ok=True)
    config = json.loads((copied / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer.load(copied).encode_chat("12")


def test_eos_of_generation_config_comes_first(copied: Path) -> None:
    write_generation_config(
        copied, eos_token_id=[2, 4], temperature=0.6, top_k=40, top_p=0.9, do_sample=True
    )
    defaults = Tokenizer.load(copied).defaults
    assert defaults.eos_token_ids == (2, 4)
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (0.6, 40, 0.9)
    assert defaults.do_sample is True


def test_eos_of_config_then_of_tokenizer(copied: Path) -> None:
    assert Tokenizer.load(copied).eos_token_ids == (2, 7)  # LLAMA's
    (copied / "config.json").write_text(json.dumps(LLAMA | {"eos_token_id": None}))
    assert Tokenizer.load(copied).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eos_token_id": "two"}, "eos_token_id is 'two'"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": True}, "top_p is True"),
        ({"do_sample": 1}, "do_sample is 1"),
    ],
)
def test_malformed_generation_config(copied: Path, fields: dict[str, Any], message: str) -> None:
    write_generation_config(copied, **fields)
    with pytest.raises(InputError, match=message):
        load_generation_defaults(copied)


def test_recommendations_that_are_not_followed_are_named(copied: Path) -> None:
    write_generation_config(copied, repetition_penalty=1.05, min_p=0.1, bad_words_ids=[[3]])
    ignored = load_generation_defaults(copied).ignored
    assert ignored == ("bad_words_ids", "min_p", "repetition_penalty")
    write_generation_config(copied, repetition_penalty=1.0, min_p=None, num_beams=1, min_length=0)
    assert load_generation_defaults(copied).ignored == ()


def test_no_tokenizer(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer: none of tokenizer\.json"):
        Tokenizer.load(copied)


def test_broken_tokenizer(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="does not load") as error:
        Tokenizer.load(copied)
    assert "\n" not in str(error.value)


def test_code_of_a_repository_is_not_run(copied: Path) -> None:
    config = json.loads((copied / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.EvilTokenizer"]}
    config["tokenizer_class"] = "EvilTokenizer"
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    flag = copied / "ran"
    (copied / "evil.py").write_text(f"open({str(flag)!r}, 'w')\nEvilTokenizer = None\n")
    try:
        Tokenizer.load(copied)
    except InputError as error:
        assert "does not load" in str(error)
    assert not flag.exists()
