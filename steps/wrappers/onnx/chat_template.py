"""Compiles a checkpoint's chat template so that it renders as in transformers."""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2.ext
from jinja2 import TemplateError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationTag(jinja2.ext.Extension):
    """Render what {% generation %} and {% endgeneration %} enclose; transformers marks it for training."""

    tags = {"generation"}  # noqa: RUF012  # the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the enclosed nodes."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> jinja2.Template:
    """Return a chat template compiled as transformers.utils.chat_template_utils does it."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: object, **options: Any) -> str:  # noqa: ANN401  # json.dumps checks them
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    return environment.from_string(source)
