"""A request for one tool: the arguments drawn for it, and the ways to put it into words."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.example import Message, Split, assistant, call
from dgemma_jax.training.demo.fact_table import capitalised
from dgemma_jax.training.demo.tool_declared import Tool
from dgemma_jax.training.demo.tool_values import Value, draw_value, shown
from dgemma_jax.training.demo.tool_words import VERBS
from dgemma_jax.training.demo.wording import vary

_PREPOSITIONS = {
    **dict.fromkeys(("city", "location", "place"), "in"),
    **dict.fromkeys(("name", "title"), "called"),
    **dict.fromkeys(("author", "artist"), "by"),
    **dict.fromkeys(("day", "date"), "on"),
    **{"person": "for", "friend": "with", "from": "from", "to": "to", "topic": "about", "hour": "at"},
}
_FRAMES = (
    "{ask}.",
    "{ask}.",
    "{ask}.",
    "Please {ask}.",
    "Can you {ask}?",
    "Could you {ask}?",
    "Can you please {ask}?",
    "Would you {ask}?",
    "Will you {ask} for me?",
    "I want you to {ask}.",
    "I need you to {ask}.",
    "I want to {ask}.",
    "I would like to {ask}.",
    "I have to {ask}.",
    "Use a tool to {ask}.",
    "Help me to {ask}.",
    "Now {ask}.",
    "Let us {ask}.",
    "You should {ask}.",
    "It is time to {ask}.",
    "Try to {ask}.",
)
_GET_FRAMES = (
    "What is {thing}?",
    "What is {thing}?",
    "Do you know {thing}?",
    "Tell me {thing}.",
    "I need {thing}.",
    "I want to know {thing}.",
    "{thing}?",
    "{thing}",
    "Can you tell me {thing}?",
    "What about {thing}?",
)
_LINKS = ("{} {}", "{} {}", "{} {}", "{}: {}", "{}={}", "{} = {}", '{} "{}"')
_LEADS = (" for {}", " for {}", " with {}", " with {}", " where {}", ": {}", ", {}", " ({})")


Call = tuple[str, dict[str, Value]]
"""The name of a tool, and the arguments."""


@dataclass(frozen=True)
class Request:
    """A tool and the arguments it shall get, in the order in which the tool declares them."""

    tool: Tool
    arguments: dict[str, Value]

    @property
    def call(self) -> Call:
        """The right call; the chat template sorts the arguments' names, and so does this."""
        return self.tool.name, dict(sorted(self.arguments.items()))


def calling(calls: Sequence[Call], thinking: bool) -> Message:
    """A turn of one call or two, and the thought that leads to them."""
    names = [name for name, _ in calls]
    named = f"{names[0]} twice" if names[1:] == names[:1] else " and ".join(names)
    made = [call(name, arguments, number) for number, (name, arguments) in enumerate(calls)]
    return assistant(None, f"I call {named}." if thinking else None, made)


def draw_request(rng: Random, split: Split, tool: Tool) -> Request:
    """Values for all required parameters and for half of the optional ones."""
    given = [parameter for parameter in tool.parameters if parameter.required or rng.random() < 0.5]
    return Request(tool, {parameter.name: draw_value(rng, split, parameter.kind) for parameter in given})


def write_question(rng: Random, request: Request, *, plain: bool) -> str:
    """The request as a question or an order; `plain` says it with the tool's own verb, as the noun is not enough."""
    tool, values = request.tool, [shown(value) for value in request.arguments.values()]
    if tool.questions and not plain and rng.random() < 0.6:
        return fill(vary(rng, rng.choice(tool.questions)), values)
    template = write_frame(rng, tool, plain=plain)
    if rng.random() < 0.06:
        template = f"{rng.choice(('Call', 'Use'))} {tool.name}{{0}}."
    return fill(vary(rng, template), [write_values(rng, request)])


def write_frame(rng: Random, tool: Tool, *, plain: bool) -> str:
    """A sentence that asks for the tool, with `{0}` where its values go."""
    if tool.verb == "get" and not plain and rng.random() < 0.5:
        thing = f"{_article(rng, tool)} {tool.noun}{{0}}"
        return capitalised(rng.choice(_GET_FRAMES).replace("{thing}", thing))
    return capitalised(rng.choice(_FRAMES).replace("{ask}", write_order(rng, tool, plain=plain) + "{0}"))


def write_order(rng: Random, tool: Tool, *, plain: bool) -> str:
    """Such as "get the weather" or "show me the weather", without the values."""
    others = VERBS[tool.verb]
    verb = rng.choice(others) if others and not plain and rng.random() < 0.25 else tool.verb
    return f"{verb} {_article(rng, tool)} {tool.noun}"


def _article(rng: Random, tool: Tool) -> str:
    article = rng.choices(("the", "a", "my"), weights=(70, 20, 10))[0]
    return "an" if article == "a" and tool.noun[0] in "aeiou" else article


def write_values(rng: Random, request: Request) -> str:
    """Such as " for city Paris and day Monday", " in Paris on Monday" or ": city Paris, day Monday"."""
    pairs = list(request.arguments.items())
    if not pairs:
        return ""
    prepositions = [_PREPOSITIONS.get(parameter.name, "") for parameter in request.tool.parameters]
    if all(prepositions) and len(set(prepositions)) == len(prepositions) and rng.random() < 0.5:
        return "".join(f" {_PREPOSITIONS[name]} {shown(value)}" for name, value in pairs)
    lead = rng.choice(_LEADS)
    link = "{} {}" if ":" in lead else rng.choice(_LINKS)
    items = [link.format(name, shown(value)) for name, value in rng.sample(pairs, len(pairs))]
    last = rng.choice((" and ", ", "))
    return lead.format(last.join(filter(None, (", ".join(items[:-1]), items[-1]))))


def write_both(rng: Random, name: str, values: Sequence[Value]) -> str:
    """Two values of one parameter: " in Paris and in Rome", " for city Paris and city Rome"."""
    first, second = (shown(value) for value in values)
    before = rng.choice(("for", "for", "with")) + f" {name}"
    if (preposition := _PREPOSITIONS.get(name)) and rng.random() < 0.5:
        before = preposition
    again = rng.choice((f"{before} ", f"{before.split()[-1]} ", ""))
    return f" {before} {first} and {again}{second}"


def fill(template: str, parts: Sequence[str]) -> str:
    """`template` with its fields `{0}`, `{1}` replaced: after `vary`, which must not change the case of values."""
    for place, part in enumerate(parts):
        template = template.replace(f"{{{place}}}", part)
    return template
