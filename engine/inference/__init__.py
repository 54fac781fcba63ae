"""Inference backends behind one Protocol: scripted, embedded, SGLang. Each heavy import waits behind its module."""
