"""The files beside config.json and the weights that a checkpoint folder may hold."""

COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Tokenizer, chat template, how images are cut: what neither training nor another layout of the weights changes."""
