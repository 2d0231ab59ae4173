"""Every endpoint: method, path, handler, and what the OpenAPI document says about it."""

from __future__ import annotations

from serve import about, completion_schema, handlers, metrics, openapi, schema, tokenize, ui
from serve.completion_schema import Completion, CompletionRequest
from serve.completions import completions
from serve.openapi import Operation, Route
from serve.responses import ChatChunk, ChatCompletion, Health, ModelCard, ModelList

_UNREADABLE = (400, 404, 408, 413, 415)
_BUSY = (429, 500, 503, 504)


ROUTES = (
    Route(
        "POST",
        "/v1/chat/completions",
        handlers.chat_completions,
        Operation(
            summary="The next message of a conversation, whole or streamed",
            request=(schema.ChatRequest,),
            harmless=schema.HARMLESS,
            neutral=schema.NEUTRAL,
            answer=ChatCompletion,
            chunk=ChatChunk,
            refusals=(*_UNREADABLE, *_BUSY),
        ),
    ),
    Route(
        "POST",
        "/v1/completions",
        completions,
        Operation(
            summary="How a text goes on, whole or streamed; no chat template",
            request=(CompletionRequest,),
            harmless=schema.HARMLESS,
            neutral=completion_schema.NEUTRAL,
            answer=Completion,
            chunk=Completion,
            refusals=(*_UNREADABLE, *_BUSY),
        ),
    ),
    Route(
        "POST",
        "/tokenize",
        tokenize.tokenize,
        Operation(
            summary="The tokens of a text, or of the prompt for a conversation",
            request=(tokenize.TokenizeTextRequest, tokenize.TokenizeChatRequest),
            answer=tokenize.Tokenized,
            refusals=(*_UNREADABLE, 500, 503),
        ),
    ),
    Route(
        "POST",
        "/detokenize",
        tokenize.detokenize,
        Operation(
            summary="The text of tokens",
            request=(tokenize.DetokenizeRequest,),
            answer=tokenize.Detokenized,
            refusals=(*_UNREADABLE, 500, 503),
        ),
    ),
    Route("GET", "/v1/models", handlers.models, Operation(summary="The served names", answer=ModelList)),
    Route(
        "GET",
        "/v1/models/{id:.+}",
        handlers.model,
        Operation(summary="One served name", answer=ModelCard, refusals=(404,)),
    ),
    Route(
        "GET",
        "/health",
        handlers.ready,
        Operation(summary="Whether requests are answered at once", answer=Health, not_ready=Health, is_open=True),
    ),
    Route(
        "GET",
        "/v1/health/live",
        handlers.live,
        Operation(summary="Whether the process answers", answer=Health, is_open=True),
    ),
    Route(
        "GET",
        "/v1/health/ready",
        handlers.ready,
        Operation(summary="Whether requests are answered at once", answer=Health, not_ready=Health, is_open=True),
    ),
    Route("GET", "/v1/version", about.version, Operation(summary="The server's release", answer=about.Version)),
    Route("GET", "/v1/metadata", about.metadata, Operation(summary="What is served", answer=about.Metadata)),
    Route("GET", "/metrics", metrics.metrics, Operation(summary="For Prometheus", media_type="text/plain")),
    Route("GET", "/v1/metrics", metrics.metrics, Operation(summary="For Prometheus", media_type="text/plain")),
    Route("GET", "/", ui.front, Operation(summary="Leads to the page", is_open=True, redirects=True)),
    Route(
        "GET", "/ui", ui.page, Operation(summary="A page to chat in a browser", media_type="text/html", is_open=True)
    ),
    Route("GET", "/openapi.json", openapi.openapi, Operation(summary="This document")),
)
