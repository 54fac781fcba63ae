"""Many streaming clients in a process of their own: `python gateway_clients.py URL KEY STREAMS SECONDS`.

Each one asks, reads to the end, discards its conversation and asks again, until the time is over. Written to standard
output: for every stream, its name and when each piece of text arrived, on the clock that all processes share.
"""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp


async def stream(http: aiohttp.ClientSession, url: str, name: str) -> list[float]:
    """One conversation; the arrivals of its pieces. Raises where anything is not as it should be."""
    arrivals: list[float] = []
    is_done = False
    body = {"messages": [{"role": "user", "content": name}], "stream": True}
    async with http.post(f"{url}/v1/chat/completions", json=body, headers={"X-Conversation-Id": name}) as response:
        if response.status != 200:
            raise RuntimeError(f"{name}: {response.status}: {await response.text()}")
        async for line in response.content:
            if b'"content":"' in line and b'"content":""' not in line:
                arrivals.append(time.monotonic())
            is_done |= line.startswith(b"data: [DONE]")
            if b'"error"' in line:
                raise RuntimeError(f"{name}: {line!r}")
    if not is_done:
        raise RuntimeError(f"{name}: the stream was cut off")
    async with http.post(f"{url}/v1/conversations/{name}/discard") as response:
        if response.status != 200:
            raise RuntimeError(f"{name}: {response.status}")
    return arrivals


async def client(http: aiohttp.ClientSession, url: str, number: int, until: float, report: dict[str, Any]) -> None:
    turn = 0
    while time.monotonic() < until:
        name = f"stream-{number}-{turn}"
        try:
            report["arrivals"][name] = await stream(http, url, name)
        except (aiohttp.ClientError, RuntimeError) as error:
            report["errors"].append(f"{name}: {error}")
        turn += 1


async def main(url: str, key: str, num_streams: int, seconds: float) -> None:
    report: dict[str, Any] = {"arrivals": {}, "errors": []}
    until = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http, asyncio.TaskGroup() as tasks:
        for number in range(num_streams):
            tasks.create_task(client(http, url, number, until, report))
            # Not in one instant: that would measure how fast sockets are accepted.
            await asyncio.sleep(2.0 / num_streams)
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
