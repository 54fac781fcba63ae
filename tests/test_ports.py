"""Ports: free ones, and ones that stay free for a server that takes its time."""

import asyncio
import errno
import socket

import pytest

from engine.ports import LOOPBACK, free_port, reserved_port

SOON_S = 10.0


def test_a_free_port_can_be_had() -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, free_port()))


def test_a_reserved_port_is_taken_by_nobody_but_its_server() -> None:
    """Its server sets SO_REUSEADDR, as SGLang does."""

    async def main() -> None:
        with reserved_port() as port:
            with socket.socket() as thief, pytest.raises(OSError, match="in use") as refused:
                thief.bind((LOOPBACK, port))
            assert refused.value.errno == errno.EADDRINUSE
            accepted = asyncio.Event()

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                accepted.set()
                writer.close()

            async with asyncio.timeout(SOON_S), await asyncio.start_server(accept, LOOPBACK, port):
                _, writer = await asyncio.open_connection(LOOPBACK, port)
                await accepted.wait()
                writer.close()
                await writer.wait_closed()

    asyncio.run(main())


def test_a_reserved_port_is_free_again_behind_the_block() -> None:
    with reserved_port() as port:
        pass
    with socket.socket() as server:
        server.bind((LOOPBACK, port))
