"""SglangConfig: SGLang servers as generators, launched for the run or already there."""

from typing import Literal

from engine.config import Positive, PositiveFloat, Section
from engine.errors import ConfigError


class SglangConfig(Section, frozen=True, tag="sglang", tag_field="kind"):
    """How to reach SGLang, and how to start it where no server is named."""

    urls: tuple[str, ...] = ()
    """Servers that are there already, such as `http://10.0.0.7:30000`; unset launches `runtime.num_generators`."""
    python: str | None = None
    """Interpreter of the environment that has sglang; unset is the one this runs in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where the interpreter sees one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is float32 on a CPU and the model's own on a GPU."""
    max_kv_tokens: Positive | None = None
    """Tokens whose keys and values a server keeps; also bounds the length of one request. Unset leaves it to SGLang
    on a GPU, and is 65,536 on a CPU, where SGLang would take all memory."""
    args: tuple[str, ...] = ()
    """Further arguments of `sglang.launch_server`, such as `["--tp", "8", "--mem-fraction-static", "0.8"]`."""
    top_logprobs: Positive = 20
    """n: alternatives reported with each sampled token, which bound its entropy; the whole vocabulary is exact."""
    weights: Literal["disk", "tensor", "group"] = "disk"
    """How new weights reach a server: it reads the published folder (also shared memory), they are sent over HTTP, or
    they are broadcast over a process group (gloo on a CPU, NCCL on GPUs)."""
    salt_by_version: bool = True
    """Never read a prefix that older weights computed: `retract` and `drain` flush the cache, and `in_place`, which
    cannot, changes the key under which it is read. False exists to show what goes wrong then, and for nothing else."""
    api_key: str | None = None
    """Sent as a bearer token, and given to launched servers."""
    connect_timeout_s: PositiveFloat = 10.0
    """How long a server may take to answer anything but a generation."""

    def __post_init__(self) -> None:
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"a server's address begins with http:// or https://, got {url!r} - at $.urls")
