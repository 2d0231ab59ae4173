"""One conversation to one training row: the prompt as the server would send it, and the answer as token ids.

The checkpoint's own chat template writes both. The answer is what the template adds for the last message; it ends with
what closes the turn, or with the marker behind tool calls that wait for their results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgemma_jax.config import ModelConfig
from dgemma_jax.media.prompt import Film, Picture, expand
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.rows import Row

_EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


class ConversationError(ValueError):
    """A conversation that cannot be trained on; the text says what was wanted and found."""


def to_row(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    config: ModelConfig,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    media: Sequence[Picture | Film] = (),
    thinking: bool = False,
) -> Row:
    """The last of `messages`, an assistant's, is the answer; `media` are those that the messages name, in order.

    Raises:
        ConversationError: no answer at the end, or a template that does not write it behind the prompt.
        MessageError, TemplateError, MediaError: as the template and the media say.
    """
    if not messages or messages[-1].get("role") not in ("assistant", "model"):
        raise ConversationError("the last message must be the assistant's: it is what is learned")
    prompt = template.encode(tokenizer, messages[:-1], tools=tools, enable_thinking=thinking)
    answer = tokenizer.encode_guarded(_answer(messages, tokenizer, template, tools, thinking))
    if not media:
        return Row(tuple(prompt), tuple(answer))
    expanded = expand(prompt, media, config, tokenizer)
    return Row(
        tuple(expanded.tokens), tuple(answer), np.asarray(expanded.patches), np.asarray(expanded.patch_positions)
    )


def _answer(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    tools: Sequence[Mapping[str, Any]] | None,
    thinking: bool,
) -> str:
    """The guarded text that the template writes for the last message, without the header that opens every answer.

    Guarded, as an answer that quotes `<turn|>` shall not teach the model to end there.
    """

    def render(count: int, opened: bool) -> str:
        options = {"enable_thinking": thinking, "add_generation_prompt": opened}
        return template.render_guarded(tokenizer, messages[:count], tools=tools, **options)

    whole, prompt = render(len(messages), False), render(len(messages) - 1, True)
    # A template may close an empty thought for an answer without one; a finished turn does not show it.
    for opening in (prompt, prompt.removesuffix(_EMPTY_THOUGHT)):
        if whole.startswith(opening):
            return whole[len(opening) :].rstrip("\n")
    raise ConversationError("the chat template does not write the last message behind the prompt for it")
