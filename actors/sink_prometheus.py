"""The figures of the last step as a page of Prometheus' text format, version 0.0.4."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PrometheusSink:
    """Gauges `arpo_...` with the label `run`, and `arpo_step`; nothing is kept but the last figures."""

    is_rewritten = True

    def __init__(self, run: str) -> None:
        self._run = run
        self._figures: dict[str, float] = {}

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        # On a resume the rows of all steps are told first, and the evaluations behind them.
        self._figures.update({"step": max(float(step), self._figures.get("step", 0.0)), **figures})

    def close(self) -> None:
        self._figures.clear()

    @property
    def page(self) -> str:
        """All gauges, by name.

        >>> sink = PrometheusSink("demo"); sink.write(3, {"eval/success": 0.5}); print(sink.page, end="")
        # TYPE arpo_eval_success gauge
        arpo_eval_success{run="demo"} 0.5
        # TYPE arpo_step gauge
        arpo_step{run="demo"} 3.0
        """
        label = self._run.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines: list[str] = []
        for name, value in sorted(self._figures.items()):
            gauge = "arpo_" + re.sub(r"\W", "_", name, flags=re.ASCII)
            lines += [f"# TYPE {gauge} gauge", f'{gauge}{{run="{label}"}} {_shown(value)}']
        return "".join(f"{line}\n" for line in lines)

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncGenerator[str, None]:
        """Serve `/metrics` for the length of the block; the value is the address. Raises `OSError` where it cannot."""

        async def show(request: web.Request) -> web.Response:
            return web.Response(body=self.page.encode(), headers={"Content-Type": CONTENT_TYPE})

        app = web.Application()
        app.router.add_get("/metrics", show)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def _shown(value: float) -> str:
    """A number as the format has it: `NaN`, `+Inf`, `-Inf`, or digits."""
    special = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}
    return special.get(repr(value), repr(value))
