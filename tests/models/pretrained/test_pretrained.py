from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from models.causal_lm import Tokenizer, load_config
from models.pretrained import DEFAULT_MODEL, checker, example_prompt
from models.pretrained.countdown import tokenizer, train
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


def test_the_checkpoint_is_whole_and_small() -> None:
    size = sum(path.stat().st_size for path in DEFAULT_MODEL.iterdir())
    assert size <= 12_000_000
    config = load_config(DEFAULT_MODEL)
    assert (config.layers, config.h, config.g, config.d) == (6, 4, 2, 64)
    assert (config.hidden_size, config.vocab_size) == (256, len(tokenizer.VOCABULARY))
    with safe_open(DEFAULT_MODEL / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_the_tokenizer_shipped_is_the_one_that_the_script_makes(tmp_path: Path) -> None:
    tokenizer.save(tmp_path, train.MAX_POSITIONS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shipped = json.loads((DEFAULT_MODEL / name).read_text())
        assert shipped == json.loads((tmp_path / name).read_text()), name


def test_an_answer_ends_in_either_of_two_tokens() -> None:
    shipped = Tokenizer.load(DEFAULT_MODEL)
    assert set(shipped.eos_token_ids) == {tokenizer.EOS, tokenizer.LINE_BREAK}
    assert shipped.defaults.temperature == 1.0


def test_the_example_prompt_fits() -> None:
    tokens = Tokenizer.load(DEFAULT_MODEL).encode(example_prompt())
    assert tokenizer.UNK not in tokens
    assert len(tokens) + 24 <= train.MAX_POSITIONS


def test_the_checker_of_the_default_model() -> None:
    check = checker(DEFAULT_MODEL)
    assert check is not None
    assert check("1 2 3 4 5 -> 15 :", "3 * 5 = 15") is True
    assert check("1 2 3 4 5 -> 15 :", "3 * 4 = 15") is False
    assert check("Once upon a time", "3 * 5 = 15") is None


def test_a_checkpoint_without_a_task_has_no_checker(tmp_path: Path) -> None:
    assert checker(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"task": "chess"}', '{"task": ["countdown"]}']
)
def test_a_malformed_task_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(InputError, match=r"task\.json"):
        checker(tmp_path)
