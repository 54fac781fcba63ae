"""Stands for SGLang's kernel package, which has no build for CPUs: what the server imports from it is never called.

Only on the path of a CPU server (see `actors/sglang_server.py`).
"""

from collections.abc import Callable


def __getattr__(name: str) -> Callable[..., None]:
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def missing(*arguments: object, **options: object) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU build")

    return missing
