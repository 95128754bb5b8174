"""Stand-in of neuronx_distributed/parallel_layers."""
