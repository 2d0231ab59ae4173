"""The OpenAI-compatible HTTP server: `python -m serve`.

HTTP body -> `schema` (typed request) -> `translate` (prompt tokens and settings) -> `worker` (the one thread that
owns the engine) -> `reply` (text pieces, stop strings, counts) -> `schema` (typed response) -> HTTP or `sse` frames.
`handlers` walks that path, `app` puts it together, `engine` says what the server needs from a model.
"""
