"""The lab page between two pictures: a click right after typing works on what was typed, a late answer never replaces a newer one."""

# ruff: noqa: F811
from __future__ import annotations

import re
from typing import Any

import pytest

from helpers.chats import LEARNED, scripted
from helpers.runs import wait_for
from positron_mini import generate
from positron_mini.text.tokenizer import Tokenizer
from test_web_page import (  # noqa: F401
    TEXT,
    Visit,
    answers,
    browser,
    chosen,
    expect,
    runs,
    say,
    server,
    slide,
    slow,
    speaker,
    visit,
)

AT_ONCE = """(acts) => {
    for (const [element, what, value] of acts) {
        if (what === "click") element.click();
        else if (what === "press") element.dispatchEvent(new KeyboardEvent("keydown", { key: value, bubbles: true, cancelable: true }));
        else {
            element.value = value;
            element.dispatchEvent(new InputEvent("input", { bubbles: true }));
            if (element.localName === "select") element.dispatchEvent(new Event("change", { bubbles: true }));
        }
    }
}"""


def at_once(page: Any, *acts: tuple[Any, ...]) -> None:
    """Do all of it before the page can draw: (place, "type", text), (place, "click"), (place, "press", key)."""
    page.evaluate(AT_ONCE, [[place.first.element_handle(), *rest] for place, *rest in acts])


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def field(page: Any, name: str) -> Any:
    return page.get_by_label(name, exact=True)


