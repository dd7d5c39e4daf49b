"""Checks the messages of a chat: roles, and text alone."""

import re
from reprlib import repr as brief
from typing import Any

from .request import Fields, refuse

Message = dict[str, str]

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "developer": "system"}
"""The roles of a message, as the chat template gets them."""


def read_messages(row: Fields) -> list[Message]:
    """Return the messages of *row*: role, content and, where given, name."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        refuse(f"messages={brief(messages)} is not a list of at least 1 message")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _read_message(message: object, here: str) -> Message:
    if not isinstance(message, dict):
        refuse(f"{here}={brief(message)} is not an object with role and content")
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = _join_parts(message["content"], f"{here}.content")
    for key, value in message.items():
        if key not in ("role", "content", "name"):
            refuse(f"{here}.{key}={brief(value)} is not supported; role, content and name are")
        if not isinstance(value, str):
            refuse(f"{here}.{key}={brief(value)} is not a string")
        require_whole_characters(f"{here}.{key}", value)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        refuse(f"{here}.role={brief(role)} is not one of {', '.join(ROLES)}")
    if content is None or (content == "" and ROLES[role] != "system"):  # an empty one says: no instructions
        refuse(f"{here}.content={brief(content)} is not a string of at least 1 character")
    return {**message, "role": ROLES[role]}


def _join_parts(parts: list[Any], here: str) -> str:
    """Return the text of a content that is given as a list of text parts, one line each as in vLLM."""
    texts = []
    for index, part in enumerate(parts):
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": kind} if kind != "text":
                refuse(f"{here}[{index}].type={brief(kind)} is not supported; text is")
            case _:
                refuse(f"{here}[{index}]={brief(part)} is not {{'type': 'text', 'text': '...'}}")
    return "\n".join(texts)


def require_whole_characters(field: str, text: str) -> None:
    """Refuse *text*, the value of *field*, if it has half a surrogate pair: no tokenizer can encode it."""
    if half := re.search("[\ud800-\udfff]", text):
        refuse(
            f"{field} has half a surrogate pair, {half[0]!a}, at character {half.start()}: "
            "send whole characters (was an emoji cut in two?)"
        )
