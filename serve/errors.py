"""Everything a client can be told went wrong, as one family, and the one middleware that renders it.

An error leaves the server as OpenAI's object, whatever its cause:
`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from aiohttp import web

from serve.access import ID, LOG, Handler
from serve.responses import ErrorBody, ErrorResponse

logger = logging.getLogger("serve")


class ApiError(Exception):
    """A request that gets an error object. Subclasses fix the status, type and code."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.code

    def body(self) -> bytes:
        """The error object as JSON."""
        error = ErrorBody(message=str(self), type=self.type, param=self.param, code=self.code)
        return msgspec.json.encode(ErrorResponse(error=error))


class InvalidRequestError(ApiError):
    """The request is not one this server can carry out; `param` names the field."""

    code = "invalid_value"


class TooLongError(InvalidRequestError):
    """A prompt that leaves no room for a reply. `takes`: the prompt's name and verb; `tokens`: how many, or so."""

    code = "context_length_exceeded"

    def __init__(self, takes: str, tokens: str, most: int, param: str) -> None:
        super().__init__(
            f"{takes} {tokens} tokens; with a reply, that does not fit the {most} tokens that this server takes.",
            param=param,
        )


class ModelNotFoundError(ApiError):
    """`model` is not a name of this server."""

    status, code = 404, "model_not_found"

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"The model `{name}` does not exist here; this server has {', '.join(known)}.", param="model")


class UnsupportedMediaTypeError(ApiError):
    """A body that says it is something other than JSON."""

    status, code = 415, "unsupported_media_type"


class RequestTimeoutError(ApiError):
    """A body that did not arrive in time. The rest of it may still come: the connection is of no more use."""

    status, code = 408, "request_timeout"
    headers: Mapping[str, str] = {"Connection": "close"}


class OverloadedError(ApiError):
    """Too many requests wait already."""

    status, type, code = 429, "rate_limit_error", "queue_full"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class UnavailableError(ApiError):
    """The server is stopping, or its model could not be started or has stopped working."""

    status, type, code = 503, "server_error", "unavailable"
    headers: Mapping[str, str] = {"Retry-After": "5"}


class TimedOutError(ApiError):
    """The request was not answered within the time it has."""

    status, type, code = 504, "server_error", "timeout"
    headers: Mapping[str, str] = {"x-should-retry": "false"}  # OpenAI's clients would ask twice more


class InternalError(ApiError):
    """Our own bug. What happened is in the log under the request's id, never in the answer."""

    status, type, code = 500, "server_error", "internal_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"The server failed on this request; its log has the reason under request id {request_id}.")


class HttpError(ApiError):
    """An answer that aiohttp gives by itself (unknown route, wrong method, body too large), as an error object."""

    def __init__(self, error: web.HTTPException, request: web.Request) -> None:
        message, self.code = {
            404: (f"Unknown URL: {request.method} {request.path}", "unknown_url"),
            405: (f"{request.path} does not take {request.method}", "method_not_allowed"),
            417: ("The only Expect header this server knows is 100-continue", "expectation_failed"),
            413: (f"The request body is larger than {request.client_max_size} bytes", "request_too_large"),
        }.get(error.status, (error.reason, None))
        super().__init__(message)
        self.status = error.status
        self.headers = {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}


def explain(caught: Exception, request: web.Request) -> ApiError:
    """The error object for any exception; its code goes to the request's log line, a bug's traceback to the log."""
    match caught:
        case ApiError():
            error = caught
        case web.HTTPException():
            error = HttpError(caught, request)
        case web.RequestPayloadError():
            error = InvalidRequestError(f"The request body cannot be read: {caught}")
        case _:
            logger.error("request %s failed", request[ID], exc_info=caught)
            error = InternalError(request[ID])
    request[LOG]["error"] = error.code or error.type
    return error


@web.middleware
async def render_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever a handler raises into an error object; cancellation and lost connections pass through."""
    try:
        return await handler(request)
    except ConnectionError:
        raise
    except Exception as caught:
        error = explain(caught, request)
    return web.Response(status=error.status, body=error.body(), content_type="application/json", headers=error.headers)
