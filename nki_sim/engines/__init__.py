"""The engines of a NeuronCore, one module each; every function is the definition of one
instruction."""
