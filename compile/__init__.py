"""From a model to compiled graphs: plan, trace, artefact, run; and where the Neuron SDK is."""
