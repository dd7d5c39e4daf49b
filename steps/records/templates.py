"""A template of ours, filled in."""

from pathlib import Path

import jinja2


def render(template: Path, *, escape: bool, trim: bool = True, **values: object) -> str:
    """Return the file *template* filled in with *values*. Raises jinja2.UndefinedError if one is missing.

    *escape*: whether values are escaped for HTML; if not, the newline at the end is kept. *trim*: whether a line that
    holds only a tag of the template disappears.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=escape,  # noqa: S701  not for Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=trim,
        lstrip_blocks=trim,
        keep_trailing_newline=not escape,
    )
    return environment.get_template(template.name).render(values)
