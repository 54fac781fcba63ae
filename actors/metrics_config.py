"""Who is told the figures of each step, beside `metrics.jsonl`, which is always written."""

from typing import Annotated, Literal

from msgspec import Meta

from engine.config import Section


class WandbConfig(Section, frozen=True, kw_only=True):
    """A run of Weights & Biases; needs `pip install 'arpo-engine[wandb]'`. Its key is wandb's own business."""

    project: str
    """In which its runs lie."""
    entity: str | None = None
    """The team or person whose project it is; unset is wandb's own default."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes to the folder of the run, for `wandb sync`."""


class PrometheusConfig(Section, frozen=True, kw_only=True):
    """An endpoint `/metrics` with the figures of the last step, in Prometheus' text format, while the run lasts."""

    port: Annotated[int, Meta(ge=0, le=65535)]
    """0 takes a free one; the log says which."""
    host: str = "127.0.0.1"
    """Anything but loopback shows the figures to whoever reaches it: there is no key."""


class MetricsConfig(Section, frozen=True):
    """Sinks. One that fails is said once, and the run goes on without it."""

    tensorboard: bool = False
    """Write `tensorboard/` in the folder of the run; needs `pip install 'arpo-engine[tensorboard]'`."""
    wandb: WandbConfig | None = None
    prometheus: PrometheusConfig | None = None
