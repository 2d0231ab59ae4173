"""One training conversation: what a family draws and what the training run and the scorer read."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]
Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A conversation in OpenAI style whose last message is the one right answer."""

    family: str
    messages: list[Message]
    thinking: bool = False

    @property
    def prompt(self) -> list[Message]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def expected(self) -> str:
        """The answer, to be matched exactly."""
        return self.messages[-1]["content"]


def user(content: str) -> Message:
    """A user message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": content}


def ask(family: str, question: str, answer: str) -> Example:
    """The usual example: one question, one answer."""
    return Example(family=family, messages=[user(question), assistant(answer)])
