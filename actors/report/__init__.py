"""The report of a run: what its journal says, measured, drawn and told in one self-contained page."""
