"""Ordinary decode attention: every sample reads the context for itself, as public stacks do.

The baseline that bifurcated attention is held against, and the path that the switch takes where
bifurcation does not pay. `kernel` is the NKI program (import it only where `nki` is bound),
`validate` what it accepts, `tuning` the step sizes. Its reference is that of
`bifurcated_attention`, whose arguments it takes.
"""
