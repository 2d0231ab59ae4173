"""A tool as the user of the demo declares it: `verb_noun` with up to three parameters, and its OpenAI declaration."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from dgemma_jax.training.demo.example import Split
from dgemma_jax.training.demo.tool_values import json_type
from dgemma_jax.training.demo.tool_words import NOUNS, QUALIFIERS, VERBS, belongs, draw_made_up, draw_similar


@dataclass(frozen=True)
class Parameter:
    """A parameter and the kind of its values."""

    name: str
    kind: str
    required: bool = True


@dataclass(frozen=True)
class Tool:
    """What a tool does to what; `questions` are ways to ask for it of its own, `{0}` is its first parameter's value."""

    verb: str
    noun: str
    parameters: tuple[Parameter, ...]
    qualifier: str = ""
    questions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as `get_weather` or `get_current_weather`."""
        return "_".join(filter(None, (self.verb, self.qualifier, self.noun)))


_KINDS = """city:city location:city place:city name:name person:name friend:name author:name artist:name title:title
    topic:word query:word item:word text:text colour:colour size:size day:day date:date language:language unit:unit
    from:city to:city hour:hour minute:minute count:few number:number amount:number price:number room:number year:year
    age:few limit:few urgent:flag loud:flag"""
PARAMETERS = tuple(Parameter(name, kind) for name, _, kind in (pair.partition(":") for pair in _KINDS.split()))
_CITY, _LOCATION = (Parameter(name, "city") for name in ("city", "location"))
_WEATHER = ("What is the weather in {0}?", "How is the weather in {0}?", "What is the weather like in {0}?")
_TIME = ("What time is it in {0}?", "What is the time in {0}?", "Tell me the time in {0}.")
_MONEY = (Parameter("amount", "number"), Parameter("from", "currency"), Parameter("to", "currency"))
KNOWN = (
    Tool("get", "weather", (_CITY,), questions=_WEATHER),
    Tool("get", "weather", (_LOCATION,), questions=_WEATHER),
    Tool("get", "weather", (_CITY, Parameter("unit", "unit", required=False))),
    Tool("get", "weather", (_CITY, Parameter("day", "day")), questions=("What is the weather in {0} on {1}?",)),
    Tool("get", "time", (_CITY,), questions=_TIME),
    Tool("get", "time", (_LOCATION,), questions=_TIME),
    Tool("get", "news", (Parameter("topic", "word"),), questions=("What is the news about {0}?", "Any news on {0}?")),
    Tool("get", "price", (Parameter("item", "word"),), questions=("What does {0} cost?", "How much is {0}?")),
    Tool("find", "book", (Parameter("title", "title"),), questions=("Find the book {0}.", "I look for the book {0}.")),
    Tool("find", "book", (Parameter("author", "name"),), questions=("Find a book by {0}.",)),
    Tool("play", "song", (Parameter("title", "title"),), questions=("Play the song {0}.",)),
    Tool("set", "alarm", (Parameter("hour", "hour"),), questions=("Wake me at {0}.", "Set an alarm for {0}.")),
    Tool("set", "timer", (Parameter("minutes", "minute"),), questions=("Set a timer for {0} minutes.",)),
    Tool("send", "mail", (Parameter("to", "name"),), questions=("Send a mail to {0}.", "Write a mail to {0}.")),
    Tool("track", "parcel", (Parameter("number", "number"),), questions=("Where is parcel {0}?", "Track parcel {0}.")),
    Tool("book", "table", (Parameter("count", "few"),), questions=("Book a table for {0} people.",)),
    Tool("convert", "money", _MONEY, questions=("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?")),
    Tool("add", "numbers", (Parameter("a", "number"), Parameter("b", "number")), questions=("Add {0} and {1}.",)),
)
"""Tools that people often try first, with the parameters they usually have."""

_DOES = ("{} the {}.",) * 7 + ("{} a {}.",) * 2 + ("{} the {} of the user", "{} the {} for a given city.", "{} {}")
_ABOUT = ("The {}.", "The {}.", "the {} to use", "Name of the {}.")
_KNOWN_PAIRS = frozenset((tool.verb, tool.noun) for tool in KNOWN)


def _pair_belongs(verb: str, noun: str, split: Split) -> bool:
    """Pairs of real words; a well-known tool is always one for training."""
    return split == "train" if (verb, noun) in _KNOWN_PAIRS else belongs(f"{verb}_{noun}", split)


def draw_tool(rng: Random, split: Split, most: int = 3, *, plain: bool = False) -> Tool:
    """A tool of at most `most` parameters (at least 1); half have a made-up noun.

    Only training draws the well-known ones. Unless `plain`, it has more qualifiers and more made-up parameters, which
    only the declaration tells, and wilder words.
    """
    practice = split == "train" and not plain
    kind = rng.random()
    if kind < 0.2 and split == "train":
        return rng.choice([tool for tool in KNOWN if len(tool.parameters) <= most])
    parameters = _draw_parameters(rng, split, most, practice=practice)
    qualifier = rng.choice(QUALIFIERS) if rng.random() < (0.15 if practice else 0.06) else ""
    verb = rng.choice(list(VERBS))
    if kind < 0.75:
        return Tool(verb, draw_made_up(rng, split, plain=plain), parameters, qualifier)
    while not _pair_belongs(verb, noun := rng.choice(NOUNS), split):
        verb = rng.choice(list(VERBS))
    return Tool(verb, noun, parameters, qualifier)


def _draw_parameters(rng: Random, split: Split, most: int, *, practice: bool) -> tuple[Parameter, ...]:
    (count,) = rng.choices((0, 1, 2, 3), weights=(9 if practice else 5, 58, 28, 9))
    drawn = rng.sample(PARAMETERS, min(count, most))
    for place in range(len(drawn)):
        if rng.random() < (0.3 if practice else 0.15):
            name = draw_made_up(rng, split, plain=not practice)
            drawn[place] = Parameter(name, rng.choice(("word", "name", "number")))
    drawn[1:] = [Parameter(p.name, p.kind, required=rng.random() > 0.2) for p in drawn[1:]]
    return tuple({parameter.name: parameter for parameter in drawn}.values())


def draw_others(rng: Random, split: Split, tools: Sequence[Tool], count: int) -> list[Tool]:
    """`count` more tools to choose wrongly: some share the verb with the first of `tools`, some the noun.

    In training some also have the verb and a noun that is only similar, so that names are read to their end. In the
    test they are of either split, as nobody calls them. They are simple, as prompts shall be short.
    """
    found: list[Tool] = []
    while len(found) < count:
        side: Split = "train" if split == "train" else rng.choice(("train", "test"))
        other = draw_tool(rng, side, most=1, plain=split == "test")
        if count > 1 and rng.random() < 0.3:
            other = Tool(other.verb, other.noun, (), other.qualifier)
        if tools and (near := rng.random()) < 0.3:
            verb, noun = (tools[0].verb, other.noun) if near < 0.15 else (other.verb, tools[0].noun)
            if noun in NOUNS and not _pair_belongs(verb, noun, "train"):
                continue
            other = Tool(verb, noun, other.parameters, other.qualifier)
        elif tools and split == "train" and near < 0.45 and tools[0].noun not in NOUNS:
            similar = draw_similar(rng, tools[0].noun, split)
            other = Tool(tools[0].verb, similar, other.parameters, other.qualifier)
        same = [tool for tool in (*tools, *found) if (tool.verb, tool.noun) == (other.verb, other.noun)]
        if not same and near_noun(other, found) is None:
            found.append(other)
    return found


def near_noun(tool: Tool, tools: Sequence[Tool]) -> Tool | None:
    """Another one of `tools` with the same noun: only the verb tells them apart."""
    return next((other for other in tools if other is not tool and other.noun == tool.noun), None)


def declare(rng: Random, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The OpenAI declarations of the tools; the more tools, the fewer have descriptions, as each costs tokens."""
    described = 0.9 if len(tools) < 3 else 0.5
    return [_declaration(rng, tool, described) for tool in tools]


def _declaration(rng: Random, tool: Tool, described: float) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for parameter in tool.parameters:
        properties[parameter.name] = {"type": json_type(parameter.kind)}
        if rng.random() < 0.15:
            properties[parameter.name]["description"] = rng.choice(_ABOUT).format(parameter.name)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [parameter.name for parameter in tool.parameters if parameter.required]:
        schema["required"] = required
    description = rng.choice(_DOES).format(tool.verb.capitalize(), tool.noun) if rng.random() < described else ""
    function = {"name": tool.name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}
