"""This project's network and generator behind the call of transformers' `model.generate`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.causal_lm import CacheShape, Tokenizer, find_checkpoint, load
from models.generation import Generator, Network, Request, Sampling, Speculation
from nki_kernels.errors import InputError

# Fields of transformers' GenerationConfig that have an effect here ...
SUPPORTED = (
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "num_return_sequences",
    "pad_token_id",
    "stop_strings",
    "temperature",
    "top_k",
    "top_p",
)
# ... and those that change no token, whatever they say.
_WITHOUT_EFFECT = ("bos_token_id", "decoder_start_token_id", "transformers_version", "use_cache")

# transformers' own defaults, which its release 5 leaves unset until `generate` is called.
_DEFAULTS = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
             "num_return_sequences": 1, "max_length": 20}  # fmt: skip


class BifurcatedForCausalLM:
    """A checkpoint in this project's network, with transformers' `generate`.

    Args:
        model: the network.
        generation_config: transformers' `GenerationConfig` of the checkpoint.
        detokenise: from tokens to text, for `stop_strings`.
    """

    def __init__(self, model: Network, generation_config: Any, detokenise: Any = None) -> None:
        self.model = model
        self.generation_config = generation_config
        self._detokenise = detokenise

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> BifurcatedForCausalLM:
        """Loads a Hugging Face directory or hub id; `options` as those of `models.causal_lm.load`.

        Raises:
            InputError: see `models.causal_lm.load`.
        """
        from transformers import GenerationConfig

        directory = find_checkpoint(name)
        config = GenerationConfig()
        if (directory / "generation_config.json").is_file():
            config = GenerationConfig.from_pretrained(str(directory), local_files_only=True)
        tokenizer = Tokenizer.load(directory)
        if config.eos_token_id is None:
            config.eos_token_id = list(tokenizer.eos_token_ids)
        return cls(load(directory, **options), config, tokenizer.decode)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        seed: int | None = None,
        speculation: Speculation | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Answers to prompts, each prompt's keys and values stored and read once.

        Args:
            inputs: i64[G, S], prompts, padded at the left.
            generation_config: in place of the checkpoint's.
            input_ids: the same as `inputs`.
            attention_mask: [G, S], 0 on padding.
            seed: of the counter-based random numbers; None takes one from torch's generator, so
                that `torch.manual_seed` decides.
            speculation: see `Generator`.
            kwargs: fields of a GenerationConfig, of which SUPPORTED have an effect.

        Returns:
            i64[G * num_return_sequences, S + longest answer]: the prompts as they came, the
            answers, and pad_token_id (else the first end-of-sequence token) behind those that end
            early.

        Raises:
            InputError: an argument that would change the answers and is not supported, by name; or
                one that is out of range.
        """
        prompts = input_ids if inputs is None else inputs
        if prompts is None or prompts.dim() != 2 or not prompts.numel():
            raise InputError("input_ids is missing; give prompts i64[prompts, tokens]")
        config = self._configure(generation_config, kwargs)
        n, S = _value(config, "num_return_sequences"), prompts.shape[1]
        new = config.max_new_tokens
        if new is None:
            new = _value(config, "max_length") - S
            if new < 1:
                raise InputError(
                    f"max_length is {_value(config, 'max_length')} and the prompts have {S} tokens "
                    "already; give max_new_tokens"
                )
        sampling = Sampling(temperature=0)
        if _value(config, "do_sample"):
            top_k = min(_value(config, "top_k"), self.model.config.vocab_size)
            sampling = Sampling(_value(config, "temperature"), top_k, _value(config, "top_p"))
        elif n > 1:
            raise InputError(
                f"num_return_sequences is {n}; without do_sample all would be the same"
            )
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        eos = _ids(config.eos_token_id)
        requests = [
            Request(prompt, n, new, sampling, (seed + j) % 2**64, _strings(config.stop_strings))
            for j, prompt in enumerate(_unpadded(prompts, attention_mask))
        ]
        drafts = speculation.draft_tokens if speculation else 0
        longest = max(len(request.prompt) for request in requests)
        shape = CacheShape(len(requests), n, longest, max(new - 1 + drafts, 1))
        generator = Generator(self.model, shape, eos, self._detokenise, speculation)
        answers = [sample.tokens for each in generator.run_all(requests) for sample in each.samples]
        pad = config.pad_token_id
        pad = pad if pad is not None else next(iter(eos), 0)
        width = max(map(len, answers))
        filled = torch.tensor([[*each, *[pad] * (width - len(each))] for each in answers])
        return torch.cat(
            (prompts.repeat_interleave(n, dim=0), filled.to(prompts.device, prompts.dtype)), dim=1
        )

    def _configure(self, given: Any, kwargs: dict[str, Any]) -> Any:
        """The settings of a call.

        Raises:
            InputError: names of settings that are not supported.
        """
        from transformers import GenerationConfig

        config = copy.deepcopy(self.generation_config if given is None else given)
        try:
            unused = config.update(**{k: v for k, v in kwargs.items() if v is not None})
        except ValueError as error:  # transformers' own checks
            raise InputError(f"generate: {error}") from error
        neutral = GenerationConfig().to_dict()
        refused = [
            name
            for name, value in config.to_dict().items()
            if name not in SUPPORTED
            and name not in _WITHOUT_EFFECT
            and not name.startswith("_")
            and value != neutral.get(name)
            and not _off(name, value)
        ]
        refused += [name for name in unused if name != "tokenizer"]
        if refused:
            raise InputError(
                f"generate: {', '.join(sorted(refused))} not supported; what has an effect: "
                f"{', '.join(SUPPORTED)}"
            )
        return config


def _off(name: str, value: Any) -> bool:
    """Whether a setting says what would happen anyway."""
    return value in (None, False, [], {}) or (
        value == 1 and name in ("num_beams", "num_beam_groups", "repetition_penalty",
                                "length_penalty", "encoder_repetition_penalty", "typical_p")
    )  # fmt: skip


def _value(config: Any, name: str) -> Any:
    value = getattr(config, name, None)
    return _DEFAULTS[name] if value is None else value


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _strings(value: Any) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _unpadded(prompts: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Each prompt's tokens.

    Raises:
        InputError: padding elsewhere than at the left.
    """
    if attention_mask is None:
        return [list(map(int, row)) for row in prompts]
    live = attention_mask.bool()
    if live.shape != prompts.shape or (live[:, :-1] & ~live[:, 1:]).any() or not live[:, -1].all():
        raise InputError(
            f"attention_mask {list(live.shape)} must have the prompts' shape "
            f"{list(prompts.shape)}, and zeros on padding at the left only"
        )
    return [row[mask].tolist() for row, mask in zip(prompts, live, strict=True)]
