"""The policy's network on Megatron-core: the model, attention over trees, log-probabilities of sharded vocabularies."""
