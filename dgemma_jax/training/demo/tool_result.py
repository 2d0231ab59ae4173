"""A tool has answered: its result stands in the prompt, and the same turn goes on with what it says."""

import json
from random import Random

from dgemma_jax.training.demo.example import Example, Message, Split, assistant, user
from dgemma_jax.training.demo.tool_call import draw_question
from dgemma_jax.training.demo.tool_declared import Tool, declare
from dgemma_jax.training.demo.tool_request import Request, calling
from dgemma_jax.training.demo.tool_two_calls import draw_two
from dgemma_jax.training.demo.tool_values import OPEN, Value, draw_value, shown
from dgemma_jax.training.demo.tool_words import draw_made_up, draw_word

FAMILY = "tool_result"
THOUGHT = "The tool answered."

_FIELDS = """temperature:degrees sky:sky price:decimal status:word wind:number score:number total:number count:number
    result:number title:title author:name name:name city:city date:date owner:name place:city distance:decimal
    answer:word state:word address:title artist:name speed:number level:number colour:colour day:day size:size"""
FIELDS = tuple((name, kind) for name, _, kind in (field.partition(":") for field in _FIELDS.split()))
_MADE_UP_KINDS = ("word", "name", "number", "decimal")
_OPEN_FIELDS = tuple((name, kind) for name, kind in FIELDS if kind in OPEN)
_TEXTS = (
    "{word}",
    "{word}",
    "{number}",
    "{name}",
    "{word} and {made_up}",
    "{word}, {number} degrees",
    "{number} {made_up}",
    "{name} is {word}",
    "done, {made_up}",
    "{city} is {word}.",
    "The {made_up} is {word}.",
)
_ERRORS = ("{made_up} not found", "no {made_up}", "unknown {made_up}", "{made_up} is {word}", "error {number}")
_PRACTICE = ("word", "word", "name", "number", "city", "decimal", "date")
"""Kinds that training strings together to a text to be copied, so that the forms above are not all that it knows."""
_COMMON_TEXTS = ("done", "ok", "success", "sent")
_COMMON_ERRORS = ("not found", "timeout", "no access", "bad request", "server error")


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question, the call or two, the results, and the sentence that says them."""
    requests, tools, question = _draw_requests(rng, split)
    results = [_draw_result(rng, split, request) for request in requests]
    turn = calling([request.call for request in requests], False)
    replies: list[Message] = [
        {"role": "tool", "tool_call_id": made["id"], "content": content}
        for made, (content, _) in zip(turn["tool_calls"], results, strict=True)
    ]
    answer = " ".join(sentence for _, sentence in results)
    last = assistant(answer, THOUGHT if thinking else None)
    return Example(
        family=FAMILY,
        messages=[user(question), turn, *replies, last],
        tools=declare(rng, tools),
        thinking=thinking,
    )


def _draw_requests(rng: Random, split: Split) -> tuple[list[Request], list[Tool], str]:
    if rng.random() < 0.16:
        return draw_two(rng, split, 2)
    (count,) = rng.choices((1, 2, 3), weights=(70, 25, 5))
    request, tools, question = draw_question(rng, split, count)
    return [request], tools, question


def _draw_result(rng: Random, split: Split, request: Request) -> tuple[str, str]:
    """What the tool sends, and the sentence that says it."""
    kind = rng.random()
    if kind < 0.2:
        text = _draw_text(rng, split, kind)
        return text, f"Result: {text.removesuffix('.')}."
    if kind < 0.32:
        text = rng.choice(_COMMON_ERRORS) if split == "train" and kind < 0.26 else _fill(rng, split, _ERRORS)
        return json.dumps({"error": text}), f"The tool failed: {text}."
    fields = _draw_fields(rng, split, request)
    parts = [f"the {name} is {shown(value)}" for name, value in fields.items()]
    sentence = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    # Clients write JSON with spaces or, as JavaScript does, without.
    separators = (", ", ": ") if rng.random() < 0.6 else (",", ":")
    return json.dumps(fields, separators=separators), f"T{sentence[1:]}."


def _draw_text(rng: Random, split: Split, kind: float) -> str:
    if split == "test" or kind > 0.12:
        return _fill(rng, split, _TEXTS)
    if kind < 0.02:
        return rng.choice(_COMMON_TEXTS)
    parts = [shown(draw_value(rng, split, of)) for of in rng.choices(_PRACTICE, k=rng.randint(1, 4))]
    return rng.choice((" ", ", ", " and ", ": ")).join(parts)


def _draw_fields(rng: Random, split: Split, request: Request) -> dict[str, Value]:
    """One to three fields of the result; the first is often called after what was asked for."""
    (count,) = rng.choices((1, 2, 3), weights=(55, 38, 7))
    fields: dict[str, Value] = {}
    while len(fields) < count:
        name, kind = rng.choice(FIELDS if fields or split == "train" else _OPEN_FIELDS)
        if (which := rng.random()) < 0.4:
            name = (
                request.tool.noun
                if not fields and which < 0.25 and request.tool.noun[-1] != "s"
                else draw_made_up(rng, split)
            )
            kind = rng.choice(_MADE_UP_KINDS)
        fields[name] = draw_value(rng, split, kind)
    return dict(rng.sample(list(fields.items()), count))


def _fill(rng: Random, split: Split, templates: tuple[str, ...]) -> str:
    return rng.choice(templates).format(
        word=draw_word(rng, split),
        made_up=draw_made_up(rng, split),
        number=draw_value(rng, split, "number"),
        name=draw_value(rng, split, "name"),
        city=draw_value(rng, split, "city"),
    )
