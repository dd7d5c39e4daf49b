"""Which live chats are asked again."""

from steps.monitoring.reask import examples_of

from .requests import answer, refusal

CHAT = ({"role": "user", "content": "Where?"},)


def test_the_newest_chats_with_texts_are_asked_again() -> None:
    requests = [answer(number, messages=({"role": "user", "content": f"{number}?"},)) for number in range(4)]
    found = examples_of([*requests, answer(4), refusal(5)], 2, 32)
    assert [each.messages for each in found] == [
        [{"role": "user", "content": "2?"}],
        [{"role": "user", "content": "3?"}],
    ]


def test_a_chat_that_asked_for_fewer_tokens_than_the_evaluation_is_not_asked_again() -> None:
    """It may fill the context, and would be refused."""
    requests = [answer(number, messages=CHAT, max_tokens=most) for number, most in enumerate((10, 32, 400))]
    assert len(examples_of(requests, 10, 32)) == 2
