"""What became of calls: counters of each tool, and of all that were no calls of any."""

import msgspec

from tools.latency import Latency


class ToolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one tool since the start. Produced by the executor, consumed by metrics and reports."""

    num_calls: int = 0
    """Calls of this tool, malformed ones included."""
    num_ok: int = 0
    """Executions that went well; the next three are of executions too."""
    num_error: int = 0
    num_timeout: int = 0
    num_malformed: int = 0
    """Calls whose arguments do not fit; most of them are not executed."""
    num_cached: int = 0
    """Calls answered by an earlier execution."""
    num_shared: int = 0
    """Calls answered by an execution that another call had begun."""
    num_refused: int = 0
    """Came when the executor was closed or closing, or their host was being left alone."""
    num_cancelled: int = 0
    num_retries: int = 0
    """Attempts behind the first one of an execution."""
    num_cut: int = 0
    """Results that were longer than `max_result_chars`."""
    num_waiting: int = 0
    num_running: int = 0
    queued_s: float = 0.0
    """Seconds spent before execution, summed over executions."""
    busy_s: float = 0.0
    """Seconds of execution, summed."""
    slowest_s: float = 0.0
    latency: Latency = Latency()
    """Of executions, without queueing."""


class ExecutorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of an executor."""

    tools: dict[str, ToolStatistics]
    num_unknown: int = 0
    """Calls of tools that do not exist."""
    num_malformed: int = 0
    """Calls the renderer could not read, of any tool."""
