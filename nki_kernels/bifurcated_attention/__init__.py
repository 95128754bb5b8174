"""Decode attention of r samples a prompt that reads the prompt's keys and values once.

`reference` is the mathematics in torch, `kernel` the NKI program (import it only where `nki` is
bound), `validate` what both accept, `tuning` the tile sizes. Call it as
`nki_kernels.bifurcated_attention`.
"""
