"""Text to tokens and back, with the ids that end an answer and the chat template.

A thin coat over transformers' AutoTokenizer, which is imported only when one is loaded. A
repository's own Python code is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.causal_lm.config import token_ids
from models.causal_lm.directory import load_config, read_json
from nki_kernels.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class GenerationDefaults:
    """What a checkpoint recommends; None where its `generation_config.json` says nothing.

    `ignored` names what it recommends beside these, which would change answers and is not done.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    ignored: tuple[str, ...] = ()


# Settings of transformers' GenerationConfig that change answers and are not done here. Zero, false
# and empty are off; so is 1 where it multiplies, or counts beams.
NOT_DONE = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "top_h",
    "typical_p",
)
OFF_AT_ONE = ("guidance_scale", "num_beams", "repetition_penalty", "top_h", "typical_p")


class Tokenizer:
    """A checkpoint's tokenizer; make one with `Tokenizer.load`."""

    def __init__(self, inner: Any, defaults: GenerationDefaults) -> None:
        self._inner = inner
        self.defaults = defaults

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Reads the tokenizer and generation config of a checkpoint directory.

        Raises:
            InputError: there is no tokenizer, it is malformed, or it would need code of its own.
        """
        from transformers import AutoTokenizer

        if not any((directory / name).is_file() for name in TOKENIZER_FILES):
            raise InputError(f"{directory} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}")
        try:
            inner = AutoTokenizer.from_pretrained(
                str(directory), trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # transformers and tokenizers raise whatever they met
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"the tokenizer in {directory} does not load: {reason[0]}") from error
        return cls(inner, load_generation_defaults(directory, inner.eos_token_id))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.defaults.eos_token_ids

    def __len__(self) -> int:
        """Tokens, added ones included."""
        return len(self._inner)

    @property
    def vocabulary(self) -> int:
        """Tokens of its own vocabulary, without those added to it later."""
        return int(self._inner.vocab_size)

    def encode(self, text: str) -> list[int]:
        """The tokens of a plain prompt, with the special tokens (BOS) that the model expects."""
        # Not verbose: the network checks the length itself, with an error instead of a warning.
        return list(self._inner.encode(text, add_special_tokens=True, verbose=False))

    def encode_chat(self, messages: str | Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation, ready for the assistant's turn.

        Args:
            messages: the user's text, or messages with "role" and "content".

        Raises:
            InputError: the checkpoint has no chat template, or it refuses these messages.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not self._inner.chat_template:
            raise InputError(
                "this model's tokenizer has no chat template; give the prompt as plain text"
            )
        from jinja2 import TemplateError

        try:
            text = self._inner.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error
        # The template has written the special tokens.
        return list(self._inner.encode(text, add_special_tokens=False, verbose=False))

    def count_unknown(self, tokens: Sequence[int]) -> int:
        """How many of the tokens stand for text that the vocabulary cannot express."""
        unknown = self._inner.unk_token_id
        return 0 if unknown is None else sum(token == unknown for token in tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, special tokens left out."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


def load_generation_defaults(
    directory: Path, tokenizer_eos: int | None = None
) -> GenerationDefaults:
    """Reads `generation_config.json`; ids that it does not give come from config, then tokenizer.

    Raises:
        InputError: the file is malformed.
    """
    path = directory / "generation_config.json"
    raw = read_json(path) if path.is_file() else {}
    eos = token_ids(raw.get("eos_token_id"), f"{path}: eos_token_id")
    eos = eos or load_config(directory).eos_token_ids
    if not eos and tokenizer_eos is not None:
        eos = (tokenizer_eos,)
    for name, kinds in (
        ("temperature", (int, float)),
        ("top_k", (int,)),
        ("top_p", (int, float)),
        ("do_sample", (bool,)),
        ("max_new_tokens", (int,)),
    ):
        value = raw.get(name)
        if value is not None and (
            not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        ):
            raise InputError(f"{path}: {name} is {value!r}; it must be a {kinds[-1].__name__}")
    names = ("temperature", "top_k", "top_p", "do_sample", "max_new_tokens")
    ignored = tuple(
        name for name in NOT_DONE if raw.get(name) and not (name in OFF_AT_ONE and raw[name] == 1)
    )
    return GenerationDefaults(eos, **{name: raw.get(name) for name in names}, ignored=ignored)
