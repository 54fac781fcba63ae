"""Data only: the configurations that ship, found as `importlib.resources.files("actors.configs")`."""
