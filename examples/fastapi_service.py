"""A FastAPI service that embeds a session: the policy answers requests in the process that serves them.

CONFIG=configs/demo.toml uvicorn examples.fastapi_service:from_environment --factory --host 127.0.0.1
"""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from actors import Config, Session
from engine.errors import GeneratorError


class Question(BaseModel):
    question: str = Field(min_length=1, max_length=4000)
    max_tokens: int = Field(default=256, ge=1, le=4096)


class Answer(BaseModel):
    text: str
    version: int
    """Of the weights that sampled its last token."""


def make_app(config: Config) -> FastAPI:
    """The session lives as long as the app does: started before the first request, gone behind the last one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with Session(config) as session:
            app.state.session = session
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/answer")
    async def answer(asked: Question, request: Request) -> Answer:
        """One turn of the policy."""
        try:
            segment = await request.app.state.session.generate(asked.question, max_tokens=asked.max_tokens)
        except GeneratorError as error:
            raise HTTPException(503, str(error)) from error
        return Answer(text=segment.text, version=int(segment.versions[-1]))

    @app.post("/trajectories")
    async def trajectories(asked: Question, request: Request) -> list[Answer]:
        """A whole tree of the policy with its tools, best first."""
        session: Session = request.app.state.session
        async with aclosing(session.rollouts(session.prompts([asked.question]))) as groups:
            (group,) = [group async for group in groups]
        best = sorted(group.trajectories, key=lambda trajectory: -trajectory.reward.score)
        return [Answer(text=session.text(group, t), version=group.oldest_version) for t in best]

    return app


def from_environment() -> FastAPI:
    return make_app(Config.load(os.environ["CONFIG"]))
