"""Chat templates that render tools, of the real kinds, and what models of their families were seen to write.

Each follows its family's own template in what concerns tools: where tools, calls and results stand, which marks
surround them, and what is refused. The answers are the examples of the model cards and of the makers' documentation.
"""

from dataclasses import dataclass

HERMES = """{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}\
{{- messages[0].content + '\\n\\n' }}{%- endif %}{{- '# Tools\\n\\n<tools>' }}{%- for tool in tools %}\
{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '\\n</tools>\\n\\nFor each call, return:\\n<tool_call>\\n\
{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}\
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\
{%- endif %}{%- for message in messages %}\
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' + message.content }}\
{%- for call in message.tool_calls or [] %}{%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}\
{%- endif %}{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}\
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}\
{%- elif message.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + \
'\\n</tool_response><|im_end|>\\n' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Calls of earlier messages are left out, tools have a variable of their own, and an answer begins behind a thought.
SMOLLM3 = """{%- if xml_tools %}{{- '<|im_start|>system\\n### Tools\\n\\n<tools>\\n' }}{%- for tool in xml_tools[:] %}\
{{- (tool | string) + '\\n' }}{%- endfor %}{{- '</tools>\\n\\nFor each function call, return a json object within \
<tool_call></tool_call> tags.<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}\
{%- set content = message.content if message.content is string else '' %}\
{%- if message.role == 'tool' %}{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}\
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}{%- endif %}"""

MISTRAL = """{%- if not tools is defined %}{%- set tools = none %}{%- endif %}\
{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}{{- bos_token }}\
{%- for message in messages %}{%- if message.role == 'user' %}\
{%- if tools is not none and (message == user_messages[-1]) %}{{- '[AVAILABLE_TOOLS] ' }}{{- tools | tojson }}\
{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}{{- '[INST] ' + message.content + '[/INST]' }}\
{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{- '[TOOL_CALLS] [' }}\
{%- for call in message.tool_calls %}{%- set out = call.function | tojson %}{{- out[:-1] }}\
{%- if not call.id is defined or call.id | length != 9 %}\
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}\
{{- ', "id": "' + call.id + '"}' }}{{- ', ' if not loop.last else ']' + eos_token }}{%- endfor %}\
{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}\
{%- elif message.role == 'tool' %}{%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}\
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}\
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}\
{%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}{%- endfor %}"""

PHI4 = """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and \
message['tools'] is not none %}{{ '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + \
'<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""

GRANITE = """{%- if messages[0].role != 'system' %}{{- '<|start_of_role|>system<|end_of_role|>You are helpful.' }}\
{%- if tools %}{{- ' When a tool is required to answer the query, respond only with <|tool_call|> followed by a JSON \
list of tools used.' }}{%- endif %}{{- '<|end_of_text|>\\n' }}{%- endif %}{%- if tools %}\
{{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' }}{%- endif %}\
{%- for message in messages %}{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + \
'<|end_of_text|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""

LLAMA = """{{- bos_token }}{%- if not tools is defined %}{%- set tools = none %}{%- endif %}\
{%- if messages[0].role == 'system' %}{%- set system_message = messages[0].content | trim %}\
{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}\
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}{{- system_message + '<|eot_id|>' }}\
{%- if tools is not none %}{%- set first = messages[0].content | trim %}{%- set messages = messages[1:] %}\
{{- '<|start_header_id|>user<|end_header_id|>\\n\\nRespond in the format {"name": function name, "parameters": \
dictionary of argument name and its value}.\\n\\n' }}{%- for tool in tools %}{{- tool | tojson(indent=4) }}\
{{- '\\n\\n' }}{%- endfor %}{{- first + '<|eot_id|>' }}{%- endif %}\
{%- for message in messages %}{%- if not (message.role == 'tool' or 'tool_calls' in message) %}\
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}\
{%- elif 'tool_calls' in message %}{%- if not message.tool_calls | length == 1 %}\
{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}\
{%- set call = message.tool_calls[0].function %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\
{{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}\
{%- else %}{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}{{- message.content | tojson }}\
{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# Marks as above around calls in another form, of Qwen3-Coder; calls as Python code, of LFM2.
XML = """{%- if tools %}{{- '<tools>' + tools | tojson + '</tools> <tool_call>' }}{%- endif %}\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}\
{%- for call in message.tool_calls or [] %}{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}\
{%- for key, value in call.function.arguments.items() %}\
{{- '<parameter=' + key + '>\\n' + value + '\\n</parameter>\\n' }}\
{%- endfor %}{{- '</function>\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}\
{{- '<|im_start|>assistant\\n' }}"""
PYTHONIC = """{%- if tools %}{{- 'List of tools: <|tool_list_start|>' + tools | tojson + '<|tool_list_end|>' }}\
{%- endif %}{%- for message in messages %}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{%- endfor %}{{- '<|im_start|>assistant\\n' }}"""


@dataclass(frozen=True)
class Kind:
    """One family: its template, the name of its form, its control tokens, and answers with the calls in them."""

    template: str
    form: str
    control: tuple[str, ...]
    answers: dict[str, list[tuple[str, dict[str, object]]]]


WEATHER = ("get_weather", {"city": "Paris"})
CHATML = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
PHI4_MARKS = ("<|tool_call|>", "<|/tool_call|>")
KINDS = {
    "qwen": Kind(
        HERMES,
        "hermes",
        CHATML,
        {
            '<tool_call>\n{"name": "get_current_temperature", "arguments": {"location": "San Francisco, CA, USA"}}\n'
            '</tool_call>\n<tool_call>\n{"name": "get_temperature_date", "arguments": {"location": "San Francisco, CA, '
            'USA", "date": "2024-10-01"}}\n</tool_call>': [
                ("get_current_temperature", {"location": "San Francisco, CA, USA"}),
                ("get_temperature_date", {"location": "San Francisco, CA, USA", "date": "2024-10-01"}),
            ],
        },
    ),
    "smollm3": Kind(
        SMOLLM3,
        "hermes",
        CHATML,
        {
            '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>': [WEATHER],
            '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_call>': [WEATHER],
        },
    ),
    "mistral": Kind(
        MISTRAL,
        "mistral",
        ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
        {
            '[TOOL_CALLS] [{"name": "get_current_weather", "arguments": {"location": "Paris, France", "format": '
            '"celsius"}, "id": "VvvODy9mT"}]': [
                ("get_current_weather", {"location": "Paris, France", "format": "celsius"})
            ],
        },
    ),
    "phi4": Kind(
        PHI4,
        "phi4",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", *PHI4_MARKS),
        {
            '<|tool_call|>[{"name": "get_weather_updates", "arguments": {"city": "Tokyo"}}]<|/tool_call|>': [
                ("get_weather_updates", {"city": "Tokyo"})
            ],
        },
    ),
    "granite": Kind(
        GRANITE,
        "granite",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
        {'<|tool_call|>[{"name": "get_current_weather", "arguments": {"city": "Bengaluru"}}]': [
            ("get_current_weather", {"city": "Bengaluru"})
        ]},
    ),
    "llama": Kind(
        LLAMA,
        "llama",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
        {
            '{"name": "get_weather", "parameters": {"city": "Paris"}}': [WEATHER],
            '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}': [WEATHER],
            '{"name": "get_weather", "parameters": {"city": "Paris"}}; '
            '{"name": "get_weather", "parameters": {"city": "Rome"}}': [WEATHER, ("get_weather", {"city": "Rome"})],
        },
    ),
}  # fmt: skip


def tool(name: str, **parameters: object) -> dict[str, object]:
    """Return the tool *name*, whose arguments are the properties *parameters*, all required."""
    schema = {"type": "object", "properties": parameters, "required": list(parameters), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": schema}}
