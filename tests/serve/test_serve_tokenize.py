"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

import pytest
from fake_text import BOS
from test_serve_errors import error_of

HI = [{"role": "user", "content": "hi"}]


async def test_a_text_becomes_tokens(client):
    body = await (await client.post("/tokenize", json={"prompt": "hi"})).json()
    assert body == {"count": 3, "max_model_len": 400, "tokens": [ord(BOS), 104, 105], "token_strs": None}
    bare = {"model": "demo", "prompt": "hi", "add_special_tokens": False, "return_token_strs": True}
    body = await (await client.post("/tokenize", json=bare)).json()
    assert (body["tokens"], body["token_strs"]) == ([104, 105], ["h", "i"])


async def test_a_conversation_becomes_the_prompt_that_a_chat_would_have(client, engine, ask):
    await client.post("/v1/chat/completions", json=ask("hi", chat_template_kwargs={"thinking": True}))
    asked = {"messages": HI, "chat_template_kwargs": {"thinking": True}}
    body = await (await client.post("/tokenize", json=asked)).json()
    assert tuple(body["tokens"]) == engine.jobs[0].prompt and body["count"] == 3


async def test_tokens_become_text(client):
    asked = {"tokens": [104, 105]}
    assert await (await client.post("/detokenize", json=asked)).json() == {"prompt": "hi"}
    assert await (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
        ("/tokenize", {"messages": HI, "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": [{"role": "user", "content": "refuse"}]}, "messages"),
        ("/tokenize", {"prompt": "x" * 5000}, "prompt"),
        ("/detokenize", {"tokens": [2**30]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_a_mistake_is_a_400_that_names_the_field(client, path, body, param):
    assert (await error_of(await client.post(path, json=body)))["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_an_unknown_model_is_a_404(client, path):
    body = {"model": "other", "prompt": "x"} if path == "/tokenize" else {"model": "other", "tokens": [1]}
    assert (await error_of(await client.post(path, json=body), 404))["code"] == "model_not_found"
