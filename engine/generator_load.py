"""What generators have done so far, as one event."""

from collections.abc import Sequence

from engine.events import GeneratorsMeasured
from engine.interfaces import Generator


async def measured(generators: Sequence[Generator]) -> GeneratorsMeasured:
    """The sums over all generators since they started."""
    found = [await generator.statistics() for generator in generators]
    return GeneratorsMeasured(
        busy_s=sum(one.busy_s for one in found), num_sampled_tokens=sum(one.num_sampled_tokens for one in found)
    )
