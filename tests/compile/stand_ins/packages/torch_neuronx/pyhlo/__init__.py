"""Stand-in of torch_neuronx.pyhlo."""
