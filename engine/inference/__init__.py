"""Inference backends behind one Protocol: scripted, embedded, SGLang."""
