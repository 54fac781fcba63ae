"""A run as a page, while it lives and afterwards: its journal followed, folded, and shown by a browser."""
