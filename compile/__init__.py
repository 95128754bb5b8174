"""From a model to compiled Neuron graphs.

So far: where the Neuron SDK is, and what a device name means.
"""
