"""`arpo doctor`: everything that can be known about a run before anything of it is allocated."""
