"""How families of models write a tool call: one table, keyed by what their chat templates contain.

vLLM's names of the parsers: hermes, mistral, phi4_mini_json, granite, llama3_json.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Objects = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A call is a JSON object with `name` and the *arguments* key, or a list of them, after *begin*.

    *end* may follow it. *bare*: an answer may also begin with the object itself. *is_list*: the model writes a list.
    """

    name: str
    evidence: str
    """What a chat template of this family contains."""
    begin: str
    end: str = ""
    arguments: str = "arguments"
    space: str = ""
    is_list: bool = False
    bare: bool = False

    @property
    def marks(self) -> frozenset[str]:
        """The marks around calls, which may be special tokens."""
        return frozenset({self.begin, self.end} - {""})

    @property
    def opening(self) -> str:
        """What stands before a call's JSON: the prompt ends with it if a call is forced."""
        return "" if self.bare else self.begin + self.space

    def written(self, calls: Sequence[Objects]) -> str:
        """Return *calls*, as messages have them, as the model itself would have written them."""
        objects = [{"name": call["name"], self.arguments: call["arguments"]} for call in calls]
        texts = [json.dumps(each, ensure_ascii=False) for each in ([objects] if self.is_list else objects)]
        closing = self.space + self.end if self.end else ""
        return "\n".join(self.opening + text + closing for text in texts)


FORMATS = (
    # Hermes, Qwen2.5, Qwen3, SmolLM3, Granite 4
    Format("hermes", "<tool_call>", begin="<tool_call>", end="</tool_call>", space="\n"),
    # Mistral 7B v0.3, Nemo, Ministral 8B
    Format("mistral", "[TOOL_CALLS]", begin="[TOOL_CALLS]", is_list=True),
    # Phi-4-mini
    Format("phi4", "<|/tool|>", begin="<|tool_call|>", end="<|/tool_call|>", is_list=True),
    # Granite 3.1 to 3.3
    Format("granite", "<|tool_call|>", begin="<|tool_call|>", is_list=True),
    # Llama 3.1 to 3.3
    Format("llama", '"parameters": dictionary', begin="<|python_tag|>", arguments="parameters", bare=True),
)
"""The first whose evidence is there, and whose calls are those that the template writes, is a template's format."""
