"""Benchmarks: `arpo bench NAME` measures one claim of this engine on the machine it runs on."""
