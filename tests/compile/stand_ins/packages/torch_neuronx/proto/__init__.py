"""Stand-in of torch_neuronx.proto."""
