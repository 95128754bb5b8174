"""The vocabulary of countdown, and its tokenizer in the Hugging Face format.

One token is one integer of 0 to 255, one sign, or one line break, so the step at which a model
chooses a number is one token. 272 tokens in all: a multiple of 16, which every tp divides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

PAD, BOS, EOS, UNK = range(4)
SIGNS = ("\n", "->", ":", "=", ";", "+", "-", "*", "/")
FIRST_SIGN = 4
FIRST_INTEGER = 16
VOCABULARY = (
    *("<pad>", "<bos>", "<eos>", "<unk>"),
    *SIGNS,
    *(f"<reserved_{i}>" for i in range(FIRST_INTEGER - FIRST_SIGN - len(SIGNS))),
    *(str(i) for i in range(256)),
)
TOKEN = {text: i for i, text in enumerate(VOCABULARY)}
LINE_BREAK = TOKEN["\n"]


def build() -> Tokenizer:
    """The tokenizer: words by spaces and line breaks, `<bos>` before a text.

    Decoding joins tokens with one space, and with none beside a line break, so it gives back every
    text that `task` writes, exactly.
    """
    tokenizer = Tokenizer(models.WordLevel(TOKEN, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(Regex("[ \t\r]+"), "removed"),
            # So that `12+5` reads as `12 + 5`.
            pre_tokenizers.Split(Regex("->|[-+*/:=;]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            # WordPiece without continuation pieces is: join with single spaces.
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(" ?\n ?"), "\n"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.add_special_tokens([text for text in VOCABULARY if text.startswith("<")])
    return tokenizer


def save(directory: Path, model_max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which transformers 4 and 5 both load."""
    build().save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
