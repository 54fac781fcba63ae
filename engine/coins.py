"""Every coin of a run: a number in [0, 1) or a seed, drawn from (run seed, who, what) and from nothing else.

The same names give the same coin in any process, order or machine, so a decision can be made anywhere and checked
against the journal later.
"""

import hashlib


def seed_of(run_seed: int, *names: str | int) -> int:
    """A 63-bit seed for the given names.

    >>> seed_of(0, "e0-r17", 3) == seed_of(0, "e0-r17", 3) != seed_of(1, "e0-r17", 3)
    True
    """
    # repr keeps 1 and "1", and ("a", "bc") and ("ab", "c"), apart.
    digest = hashlib.blake2b(repr((run_seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def coin(run_seed: int, *names: str | int) -> float:
    """A uniform number in [0, 1) for the given names."""
    return (seed_of(run_seed, *names) >> 10) / float(1 << 53)
