"""Stand-in of neuronx_distributed/trace; the real one exports an older ModelBuilder here."""
