"""A template is filled in."""

from pathlib import Path

import jinja2
import pytest

from steps.records.templates import render


def filled(folder: Path, text: str, *, escape: bool, trim: bool = True, **values: object) -> str:
    (folder / "page.jinja").write_text(text)
    return render(folder / "page.jinja", escape=escape, trim=trim, **values)


def test_only_html_is_escaped_and_only_other_text_keeps_its_last_newline(tmp_path: Path) -> None:
    assert filled(tmp_path, "{{ it }}\n", escape=True, it="<b>") == "&lt;b&gt;"
    assert filled(tmp_path, "{{ it }}\n", escape=False, it="<b>") == "<b>\n"


def test_a_line_with_only_a_tag_disappears_unless_it_is_kept(tmp_path: Path) -> None:
    text = "a\n  {% if true %}\nb\n  {% endif %}\nc"
    assert filled(tmp_path, text, escape=True) == "a\nb\nc"
    assert filled(tmp_path, text, escape=True, trim=False) == "a\n  \nb\n  \nc"


def test_a_value_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'it' is undefined"):
        filled(tmp_path, "{{ it }}", escape=True)
