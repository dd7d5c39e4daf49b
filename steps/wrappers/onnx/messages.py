"""Checks the messages of a chat: roles, and text alone."""

from reprlib import repr as brief
from typing import Any

from .fields import Fields, refuse, require_whole_characters
from .tools.request import read_earlier_calls
from .tools.template import ToolSupport

Message = dict[str, Any]

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "developer": "system", "tool": "tool"}
"""The roles of a message, as the chat template gets them."""

OF_CALLS = {"assistant": "tool_calls", "tool": "tool_call_id"}
"""What messages of a role may have besides role, content and name, if the model takes tools."""

MAY_BE_EMPTY = ("tool_calls", "annotations")
"""What a message of the assistant may have as an empty list, which says nothing."""


def read_messages(row: Fields, support: ToolSupport | str) -> list[Message]:
    """Return the messages of *row*, for a model with *support* for tools, or a reason why it takes none.

    They have role, content and, where given, name; those that call tools or answer a call have OF_CALLS too.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        refuse(f"messages={brief(messages)} is not a list of at least 1 message")
    return [_read_message(message, f"messages[{index}]", support) for index, message in enumerate(messages)]


def _read_message(message: object, here: str, support: ToolSupport | str) -> Message:
    if not isinstance(message, dict):
        refuse(f"{here}={brief(message)} is not an object with role and content")
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = _join_parts(message["content"], f"{here}.content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{here}.role={brief(role)} is not one of {', '.join(ROLES)}")
    if role == "assistant":  # clients send back what OpenAI's answers have
        message = {key: value for key, value in message.items() if key not in MAY_BE_EMPTY or value != []}
    calls = message.pop("tool_calls", None) if role == "assistant" else None
    if isinstance(support, str) and (role == "tool" or calls is not None):
        name, value = ("role", role) if role == "tool" else ("tool_calls", calls)
        refuse(f"{here}.{name}={brief(value)} is not supported: {support}")
    for key, value in message.items():
        if key not in ("role", "content", "name", OF_CALLS.get(role)):
            refuse(f"{here}.{key}={brief(value)} is not supported; role, content and name are")
        if not isinstance(value, str):
            refuse(f"{here}.{key}={brief(value)} is not a string")
        require_whole_characters(f"{here}.{key}", value)
    if role == "tool" and not message.get("tool_call_id"):
        refuse(f"{here}.tool_call_id={brief(message.get('tool_call_id'))} is not the id of a call")
    if calls is not None:
        message |= {
            "tool_calls": read_earlier_calls(calls, f"{here}.tool_calls"),
            "content": message.get("content", ""),
        }
    content = message.get("content")
    # An empty system message says: no instructions. An answer is empty if the model says nothing.
    if content is None or (content == "" and role == "user"):
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
