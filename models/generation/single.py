"""One prompt, many answers, in one call: the smallest cache that holds them, and a run over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from models.causal_lm import CacheShape
from models.generation.drafts import Speculation
from models.generation.generator import Generator
from models.generation.network import Network
from models.generation.requests import check_request
from models.generation.results import Generation, ProgressCallback
from models.generation.sampling import Sampling
from models.generation.stopping import Detokenise, check_stop
from nki_kernels.errors import InputError

AttentionWay = Literal["auto", "bifurcated", "ordinary"]


def plan_shape(
    prompt_tokens: int,
    samples: int,
    max_new_tokens: int,
    attention: AttentionWay = "auto",
    draft_tokens: int = 0,
) -> CacheShape:
    """The smallest cache for one prompt.

    "auto" takes bifurcated attention for two samples or more; for one sample the two are the same.
    The last token drawn is never read back, so a suffix needs max_new_tokens - 1 slots; drafts that
    are verified behind it need their own.

    Raises:
        InputError: an unknown way, or a size below 1.
    """
    if attention not in ("auto", "bifurcated", "ordinary"):
        raise InputError(f"attention is {attention!r}; it must be auto, bifurcated or ordinary")
    S_dec = max(max_new_tokens - 1 + draft_tokens, 1)
    if attention == "ordinary":
        return CacheShape(G=samples, r=1, S_ctx=prompt_tokens, S_dec=S_dec)
    return CacheShape(G=1, r=samples, S_ctx=prompt_tokens, S_dec=S_dec)


def generate(
    model: Network,
    prompt: Sequence[int],
    *,
    samples: int = 1,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    attention: AttentionWay = "auto",
    eos_token_ids: Sequence[int] = (),
    stop: Sequence[str] = (),
    detokenise: Detokenise | None = None,
    progress: ProgressCallback | None = None,
    speculation: Speculation | None = None,
    shape: CacheShape | None = None,
) -> Generation:
    """Draws answers to one prompt, over the smallest cache that holds them or one of `shape`.

    See `plan_shape` for `attention`, and `Generator` and `Generator.run` for the rest.
    """
    check_request(model.config, prompt, samples, max_new_tokens, seed)
    check_stop(stop, detokenise, model.config.vocab_size)
    drafts = speculation.draft_tokens if speculation else 0
    if shape is None:
        shape = plan_shape(len(prompt), samples, max_new_tokens, attention, drafts)
    return Generator(model, shape, eos_token_ids, detokenise, speculation).run(
        prompt,
        samples=samples,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        stop=stop,
        progress=progress,
    )
