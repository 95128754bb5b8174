"""The partial softmax as a value: states over disjoint sets of keys, and how two of them join.

`reference` is the algebra in torch, `kernel` the same on a NeuronCore (import it only where `nki`
is bound). README.md states the laws.
"""
