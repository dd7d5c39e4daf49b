"""Chat tokenizer: messages and prompts to token ids, equal to those of transformers."""

import contextlib
import copy
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from .chat_template import compile_template
from .fields import refuse, require_whole_characters
from .messages import OF_CALLS, Message
from .tools.formats import Objects
from .tools.template import NO_TEMPLATE, ToolSupport, tool_support

ORDINARY = (
    r"<0x[0-9A-F]{2}>|</?([abipsu]|blockquote|br|caption|code|div|em|h[1-6]|hr|img|li|ol|pre|span|strong|sub|sup|table"
    r"|tbody|td|tfoot|th|thead|tr|ul)>"
)
"""Added tokens that look like control tokens and are part of ordinary text: bytes and the tags of HTML."""

BREAK = "\ufdd0\ufdd1"
"""Goes into look-alikes of control tokens, so that the tokenizer does not see them: two Unicode noncharacters."""


def looks_like_control(token: str) -> bool:
    """Return whether an added token of a tokenizer is a mark such as <tool_call>, special or not, and no mere text.

    Tokenizers also add runs of white space, words, bytes (<0x0A>) and the tags of HTML, which are part of ordinary
    text: their ids have to stay those of transformers.
    """
    return bool(re.fullmatch(r"<\S{2,}>|\[\S{2,}\]", token)) and not re.fullmatch(ORDINARY, token)


class ChatTokenizer:
    """The tokenizer and chat template of a model folder: ids and text equal to those of transformers.

    One difference is on purpose: in a message, text that looks like a control token, such as <|end|>, stays text.
    The author of a message must not be able to end it and begin another in a role of their choice.
    """

    def __init__(self, folder: Path, template_kwargs: Mapping[str, Any] | None = None) -> None:
        """Read the files in *folder*; the chat template always gets the variables *template_kwargs*."""
        spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        special = [token for token in spec["added_tokens"] if token["special"]]
        marks = [token for token in spec["added_tokens"] if looks_like_control(token["content"])]
        self._tokenizer = _tokenizer(spec, [*special, *marks])
        # Phi-3 lists </s> among its ordinary added tokens.
        control = {"<s>", "</s>"}.union(token["content"] for token in special if len(token["content"]) > 1)
        # Templates look for marks such as </think> in what the assistant said, and often leave out the text before.
        self._control = {"assistant": _any_of(control)}
        everything = _any_of(control.union(token["content"] for token in marks))
        self._control["user"] = self._control["system"] = self._control["tool"] = everything

        self._hidden = frozenset(token["id"] for token in special)
        byte_tokens = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_ids = frozenset(token for token in byte_tokens if token is not None)

        self._anchor = self._tokenizer.encode("a", add_special_tokens=False).ids[-1]  # any token with text

        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.named_tokens = _named_tokens(config)
        self._template_kwargs = dict(template_kwargs or {})
        source, with_tools = _template_sources(folder, config)
        self._template = compile_template(source) if source else None
        self._with_tools = self._template if with_tools == source else compile_template(str(with_tools))
        self.tools: ToolSupport | str = NO_TEMPLATE
        if self._with_tools:
            self.tools = tool_support(str(with_tools), self._with_tools, {**self.named_tokens, **self._template_kwargs})

    def encode_chat(
        self,
        messages: Sequence[Message],
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Objects] = (),
        opening: str = "",
    ) -> list[int]:
        """Return the ids of *messages* and *tools* under the chat template, up to where the assistant answers.

        The answer then begins with *opening*. Raises MlflowException if the template is missing, refuses the messages,
        or leaves out one of the system or of a tool.
        """
        if self._template is None:
            refuse("messages: this model has no chat template; log it with interface=prompt")
        safe = [self._safe_message(message) for message in messages]
        safe_tools = self._disarm(list(tools), "user")
        try:
            prompt = self.render(safe, template_kwargs, safe_tools)
        except Exception as error:  # noqa: BLE001  # whatever a template makes of the variables and tools of a request
            refuse(f"messages: the model's chat template says: {error}")
        left_out = self._left_out(safe, lambda changed: self.render(changed, template_kwargs, safe_tools), prompt)
        if left_out is not None:
            role = messages[left_out]["role"]
            refuse(f"messages[{left_out}].role={role!r} is one that the model's chat template leaves out")
        prompt += opening
        require_whole_characters("chat_template_kwargs", prompt)  # messages and tools were checked before
        return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of raw text, control tokens included, with one BOS token where the model has one."""
        bos = self.named_tokens.get("bos_token")
        has_bos = bos is not None and prompt.startswith(bos)
        return list(self._tokenizer.encode(prompt, add_special_tokens=not has_bos).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of *ids* without control tokens."""
        shown = [token for token in ids if token not in self._hidden]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))

    def showing(self, marks: Iterable[str]) -> "ChatTokenizer":
        """Return this tokenizer with the control tokens *marks* shown, as marks of tool calls have to be."""
        shown = copy.copy(self)
        shown._hidden = self._hidden.difference(map(self._tokenizer.token_to_id, marks))
        return shown

    def token_text(self, token: int, *, is_first: bool) -> str:
        """Return the text of *token* where it stands: some tokenizers drop the space of the first one.

        The text of a control token is its name. A token that holds part of a character has U+FFFD in its text.
        """
        if not self.has_text(token):
            return self._tokenizer.id_to_token(token) or ""
        before = [] if is_first else [self._anchor]
        return self.decode([*before, token])[len(self.decode(before)) :]

    def has_text(self, token: int) -> bool:
        """Return whether *token* is shown: neither a control token nor one that only fills up the vocabulary."""
        return token not in self._hidden and self._tokenizer.id_to_token(token) is not None

    def render(
        self,
        messages: Sequence[Message],
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Objects] = (),
    ) -> str:
        """Return *messages* as the checkpoint's chat template writes them: a prompt, as interface=prompt takes it."""
        template, variables = self._template, {"tools": None}
        if isinstance(self.tools, ToolSupport) and (
            tools or any(OF_CALLS.get(each["role"]) in each for each in messages)
        ):
            template = self._with_tools
            messages, variables = self.tools.prepared(messages, tools)
        assert template is not None
        named = {**self.named_tokens, **self._template_kwargs, **(template_kwargs or {}), **variables}
        return template.render(**named, messages=messages, documents=None, add_generation_prompt=True)

    @staticmethod
    def _left_out(messages: Sequence[Message], render: Callable[[list[Message]], str], prompt: str) -> int | None:
        """Return the position of the first message of the system or of a tool that is not in *prompt*, if there is one.

        A template without a role either raises or ignores it. The comparison is with another text, not with no message:
        without one, some templates write a system message of their own, which may be the very same.
        """
        asked = [index for index, message in enumerate(messages) if message["role"] in ("system", "tool")]

        def changed(ends: Mapping[int, str]) -> str | None:
            with contextlib.suppress(TemplateError, TypeError):
                return render(
                    [
                        {**message, "content": f"{message['content']}{ends[index]}"} if index in ends else message
                        for index, message in enumerate(messages)
                    ]
                )
            return None

        # All at once, each with a number of its own at its end: one rendering for each takes minutes for a long chat.
        mark = f"{secrets.randbelow(10**16):016}"
        text = changed({index: f"{mark}{index:08}" for index in asked}) if asked else None
        seen = {int(number) for number in re.findall(f"{mark}([0-9]{{8}})", text or "")}
        return next((index for index in asked if index not in seen and changed({index: "x"}) == prompt), None)

    def _safe_message(self, message: Message) -> Message:
        # Templates look for no mark in calls, so nothing that looks like one need be kept there.
        return {
            key: self._disarm(value, "user" if key == "tool_calls" else message["role"])
            for key, value in message.items()
        }

    def _disarm(self, value: Any, role: str) -> Any:  # noqa: ANN401  # text, or lists and objects of it
        if isinstance(value, list):
            return [self._disarm(each, role) for each in value]
        if isinstance(value, dict):
            return {self._disarm(key, role): self._disarm(each, role) for key, each in value.items()}
        if not isinstance(value, str):
            return value
        control = self._control[role]
        while control.search(value):  # again: breaking one look-alike may uncover one that overlaps it
            value = control.sub(lambda match: match[0][0] + BREAK + match[0][1:], value)
        return value