def remembered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the sampler was asked with, from here on; it answers "ok"."""
    seen: list[Any] = []
    inner = scripted(["ok"], seen=seen)
    monkeypatch.setattr(generate, "stream", lambda m, t, ids, config, *, end_ids, **_: inner(m, t, ids, config, end_ids=end_ids))
    return seen


# --- a click right after typing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["Enter", "Send"])
def test_chat_sends_what_was_typed_a_moment_ago(visit: Visit, how: str) -> None:
    page = visit.open("chat")
    send = (field(page, "Message"), "press", "Enter") if how == "Enter" else (button(page, "Send"), "click")
    at_once(page, (field(page, "Message"), "type", "Who are you?"), send)
    expect(answers(page)).to_have_text(LEARNED["Who are you?"])
    expect(field(page, "Message")).to_have_value("")


def test_chat_writes_with_the_settings_of_a_moment_ago(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = remembered(monkeypatch)
    page = visit.open("chat")
    page.get_by_text("Sampling").click()
    at_once(
        page,
        (page.get_by_role("slider", name="Temperature"), "type", "1.5"),
        (page.get_by_role("slider", name="Top-k"), "type", "9"),
        (page.get_by_label("Seed"), "type", "12"),
        (page.get_by_label("System text"), "type", "Be brave."),
        (field(page, "Message"), "type", "Hi"),
        (field(page, "Message"), "press", "Enter"),
    )
    expect(answers(page)).to_have_text("ok")
    ids, config = seen[0]
    assert (config.temperature, config.top_k, config.seed) == (1.5, 9, 12)
    assert "Be brave." in visit.server.state.models.load("tiny").speaker.tokenizer.decode(ids)


def test_chat_sends_an_edited_question_as_it_was_typed_a_moment_ago(visit: Visit) -> None:
    page = visit.open("chat")
    say(page, "Who are you?")
    expect(button(page, "Regenerate")).to_be_enabled()
    button(page, "Edit").click()
    at_once(page, (field(page, "Your message"), "type", "What do you eat?"), (button(page, "Send again"), "click"))
    expect(answers(page)).to_have_text(LEARNED["What do you eat?"])


def test_compare_writes_from_what_was_typed_and_chosen_a_moment_ago(visit: Visit) -> None:
    page = visit.open("compare")
    at_once(
        page,
        (field(page, "Beginning or question"), "type", TEXT),
        (page.get_by_role("slider", name="Length"), "type", "10"),
        (field(page, "Checkpoint A"), "type", "base@20"),
        (field(page, "Checkpoint B"), "type", "base@20"),
        (button(page, "Write both"), "click"),
    )
    expect(page.get_by_text("Both wrote the same text.")).to_be_visible()
    expect(field(page, "What A writes")).to_have_text(re.compile(f"^{re.escape(TEXT)}"))
    expect(page.locator(".side > .hint")).to_have_text([re.compile(r"^\d+ tokens")] * 2)
    assert all(int(text.split()[0]) <= 10 for text in page.locator(".side > .hint").all_inner_texts())


def test_next_token_draws_from_what_was_typed_and_set_a_moment_ago(visit: Visit) -> None:
    page = visit.open("next-token")
    page.locator(".bar").first.wait_for()
    at_once(
        page,
        (field(page, "Beginning"), "type", "Who are you?"),
        (button(page, "as a question"), "click"),
        (page.get_by_role("slider", name="Temperature"), "type", "0"),
        (button(page, "Draw a token"), "click"),
    )
    expect(page.locator(".twig")).to_have_text(["I"])  # the answer begins so
    expect(page.get_by_label("The story so far")).to_contain_text("Who are you?")


def test_surprise_reads_at_every_step_what_was_typed_a_moment_ago(visit: Visit) -> None:
    page = visit.open("surprise")
    chosen(page, "base")
    at_once(page, (field(page, "Text"), "type", TEXT), (button(page, "Read the text at every saved step"), "click"))
    expect(page.get_by_label("Words and the step").locator(".word")).to_have_count(len(TEXT.split()))


def test_tokens_and_mask_show_the_last_of_several_things_done_at_once(visit: Visit, tiny_tokenizer: Tokenizer) -> None:
    page = visit.open("tokens")
    at_once(page, (field(page, "Text"), "type", "One"), (button(page, "Ids"), "click"), (field(page, "Text"), "type", TEXT))
    tokens = page.get_by_role("group", name="Tokens", exact=True).get_by_role("button")
    expect(tokens).to_have_text([str(index) for index in tiny_tokenizer.encode(TEXT)])
    page = visit.open("mask")
    row = field(page, "One line of a JSONL file")
    at_once(page, (button(page, "messages"), "click"), (row, "type", '{"question": "Who?", "answer": "A cat."}'))
    expect(page.locator(".masked")).to_contain_text("A cat.")


def test_arrow_keys_pressed_at_once_each_move_one_further(visit: Visit) -> None:
    page = visit.open("attention")
    heads = page.get_by_role("group", name="Heads")
    heads.get_by_role("button").first.wait_for()
    at_once(page, (heads, "press", "ArrowRight"), (heads, "press", "ArrowDown"))
    expect(page.get_by_role("heading", name="Layer 2, head 2")).to_be_visible()
    page = visit.open("logit-lens")
    page.locator(".cell").first.wait_for()
    last = page.locator(".cell[aria-pressed=true]").get_attribute("data-cell")
    assert last is not None
    layer, place = map(int, last.split("-"))
    at_once(page, (page.locator(".lens"), "press", "ArrowDown"), (page.locator(".lens"), "press", "ArrowLeft"))
    expect(page.locator(".cell[aria-pressed=true]")).to_have_attribute("data-cell", f"{layer - 1}-{place - 1}")
    page = visit.open("tokens")
    line = page.get_by_role("group", name="Tokens", exact=True)
    line.get_by_role("button").first.wait_for()
    at_once(page, *[(line, "press", "ArrowRight")] * 2)
    expect(page.get_by_role("status").last).to_contain_text("Token 3 of")


def test_training_shows_the_last_of_several_choices_made_at_once(visit: Visit) -> None:
    page = visit.open("training")
    field(page, "Run").select_option("base")
    page.locator(".uplot").first.wait_for()
    compared = field(page, "Compare with")
    at_once(page, (compared, "type", "shipped/tinystories-PicoGPT"), (button(page, "Logarithmic"), "click"), (compared, "type", "other"))
    expect(page.locator(".u-legend").first).to_contain_text("other")
    expect(button(page, "Logarithmic")).to_have_attribute("aria-pressed", "true")


def test_what_was_typed_is_kept_when_the_panel_is_left_in_the_same_moment(visit: Visit) -> None:
    page = visit.open("compare")
    at_once(page, (field(page, "Beginning or question"), "type", TEXT), (page.get_by_role("link", name="Tokens"), "click"))
    page.locator("[data-panel=tokens]").wait_for()
    visit.open("compare")
    expect(field(page, "Beginning or question")).to_have_value(TEXT)


def test_digits_typed_one_by_one_stay_in_a_number_field(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = remembered(monkeypatch)
    page = visit.open("chat")
    page.get_by_text("Sampling").click()
    seed = page.get_by_label("Seed")
    seed.focus()
    page.keyboard.press("Control+a")
    for key in ("Backspace", "4", "0", "7"):
        page.keyboard.press(key)
    expect(seed).to_have_value("407")
    say(page, "Hi")
    expect(answers(page)).to_have_text("ok")
    assert seen[0][1].seed == 407


# --- another model ----------------------------------------------------------------------------------------------------------------------


def held(page: Any, path: str) -> list[Any]:
    """The next request of `path`, kept until it is continued or answered; later ones pass."""
    routes: list[Any] = []
    page.route(path, lambda route: route.continue_() if routes else routes.append(route))
    return routes


def first_of(page: Any, routes: list[Any]) -> Any:
    """The first request that is held, once it is there."""
    wait_for(lambda: bool(routes) or bool(page.wait_for_timeout(20)))  # the browser's news arrive while one waits for it
    return routes[0]


def test_text_typed_while_a_model_is_read_is_not_lost_and_no_button_asks_the_model_before(visit: Visit) -> None:
    page = visit.open("surprise")
    chosen(page, "base")
    text = field(page, "Text")
    text.focus()
    waiting = held(page, "**/lab/api/model")
    field(page, "Model").select_option("other")
    text.focus()
    reading = first_of(page, waiting)
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(TEXT)
    expect(text).to_have_value(TEXT)
    expect(button(page, "Read the text at every saved step")).to_be_disabled()
    reading.continue_()
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")
    expect(text).to_have_value(TEXT)
    expect(button(page, "Read the text at every saved step")).to_be_enabled()


def test_a_question_sent_right_after_choosing_a_model_never_goes_to_the_one_before(visit: Visit) -> None:
    page = visit.open("chat")
    at_once(
        page,
        (field(page, "Message"), "type", "Who are you?"),
        (field(page, "Model"), "type", "base"),
        (field(page, "Message"), "press", "Enter"),
    )
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")
    expect(field(page, "Message")).to_have_value("Who are you?")  # it waits for a second Enter
    assert not [url for url in visit.asked if url.endswith("/v1/chat/completions")]


# --- double clicks ----------------------------------------------------------------------------------------------------------------------


def test_the_second_half_of_a_double_click_stops_nothing(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    page = visit.open("surprise")
    chosen(page, "base")
    field(page, "Text").fill(TEXT)
    button(page, "Read the text at every saved step").dblclick()
    expect(page.get_by_label("Words and the step").locator(".word")).to_have_count(len(TEXT.split()))
    expect(button(page, "Read the text at every saved step")).to_be_visible()
    monkeypatch.setattr(generate, "stream", slow(["word "] * 12, 0.05))
    page = visit.open("chat")
    chosen(page, "tiny")
    field(page, "Message").fill("Hello")
    button(page, "Send").dblclick()
    expect(answers(page)).to_have_text("word " * 12)
    visit.open("compare")
    button(page, "Write both").dblclick()
    expect(page.get_by_text("Both wrote the same text.")).to_be_visible()


def test_a_double_click_deletes_one_conversation(visit: Visit) -> None:
    page = visit.open("chat")
    for question in LEARNED:
        button(page, "New conversation").first.click()
        say(page, question)
        expect(answers(page)).to_have_text(LEARNED[question])
        expect(button(page, "Regenerate")).to_be_enabled()
    page.locator(".conversations .remove").first.dblclick()
    expect(page.locator(".conversations .remove")).to_have_count(len(LEARNED) - 1)


def test_enter_pressed_twice_at_once_sends_once(visit: Visit) -> None:
    page = visit.open("chat")
    message = field(page, "Message")
    at_once(page, (message, "type", "Who are you?"), (message, "press", "Enter"), (message, "press", "Enter"))
    expect(button(page, "Regenerate")).to_be_enabled()
    assert len([url for url in visit.asked if url.endswith("/v1/chat/completions")]) == 1


# --- late answers -----------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_chosen_while_both_write_never_gets_the_text_of_the_one_before(visit: Visit) -> None:
    page = visit.open("compare")
    waiting = held(page, "**/v1/chat/completions")
    button(page, "Write both").click()
    late = first_of(page, waiting)
    field(page, "Checkpoint A").select_option("base@20")
    expect(button(page, "Write both")).to_be_visible()  # what was being written was another checkpoint's
    late.fulfill(status=500)  # nobody hears it
    expect(field(page, "What A writes")).to_have_text("nothing yet")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_answer_stands_beside_the_prompt_that_it_answers(visit: Visit) -> None:
    page = visit.open("compare")
    field(page, "Beginning or question").fill(TEXT)
    slide(page, "Length", 10)
    for side in "AB":
        field(page, f"Checkpoint {side}").select_option("base@20")
    button(page, "Write both").click()
    expect(page.get_by_text("Both wrote the same text.")).to_be_visible()
    written = field(page, "What A writes").inner_text()
    field(page, "Beginning or question").fill("Something else")
    assert field(page, "What A writes").inner_text() == written and written.startswith(TEXT)


def test_work_begun_again_in_the_moment_it_is_stopped_goes_on_alone(visit: Visit) -> None:
    page = visit.open("compare")
    waiting = held(page, "**/v1/chat/completions")
    button(page, "Write both").click()
    first_of(page, waiting)
    stop_and_begin = "() => { for (let i = 0; i < 2; i++) document.querySelector('.row .button.main').click(); }"
    page.evaluate(stop_and_begin)  # the second finds what then stands in the place of the first
    expect(page.locator(".side > .hint")).to_have_count(2)
    expect(button(page, "Write both")).to_be_visible()


def test_the_answer_to_an_older_text_never_replaces_a_newer_one(visit: Visit, tiny_tokenizer: Tokenizer) -> None:
    page = visit.open("tokens")
    tokens = page.get_by_role("group", name="Tokens", exact=True).get_by_role("button")
    tokens.first.wait_for()
    waiting = held(page, "**/lab/api/tokens")
    field(page, "Text").fill("An older text that is longer.")
    late = first_of(page, waiting)
    field(page, "Text").fill(TEXT)
    expect(tokens).to_have_count(len(tiny_tokenizer.encode(TEXT)))
    late.fulfill(status=400, json={"error": {"message": "late"}})
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(tokens).to_have_count(len(tiny_tokenizer.encode(TEXT)))
