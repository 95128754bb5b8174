"""The engines of a NeuronCore, one module each; a function is the definition of an instruction."""
