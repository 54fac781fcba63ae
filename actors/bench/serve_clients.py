"""Many streaming clients in a process of their own: `python -m actors.bench.serve_clients URL KEY STREAMS SECONDS`.

Each one asks, reads to the end, discards its conversation and asks again, until the time is over. What they heard goes
to standard output, with times on the clock that all processes of a machine share.
"""

import asyncio
import sys
import time

import aiohttp
import msgspec

_START_S = 2.0
"""Over which the first requests are spread: all in one instant would measure how fast sockets are accepted."""


class Heard(msgspec.Struct, kw_only=True):
    """What the clients heard. Produced here, consumed by `serve_load`."""

    arrivals: dict[str, list[float]] = msgspec.field(default_factory=dict[str, list[float]])
    """For each stream that came to its end, by its name: when each piece of text arrived."""
    errors: list[str] = msgspec.field(default_factory=list[str])
    """Anything else than a whole stream and a discarded conversation, one line each."""


async def main(url: str, key: str, num_streams: int, seconds: float) -> Heard:
    """Keep so many streams open for so long; the last ones are read to their end."""
    heard = Heard()
    until = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http, asyncio.TaskGroup() as tasks:
        for number in range(num_streams):
            tasks.create_task(_client(http, url, number, until, heard), name=f"client {number}")
            await asyncio.sleep(_START_S / num_streams)
    return heard


async def _client(http: aiohttp.ClientSession, url: str, number: int, until: float, heard: Heard) -> None:
    turn = 0
    while time.monotonic() < until:
        name = f"stream-{number}-{turn}"
        try:
            heard.arrivals[name] = await _stream(http, url, name)
        except (aiohttp.ClientError, RuntimeError) as error:
            heard.errors.append(f"{name}: {error}")
        turn += 1


async def _stream(http: aiohttp.ClientSession, url: str, name: str) -> list[float]:
    """One conversation; the arrivals of its pieces. Raises where anything is not as it should be."""
    arrivals: list[float] = []
    is_done = False
    body = {"messages": [{"role": "user", "content": name}], "stream": True}
    async with http.post(f"{url}/v1/chat/completions", json=body, headers={"X-Conversation-Id": name}) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if b'"content":"' in line and b'"content":""' not in line:
                arrivals.append(time.monotonic())
            is_done |= line.startswith(b"data: [DONE]")
            if b'"error"' in line:
                raise RuntimeError(repr(line))
    if not is_done:
        raise RuntimeError("the stream was cut off")
    async with http.post(f"{url}/v1/conversations/{name}/discard") as response:
        if response.status != 200:
            raise RuntimeError(f"discard: {response.status}")
    return arrivals


if __name__ == "__main__":
    found = asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    sys.stdout.buffer.write(msgspec.json.encode(found))
