"""Weights and checkpoints on disk: Hugging Face folders, versions for generators, shards that any layout reads."""
