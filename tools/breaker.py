"""Breaker: a host that fails again and again is left alone for a while, so that nobody waits for it.

closed ──failures in a row──► open ──pause──► one probe ──ok──► closed
                                ▲                 │
                                └──pause doubled──┘ failed
"""

from typing import Literal

DEFAULT_THRESHOLD = 5
DEFAULT_PAUSE_S = 5.0
MAX_PAUSE_S = 300.0

Admission = Literal["refused", "normal", "probe"]


class Breaker:
    """The state of one host. It has no clock of its own: times are passed, in seconds.

    >>> breaker = Breaker(threshold=1, pause_s=5.0)
    >>> breaker.failed(now_s=0.0); breaker.admit(now_s=4.0), breaker.admit(now_s=5.0), breaker.admit(now_s=5.0)
    ('refused', 'probe', 'refused')
    """

    def __init__(self, *, threshold: int = DEFAULT_THRESHOLD, pause_s: float = DEFAULT_PAUSE_S) -> None:
        """It opens at the `threshold`-th failure in a row, for `pause_s` at first."""
        self._threshold = threshold
        self._first_pause_s = pause_s
        self._pause_s = pause_s
        self._num_failures = 0
        self._open_until_s: float | None = None
        self._is_probed = False
        self.num_openings = 0

    def is_open(self, *, now_s: float) -> bool:
        """Whether nobody need even queue: the host rests, or is being probed."""
        return self._open_until_s is not None and (now_s < self._open_until_s or self._is_probed)

    def admit(self, *, now_s: float) -> Admission:
        """Ask to run now. Whoever is told `probe` must tell `succeeded`, `failed` or `withdraw` afterwards."""
        if self._open_until_s is None:
            return "normal"
        if self.is_open(now_s=now_s):
            return "refused"
        self._is_probed = True
        return "probe"

    def succeeded(self) -> None:
        """The host answered, be it that it cannot do what it was asked for."""
        self._num_failures = 0
        self._open_until_s = None
        self._is_probed = False
        self._pause_s = self._first_pause_s

    def failed(self, *, now_s: float, is_probe: bool = False) -> None:
        """The host did not answer. What was under way when it opened makes its pause no longer."""
        self._num_failures += 1
        if is_probe:
            self._is_probed = False
            self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S)
        elif self._open_until_s is not None or self._num_failures < self._threshold:
            return
        self._open_until_s = now_s + self._pause_s
        self.num_openings += 1

    def withdraw(self, *, is_probe: bool) -> None:
        """The call was given up, and nothing is known: another one may probe."""
        if is_probe:
            self._is_probed = False
