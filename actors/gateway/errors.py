"""ApiError: what a client is told, in OpenAI's form; everything a request may be refused for is one of these."""

from typing import Any

from engine.errors import ArpoError


class ApiError(ArpoError):
    """A request that is answered with an error. The connection, and everybody else's requests, go on."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    @property
    def kind(self) -> str:
        """The `type` of the error: of the client (4xx) or ours."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def refused(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request can be answered by nobody as it stands."""
    return ApiError(400, message, param=param, code=code)


def no_such_conversation(name: str) -> ApiError:
    """404, the same for one that never was and for one of another tenant."""
    return ApiError(404, f"no conversation {name!r}", code="conversation_not_found")
