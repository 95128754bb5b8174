"""From a model to compiled Neuron graphs.

So far: where the Neuron SDK is, what a device name means, and the plan of what would be compiled.
"""
