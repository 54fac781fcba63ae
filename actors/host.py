"""The inside of an actor's process: answers calls for one generator or one rank of the learner.

Started as `python -m actors.host FD`, with one end of a socket pair as its only connection. It ends when the other end
closes, so no actor outlives the process that started it. The first call says what to be.

| loop    | consumes   | waits for              | produces | unblocked by                               |
|---------|------------|------------------------|----------|--------------------------------------------|
| serve   | calls      | the next frame         | tasks    | the parent, or its end                     |
| answer  | one call   | the generator or rank  | answers  | the work itself; the parent's end kills it |
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys

from actors.hosting import Answers, become
from actors.messages import Answer, AnyAnswer, Call, Done
from actors.wire import failure_of, read_call, write_frame
from engine.errors import ArpoError

logger = logging.getLogger(__name__)


class Host:
    """One actor's process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        """Answer the first call by becoming what it says, and then all others, until the parent closes."""
        start = await read_call(self._reader)
        if start is None:
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                answer = await become(start.body, stack)
            except ArpoError as error:
                write_frame(self._writer, Answer(number=start.number, body=failure_of(error)))
                await self._writer.drain()
                return
            write_frame(self._writer, Answer(number=start.number, body=Done()))
            async with asyncio.TaskGroup() as answers:
                while (call := await read_call(self._reader)) is not None:
                    answers.create_task(self._answer(call, answer), name=f"call {call.number}")
                # The parent has gone: nobody reads what is still being computed, and a step may take minutes.
                logging.shutdown()
                os._exit(0)

    async def _answer(self, call: Call, answer: Answers) -> None:
        async def send(body: AnyAnswer, is_last: bool) -> None:
            write_frame(self._writer, Answer(number=call.number, body=body, is_last=is_last))
            await self._writer.drain()

        try:
            await answer(call.body, send)
        except ArpoError as error:
            await send(failure_of(error), True)
        except ConnectionError:
            logger.info("call %d: the parent has gone", call.number)


async def _main(descriptor: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    await Host(reader, writer).serve()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(_main(int(sys.argv[1])))
