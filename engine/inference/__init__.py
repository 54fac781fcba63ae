"""Inference backends behind one Protocol: scripted, embedded, SGLang. Each heavy import waits behind its module."""

from engine.inference.embedded import EmbeddedConfig, EmbeddedGenerator
from engine.inference.router import Router
from engine.inference.scripted import Script, ScriptedGenerator, random_script

__all__ = ["EmbeddedConfig", "EmbeddedGenerator", "Router", "Script", "ScriptedGenerator", "random_script"]
