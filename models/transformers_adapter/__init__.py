"""transformers from the inside, for code that calls `model.generate`.

Two ways in. `share_context` gives a transformers model a cache that holds a prompt once, with
bifurcated attention over it (`attn_implementation="bifurcated"`, which importing this registers).
`BifurcatedForCausalLM` is this project's own network behind the same `generate` call.
"""

from __future__ import annotations

from models.transformers_adapter.adapter import BifurcatedForCausalLM
from models.transformers_adapter.attention import NAME, register, share_context
from models.transformers_adapter.cache import SharedContextCache

register()

__all__ = ["NAME", "BifurcatedForCausalLM", "SharedContextCache", "share_context"]
