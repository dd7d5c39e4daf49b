import pytest

from steps.evaluation.scoring import SCORERS, normalise, without_reasoning


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The capital\nof Spain  is Madrid. ", "the capital of spain is madrid"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("\uff2dadrid", "madrid"),  # full-width M
        ("Bogota\u0301!", "bogot\u00e1"),  # a letter and its accent become one character
        ("Madrid . . .", "madrid"),
        ("St. John's", "st. john's"),
        ("...", ""),
    ],
)
def test_normalising_keeps_the_words_and_drops_how_they_are_written(text: str, normal: str) -> None:
    assert normalise(text) == normal


SCHEMA = '{"type": "object", "required": ["capital"], "properties": {"capital": {"type": "string"}}}'


@pytest.mark.parametrize(
    ("scorer", "answer", "reference", "right"),
    [
        ("exact", "the capital of Spain is  MADRID", "The capital of Spain is Madrid.", True),
        ("exact", "Sure! The capital of Spain is Madrid.", "The capital of Spain is Madrid.", False),
        ("contains", "Sure! It is madrid, of course.", "Madrid", True),
        ("contains", "It is Lisbon.", "Madrid", False),
        ("regex", " Madrid\n", "^(Madrid|Madrit)$", True),
        ("regex", "It is Madrid", "^Madrid$", False),
        ("json_schema", '{"capital": "Madrid"}', SCHEMA, True),
        ("json_schema", '{"capital": 3}', SCHEMA, False),
        ("json_schema", 'Here it is: {"capital": "Madrid"}', SCHEMA, False),
        ("json_schema", "NaN", "{}", False),
        ("json_schema", "[" * 200_000, "{}", False),
        ("choice", "Madrid", "Madrid", True),
        ("choice", "madrid", "Madrid", False),
        ("choice_norm", "Madrid", "Madrid", True),
    ],
)
def test_each_scorer_knows_right_from_wrong(scorer: str, answer: str, reference: str, right: bool) -> None:
    assert SCORERS[scorer](answer, reference) is right


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Madrid.", "Madrid."),
        ("<think>Is it Lisbon? No.</think>\n\nMadrid.", "Madrid."),
        ("Is it Lisbon? No.</think>Madrid.", "Madrid."),  # the template wrote <think>
        ("<think>Is it Madrid?", ""),
        ("Madrid, as I <think>", "Madrid, as I <think>"),
    ],
)
def test_what_a_model_thinks_before_it_answers_is_not_scored(answer: str, said: str) -> None:
    assert without_reasoning(answer) == said