def _tokenizer(spec: dict[str, Any], control: list[dict[str, Any]]) -> Tokenizer:
    """Return the tokenizer of *spec* (tokenizer.json) that removes BREAK after it has looked for *control* tokens."""
    # The tokenizer looks for control tokens in the raw text and normalises the text between them. Its normaliser
    # removes BREAK first, so a look-alike becomes whole again once that is safe.
    remove = {"type": "Replace", "pattern": {"String": BREAK}, "content": ""}
    others = [spec["normalizer"]] if spec.get("normalizer") else []
    spec["normalizer"] = {"type": "Sequence", "normalizers": [remove, *others]}
    for token in control:
        token["normalized"] = False  # True: looked for after normalising
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))  # the longest first


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the tokens that a template may ask for by name, such as bos_token."""
    named = {}
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        if token := config.get(f"{name}_token"):
            named[f"{name}_token"] = token["content"] if isinstance(token, dict) else token
    return named


def _template_sources(folder: Path, config: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the chat template, and the one for chats with tools; it may be the same. Names are transformers'."""
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
    named = {entry["name"]: entry["template"] for entry in source} if isinstance(source, list) else {"default": source}
    extra = folder / "additional_chat_templates" / "tool_use.jinja"
    if extra.exists():
        named["tool_use"] = extra.read_text(encoding="utf-8")
    return named.get("default"), named.get("tool_use", named.get("default"))
