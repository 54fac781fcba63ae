"""SglangArgs: what `generator.args` says about GPUs, read as SGLang's own command line would read it."""

from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST = len("--tp")
"""An option may be cut short, as argparse allows."""


@dataclass(frozen=True, kw_only=True)
class SglangArgs:
    """The layout of one server.

    >>> args = SglangArgs.of(["--tp", "4", "--mem-fraction-static=0.8"])
    >>> args.tp_size, args.num_gpus, args.memory_fraction
    (4, 4, 0.8)
    """

    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    base_gpu: int = 0
    """The first GPU it takes."""
    memory_fraction: float | None = None
    """Share of a GPU for weights, keys and values; unset leaves it to SGLang."""
    wrong: tuple[str, ...] = ()
    """What cannot be read, a sentence each."""

    @classmethod
    def of(cls, args: Sequence[str]) -> "SglangArgs":
        wrong: list[str] = []

        def number(*names: str, least: int, default: int) -> int:
            text = _value(args, names)
            if text is None or (text.isdecimal() and int(text) >= least):
                return default if text is None else int(text)
            wrong.append(f"{names[0]} takes a whole number from {least} on, got {text!r}")
            return default

        fraction = _value(args, ("--mem-fraction-static",))
        if fraction is not None and not (_is_number(fraction) and 0 < float(fraction) < 1):
            wrong.append(f"--mem-fraction-static takes a number between 0 and 1, got {fraction!r}")
            fraction = None
        dp_size = number("--dp-size", "--data-parallel-size", least=1, default=1)
        return cls(
            tp_size=number("--tp-size", "--tensor-parallel-size", least=1, default=1),
            pp_size=number("--pp-size", "--pipeline-parallel-size", least=1, default=1),
            # With attention shared out over the data-parallel ranks these are among the tensor-parallel ones.
            dp_size=1 if "--enable-dp-attention" in args else dp_size,
            base_gpu=number("--base-gpu-id", least=0, default=0),
            memory_fraction=None if fraction is None else float(fraction),
            wrong=tuple(wrong),
        )

    @property
    def num_gpus(self) -> int:
        """That one server takes."""
        return self.tp_size * self.pp_size * self.dp_size


def _value(args: Sequence[str], names: Sequence[str]) -> str | None:
    """The last value given to an option; empty where its value is missing."""
    found: str | None = None
    for place, argument in enumerate(args):
        option, separator, value = argument.partition("=")
        if len(option) >= SHORTEST and any(name.startswith(option) for name in names):
            found = value if separator else next(iter(args[place + 1 : place + 2]), "")
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
