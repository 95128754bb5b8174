"""Causal attention of whole prompts, for prefill.

`reference` is the mathematics in torch, `kernel` the NKI program (import it only where `nki` is
bound), `validate` what both accept, `tuning` the tile sizes. Call it as
`nki_kernels.flash_attention`.
"""
