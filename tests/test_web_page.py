"""The lab page in a real browser: every panel does what its sentence says, by mouse and by keyboard, in light and dark, at any width."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.chats import LEARNED, scripted
from helpers.runs import wait_for
from helpers.server import TinyServer, running, speaker_of, tiny_server
from positron_mini import files, generate
from positron_mini.chat.model import Model
from positron_mini.config import SampleConfig
from positron_mini.evaluate import lens
from positron_mini.model import GPT
from positron_mini.store.find import list_runs
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS, UNK, Tokenizer
from positron_mini.web.state import Models, Served, ServerState

WEB = Path(generate.__file__).parent / "web"
PANELS = ["chat", "compare", "next-token", "tokens", "surprise", "attention", "logit-lens", "training", "mask"]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"]
PATIENCE_MS = 30_000
TEXT = "Once there was a cat."


# --- a browser --------------------------------------------------------------------------------------------------------------------------


def missing(what: str) -> None:
    """Skip, saying what is missing; fail where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing; .ci/run installs it")
    pytest.skip(f"{what} is not installed, so nobody looks at the page (apt-get install -y chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        missing("playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing("Chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def speaker(taught: GPT, tiny_tokenizer: Tokenizer) -> Model:
    """A chat model that knows some answers by heart."""
    return speaker_of(taught, tiny_tokenizer)


@pytest.fixture(scope="module")
def runs(workshop_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run that has skills, and a second run to hold against it."""
    folder = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(workshop_template / "runs", folder, symlinks=True)
    for step, accuracy in ((0, 0.5), (20, 0.8)):
        row = {"step": step, "skill": "word_order", "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "pairs": 50}
        files.append_line(folder / "base" / "skills.jsonl", row)
    shutil.copytree(folder / "base", folder / "other", symlinks=True)
    return folder


@pytest.fixture(scope="module")
def server(speaker: Model, runs: Path) -> Iterator[TinyServer]:
    with running(ServerState(Models([Served("tiny", speaker, 0)], lambda: list_runs(runs)))) as server:
        yield server


class Visit:
    """One visitor with a fresh browser store. `noise` is what must not happen: console errors, script errors, foreign requests, dialogs."""

    def __init__(self, browser: Any, server: TinyServer, **settings: Any) -> None:
        self.server = server
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.noise: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.noise.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.noise.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._request)

    def _request(self, request: Any) -> None:
        self.asked.append(request.url)
        if not request.url.startswith((self.server.url + "/", "data:")):
            self.noise.append(f"foreign request: {request.url}")

    def open(self, panel: str) -> Any:
        """The page at a panel."""
        self.page.goto(f"{self.server.url}/#{panel}")
        self.page.locator(f"[data-panel={panel}]").wait_for()
        return self.page


@pytest.fixture
def visit(browser: Any, server: TinyServer) -> Iterator[Visit]:
    visit = Visit(browser, server)
    yield visit
    visit.context.close()
    assert visit.noise == []


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as expected

    return expected(locator)


def chosen(page: Any, run: str, step: str = "") -> None:
    """Choose a run, and a step of it, in the list at the top."""
    page.get_by_label("Model", exact=True).select_option(run)
    if step:
        page.get_by_label("Step", exact=True).first.select_option(label=step)
        expect(page.get_by_label("Step", exact=True).first).to_have_value(re.compile("@"))
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")


def slide(page: Any, name: str, value: float) -> None:
    page.get_by_role("slider", name=name).fill(str(value))


def shown(token: lens.TokenView) -> str:
    """A token as one line shows it."""
    if token.text is None:
        return f"⟨{token.bytes.hex()}⟩" if token.kind == "byte" else token.piece
    text = token.text.replace("\n", "↵").replace("\t", "→")
    left, right = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * len(text) if not text.strip(" ") else "␣" * left + text.strip(" ") + "␣" * right


def percent(share: float) -> str:
    """A share as the page writes it, by the same rule and in other code."""
    if share == 0:
        return "0 %"
    if 100 * share < 0.01:
        return "< 0.01 %"
    digits = 2 if 100 * share < 1 else 1 if 100 * share < 10 else 0
    return f"{100 * share:.{digits}f} %"


# --- the whole page ---------------------------------------------------------------------------------------------------------------------


def test_every_panel_has_one_sentence_and_names_the_function_that_computes_it(visit: Visit) -> None:
    for panel in PANELS:
        page = visit.open(panel)
        sentence = page.locator(".sentence").inner_text()
        assert 40 < len(sentence) < 180 and re.fullmatch(r"[^.]+\.", sentence), sentence
        module, _, name = page.locator(".by code").inner_text().removeprefix("positron_mini.").partition(".")
        owner: Any = importlib.import_module(f"positron_mini.{module}")
        for part in name.split("."):
            owner = getattr(owner, part)
        assert owner.__doc__
        assert page.get_by_role("heading", level=1).count() == 1 and page.title().endswith("Positron Mini lab")


def test_the_page_weighs_less_than_300_kB_and_paints_within_a_second(visit: Visit) -> None:
    page = visit.open("training")  # which also loads the charts
    page.locator(".uplot").first.wait_for()
    sizes = dict(
        page.evaluate(
            "() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
            ".map((entry) => [entry.name.split('#')[0], entry.decodedBodySize])"
        )
    )
    paints = []
    for panel in PANELS:
        page = visit.open(panel)
        page.reload()
        page.locator(f"[data-panel={panel}]").wait_for()
        paints.append(page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    page_files = {url: size for url, size in sizes.items() if url == f"{visit.server.url}/" or "/static/" in url or "/vendor/" in url}
    assert any("uPlot" in url for url in page_files) and len(page_files) > 15 and all(page_files.values())
    assert sum(page_files.values()) < 300_000
    assert min(paints) < 1_000, paints  # the least of them: a busy machine is no fault of the page


def test_the_browser_enforces_the_strict_policy(visit: Visit) -> None:
    page = visit.open("tokens")
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = true" }));
        })"""
    )
    assert blocked.startswith("script-src") and page.evaluate("() => window.ran") is None
    visit.noise.clear()  # the browser reports what it blocked


def test_no_source_of_the_page_makes_markup_from_text() -> None:
    for path in (WEB / "static").rglob("*"):
        if path.is_file():
            source = path.read_text(encoding="utf-8")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|\beval\(|new Function|javascript:", source
            ), path
            outside = re.findall(r"https?://[^\s\"')]+", source)
            assert set(outside) <= {"http://www.w3.org/2000/svg"}, path


def test_the_libraries_are_the_files_of_their_releases() -> None:
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (WEB / "vendor" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    there = {path.relative_to(WEB / "vendor").as_posix(): path for path in (WEB / "vendor").rglob("*") if path.is_file()}
    assert {name for _, name in listed} | {"README.md"} == set(there)
    for digest, name in listed:
        assert hashlib.sha256(there[name].read_bytes()).hexdigest() == digest, name


UNNAMED = """() => [...document.querySelectorAll("button, a, input, select, textarea, canvas")].filter((element) => {
    const label = element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.[0]?.textContent.trim();
    return !label && !element.closest("[aria-hidden=true], [role=img][aria-label]");
}).map((element) => element.outerHTML.slice(0, 120))"""

FAINT = """() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const pixel = (colours) => {
        context.clearRect(0, 0, 1, 1);
        for (const colour of colours) (context.fillStyle = colour), context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const faint = [];
    const walker = document.createTreeWalker(document.getElementById("app"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || element.closest(":disabled, .unseen, option") || !element.checkVisibility()) continue;
        const backs = [];
        for (let up = element; up; up = up.parentElement) backs.unshift(getComputedStyle(up).backgroundColor);
        const back = light(pixel(backs));
        const front = light(pixel([...backs, getComputedStyle(element).color]));
        const contrast = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
        if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 40)}`);
    }
    return faint;
}"""


def settled(page: Any, panel: str) -> None:
    """Return when a panel shows its numbers."""
    first = {
        "next-token": ".bar",
        "tokens": ".token",
        "surprise": ".token",
        "attention": ".head",
        "logit-lens": ".cell",
        "training": ".uplot",
        "mask": ".is-trained",
    }
    page.locator(first.get(panel, "main textarea")).first.wait_for()
    page.locator("[data-panel]").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast_and_every_control_a_name(browser: Any, server: TinyServer, scheme: str) -> None:
    visit = Visit(browser, server, color_scheme=scheme)
    for panel in PANELS:
        page = visit.open(panel)
        settled(page, panel)
        assert page.evaluate(FAINT) == [], panel
        assert page.evaluate(UNNAMED) == [], panel
    visit.context.close()
    assert visit.noise == []


def test_nothing_is_wider_than_a_phone(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 400, "height": 800})
    for panel in PANELS:
        page = visit.open(panel)
        settled(page, panel)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 400, panel
        link = page.locator("nav [aria-current]").bounding_box()
        assert link["x"] >= 0 and link["x"] + link["width"] <= 400, panel  # the open panel's name is in sight


def test_the_page_is_walked_by_keyboard(visit: Visit) -> None:
    page = visit.open("chat")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the panel")).to_be_focused()
    link = page.get_by_role("link", name="Tokens")
    for _ in range(20):
        page.keyboard.press("Tab")
        if link.evaluate("(element) => element === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Tokens")


def test_a_server_with_a_key_asks_for_it(browser: Any, speaker: Model) -> None:
    with tiny_server(speaker, api_key="secret") as server:
        visit = Visit(browser, server)
        visit.page.goto(server.url)
        visit.page.get_by_label("This server needs the key").fill("secret")
        visit.page.get_by_role("button", name="Open").click()
        visit.page.locator("[data-panel=chat]").wait_for()
        visit.context.close()
        assert all("401" in noise for noise in visit.noise)  # the browser reports the refused request
        given = Visit(browser, server)
        given.page.goto(f"{server.url}/#api_key=secret")  # as `positron lab` opens it
        given.page.locator("[data-panel=chat]").wait_for()
        assert "secret" not in given.page.evaluate("() => location.href + history.length + JSON.stringify(localStorage)")
        given.context.close()
    assert given.noise == []


def test_without_a_model_the_page_says_how_to_get_one(browser: Any) -> None:
    with running(ServerState(Models())) as server:
        visit = Visit(browser, server)
        visit.page.goto(server.url)
        expect(visit.page.get_by_role("note")).to_contain_text("./bootstrap_tiny_llm.sh")
        visit.page.goto(f"{server.url}/#training")
        expect(visit.page.get_by_role("note").first).to_contain_text("There")
        visit.context.close()
    assert visit.noise == []


# --- chat -------------------------------------------------------------------------------------------------------------------------------


def say(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Any) -> Any:
    return page.get_by_role("article", name="The model").locator("p.prose")


def test_the_chat_answers_and_remembers_over_a_reload(visit: Visit) -> None:
    page = visit.open("chat")
    say(page, "Who are you?")
    expect(answers(page)).to_have_text(LEARNED["Who are you?"])
    expect(page.get_by_role("article", name="The model")).to_contain_text("tokens")
    page.reload()
    expect(answers(page)).to_have_text(LEARNED["Who are you?"])


def test_a_question_can_be_edited_and_an_answer_asked_for_again(visit: Visit) -> None:
    page = visit.open("chat")
    say(page, "Who are you?")
    expect(page.get_by_role("button", name="Regenerate")).to_be_enabled()
    asked = len(visit.asked)
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("button", name="Regenerate")).to_be_enabled()
    assert len([url for url in visit.asked[asked:] if url.endswith("/v1/chat/completions")]) == 1
    expect(answers(page)).to_have_text(LEARNED["Who are you?"])
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("What do you eat?")
    page.get_by_role("button", name="Send again").click()
    expect(answers(page)).to_have_text(LEARNED["What do you eat?"])
    expect(page.get_by_role("article")).to_have_count(2)


def test_conversations_are_kept_apart(visit: Visit) -> None:
    page = visit.open("chat")
    say(page, "Who are you?")
    expect(answers(page)).to_have_text(LEARNED["Who are you?"])
    expect(page.get_by_role("button", name="Regenerate")).to_be_enabled()
    page.get_by_role("button", name="New conversation").first.click()
    say(page, "What do you eat?")
    expect(answers(page)).to_have_text(LEARNED["What do you eat?"])
    expect(page.get_by_role("button", name="Regenerate")).to_be_enabled()
    page.get_by_role("button", name="Who are you?", exact=True).click()
    expect(answers(page)).to_have_text(LEARNED["Who are you?"])
    page.get_by_role("button", name="Delete “Who are you?”").click()
    expect(answers(page)).to_have_text(LEARNED["What do you eat?"])


def test_an_answer_is_copied(browser: Any, server: TinyServer) -> None:
    visit = Visit(browser, server, permissions=["clipboard-read", "clipboard-write"])
    page = visit.open("chat")
    say(page, "Who are you?")
    page.get_by_role("article", name="The model").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == LEARNED["Who are you?"]
    visit.context.close()
    assert visit.noise == []


def test_an_answer_can_be_stopped_and_what_was_written_stays(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "stream", slow(["word "] * 2_000, 0.02))
    page = visit.open("chat")
    say(page, "Tell me everything.")
    expect(answers(page)).to_contain_text("word word word")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("article", name="The model")).to_contain_text("stopped")
    wait_for(visit.server.is_idle)
    kept = answers(page).inner_text()
    time.sleep(0.2)
    assert answers(page).inner_text() == kept and kept.startswith("word word")


def slow(pieces: list[str], seconds: float) -> Any:
    """A stream of given pieces, whatever else the caller asks for."""
    inner = scripted(pieces, seconds=seconds)
    return lambda model, tokenizer, ids, config, *, end_ids, **_: inner(model, tokenizer, ids, config, end_ids=end_ids)


def test_markup_that_a_model_writes_is_shown_as_letters(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [
        "<script>",
        "alert(1)",
        "</script>",
        "<img src=x onerror=alert(2)>",
        "<a href='javascript:alert(3)'>",
        "\u202egnirts",
        "&amp;",
    ]
    monkeypatch.setattr(generate, "stream", slow(pieces, 0))
    page = visit.open("chat")
    say(page, "<b>hi</b>")
    expect(answers(page)).to_have_text("".join(pieces))
    expect(page.get_by_role("article", name="You").locator("p")).to_have_text("<b>hi</b>")
    assert page.locator("main script, main img, main b, main a").count() == 0
    visit.open("compare")
    page.get_by_role("button", name="Write both").click()
    expect(page.get_by_label("What A writes")).to_contain_text("<script>alert(1)</script>")
    assert page.locator("main script, main img, main a").count() == 0


def test_the_settings_reach_the_sampler(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    inner = scripted(["ok"], seen=seen)
    monkeypatch.setattr(generate, "stream", lambda m, t, ids, config, *, end_ids, **_: inner(m, t, ids, config, end_ids=end_ids))
    page = visit.open("chat")
    page.get_by_text("Sampling").click()
    for name, value in (("Temperature", 1.2), ("Top-k", 7), ("Top-p", 0.5), ("Min-p", 0.1), ("Length", 20)):
        slide(page, name, value)
    page.get_by_label("Seed").fill("11")
    page.get_by_label("System text").fill("Be kind.")
    say(page, "Hi")
    expect(answers(page)).to_have_text("ok")
    ids, config = seen[0]
    assert config == SampleConfig(max_tokens=20, temperature=1.2, top_k=7, top_p=0.5, min_p=0.1, seed=11)
    assert "Be kind." in visit.server.state.models.load("tiny").speaker.tokenizer.decode(ids)


# --- next token -------------------------------------------------------------------------------------------------------------------------


def masked_logits(speaker: Model, text: str, then: list[int]) -> torch.Tensor:
    """What the sampler starts from: the logits, without tokens that are never drawn."""
    tokenizer = speaker.tokenizer
    logits = lens.next_token_distribution(speaker.gpt, [BOS, *tokenizer.encode(text), *then]).clone()
    logits[sorted((tokenizer.control_ids | {UNK}) - speaker.end_ids)] = float("-inf")
    return logits


def rows_of_bars(page: Any) -> list[tuple[str, str]]:
    names, values = page.locator(".bar-name").all_inner_texts(), page.locator(".bar .bar-value").all_inner_texts()
    return list(zip(names, values, strict=True))


def expected_bars(speaker: Model, text: str, then: list[int], settings: SampleConfig) -> list[tuple[str, str]]:
    logits = masked_logits(speaker, text, then)
    p = generate.distribution(logits, torch.tensor([], dtype=torch.long), settings)
    rows = []
    for index in logits.sort(descending=True, stable=True).indices[:20].tolist():
        (view,) = lens.token_views(speaker.tokenizer, [index])
        name = "■ the end" if index in speaker.end_ids else shown(view)
        rows.append((name, "cut" if p[index] == 0 else percent(float(p[index]))))
    return rows


def test_bars_follow_the_sliders_at_once_and_are_what_the_sampler_draws_from(visit: Visit, speaker: Model) -> None:
    page = visit.open("next-token")
    page.get_by_label("Beginning", exact=True).fill(TEXT)
    page.locator(".bar").first.wait_for()
    settings = SampleConfig(temperature=0.7)
    expect(page.locator(".bar .bar-value").first).to_have_text(expected_bars(speaker, TEXT, [], settings)[0][1])
    assert rows_of_bars(page) == expected_bars(speaker, TEXT, [], settings)
    asked = len(visit.asked)
    for name, field, value in (
        ("Temperature", "temperature", 1.5),
        ("Top-k", "top_k", 12),
        ("Top-p", "top_p", 0.6),
        ("Min-p", "min_p", 0.2),
    ):
        slide(page, name, value)
        settings = SampleConfig(**{**vars(settings), field: value})
        assert rows_of_bars(page) == expected_bars(speaker, TEXT, [], settings)
    slide(page, "Temperature", 0)
    assert [value for _, value in rows_of_bars(page)] == ["100 %"] + ["cut"] * 19
    assert len(visit.asked) == asked  # all of it in the browser


def test_the_sampler_in_the_browser_equals_ours(visit: Visit, speaker: Model) -> None:
    page = visit.open("next-token")
    logits = lens.next_token_distribution(speaker.gpt, [BOS])
    tied = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0, -1.0])
    grid = [(t, k, p, m) for t in (0.0, 0.3, 1.0, 2.0) for k in (0, 1, 5) for p in (0.05, 0.5, 0.95, 1.0) for m in (0.0, 0.1, 0.5)]
    for values in (logits, tied):
        asked = [{"temperature": t, "top_k": k, "top_p": p, "min_p": m} for t, k, p, m in grid]
        found = page.evaluate(
            """async ([logits, all]) => {
                const { distribution } = await import("/static/sampling.mjs");
                return all.map((settings) => [...distribution(logits, settings)]);
            }""",
            [values.tolist(), asked],
        )
        for settings, probabilities in zip(asked, found, strict=True):
            expected = generate.distribution(values, torch.tensor([], dtype=torch.long), SampleConfig(**settings))
            assert probabilities == pytest.approx(expected.tolist(), abs=1e-12), settings


def test_choosing_tokens_grows_a_tree_of_stories(visit: Visit, speaker: Model) -> None:
    page = visit.open("next-token")
    page.get_by_label("Beginning", exact=True).fill(TEXT)
    story = page.get_by_label("The story so far")
    expect(story).to_have_text(TEXT)
    logits = masked_logits(speaker, TEXT, [])
    order = [index for index in logits.sort(descending=True, stable=True).indices[:20].tolist() if index not in speaker.end_ids]
    first, second = order[:2]
    names = [shown(view) for view in lens.token_views(speaker.tokenizer, [first, second])]
    page.locator(".bar").first.wait_for()
    page.locator(".bar", has=page.get_by_text(names[0], exact=True)).first.click()
    expect(page.locator(".twig")).to_have_count(1)
    page.locator(".bar").first.wait_for()
    assert rows_of_bars(page) == expected_bars(speaker, TEXT, [first], SampleConfig(temperature=0.7))
    page.get_by_role("button", name="Back").click()
    page.locator(".bar", has=page.get_by_text(names[1], exact=True)).first.click()
    expect(page.locator(".twig")).to_have_count(2)
    expect(page.locator(".tree > ul > li")).to_have_count(2)  # a branch each
    expect(page.locator(".twig[aria-current]")).to_have_count(1)
    page.locator(".twig").first.click()
    expect(page.locator(".twig").first).to_have_attribute("aria-current", "step")


def test_a_chat_model_can_read_the_beginning_as_a_question(visit: Visit, speaker: Model) -> None:
    page = visit.open("next-token")
    page.get_by_label("Beginning", exact=True).fill("Who are you?")
    page.get_by_role("button", name="as a question").click()
    ids = encode_chat(speaker.tokenizer, [Message("user", "Who are you?")], add_generation_prompt=True).ids
    best = lens.token_views(speaker.tokenizer, [int(lens.next_token_distribution(speaker.gpt, ids).argmax())])[0]
    expect(page.locator(".bar-name").first).to_have_text(shown(best))
    assert best.text == "I"
    slide(page, "Temperature", 0)
    page.get_by_role("button", name="Draw ten").click()
    expect(page.get_by_label("The story so far")).to_contain_text(LEARNED["Who are you?"])


def test_tokens_are_drawn_one_after_the_other(visit: Visit) -> None:
    page = visit.open("next-token")
    chosen(page, "base")
    page.get_by_label("Beginning", exact=True).fill(TEXT)
    slide(page, "Temperature", 2)
    page.locator(".bar").first.wait_for()
    page.get_by_role("button", name="Draw ten").click()
    twigs = page.locator(".twig")
    wait_for(lambda: twigs.count() == 10 or page.get_by_text("The story ends here").is_visible())
    page.get_by_label("Beginning", exact=True).fill("Another")
    expect(twigs).to_have_count(0)


# --- the other views of a model ---------------------------------------------------------------------------------------------------------


def test_tokens_are_shown_as_text_ids_and_bytes(visit: Visit, tiny_tokenizer: Tokenizer) -> None:
    text = "The cat 🐱\nsat."
    ids = tiny_tokenizer.encode(text)
    page = visit.open("tokens")
    page.get_by_label("Text", exact=True).fill(text)
    tokens = page.get_by_role("group", name="Tokens", exact=True).get_by_role("button")
    expect(tokens).to_have_count(len(ids))
    page.get_by_role("button", name="Ids").click()
    assert tokens.all_inner_texts() == [str(index) for index in ids]
    page.get_by_role("button", name="Bytes").click()
    spelled = "".join(tokens.all_inner_texts()).replace(" ", "")
    assert bytes.fromhex(spelled) == text.encode()
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("status")).to_contain_text(f"Token 2 of {len(ids)}")
    expect(page.get_by_role("status")).to_contain_text(str(ids[1]))


def test_surprise_is_shown_by_number_and_colour(visit: Visit, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    page = visit.open("surprise")
    page.get_by_label("Text", exact=True).fill(TEXT)
    nats = lens.surprise(speaker.gpt, [BOS, *tiny_tokenizer.encode(TEXT)])
    bits = [value / 0.6931471805599453 for value in nats]
    marks = page.get_by_role("group", name="Tokens with their surprise").locator("sub")
    expect(marks).to_have_text([f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in bits])
    expect(page.locator(".stat", has_text="Loss")).to_contain_text(f"{sum(nats) / len(nats):.3f}")
    heats = page.locator(".heated .token").evaluate_all("(all) => all.map((one) => Number(one.style.getPropertyValue('--heat')))")
    assert heats == pytest.approx([min(1, value / 12) for value in bits], abs=6e-4)
    page.locator(".heated .token").first.focus()
    expect(page.locator(".detail")).to_contain_text(f"{nats[0]:.3f} nats")


def test_the_steps_of_a_run_say_when_a_word_was_learned(visit: Visit, runs: Path) -> None:
    page = visit.open("surprise")
    chosen(page, "base")
    page.get_by_label("Text", exact=True).fill(TEXT)
    steps = RunFolder(runs / "base").steps()
    page.get_by_role("button", name="Read the text at every saved step").click()
    rows = page.locator(".strips tbody tr")
    expect(rows).to_have_count(len(steps))
    assert page.locator(".strips tbody th").all_inner_texts() == [f"{step:,}" for step in steps]
    means = [float(text) for text in page.locator(".strips tbody td:nth-child(2)").all_inner_texts()]
    assert means[-1] < means[0]
    words = page.get_by_label("Words and the step").locator(".word")
    expect(words).to_have_count(len(TEXT.split()))
    slide(page, "Known below", 0.5)
    expect(words.locator("sub").last).to_have_text("not yet")
    learned = page.evaluate(
        """async () => {
            const { learnedAt } = await import("/static/panels/surprise.mjs");
            const readings = [3, 1, 3, 1, 0.5].map((bits, i) => ({ step: 10 * i, words: [{ nats: bits * Math.LN2 }] }));
            return [learnedAt(readings, 0, 2), learnedAt(readings, 0, 0.7), learnedAt(readings, 0, 0.1), learnedAt(readings, 0, 9)];
        }"""
    )
    assert learned == [30, 40, None, 0]


def test_attention_says_where_a_token_looks(visit: Visit, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    page = visit.open("attention")
    page.get_by_label("Text", exact=True).fill(TEXT)
    ids = [BOS, *tiny_tokenizer.encode(TEXT)]
    maps = lens.attention_maps(speaker.gpt, ids)
    heads = page.get_by_role("group", name="Heads").get_by_role("button")
    expect(heads).to_have_count(maps.shape[0] * maps.shape[1])
    looks = page.locator(".looks .bar-value")

    def strongest(layer: int, head: int, row: int) -> list[str]:
        return [percent(value) for value in maps[layer, head, row].sort(descending=True).values[: min(5, row + 1)].tolist()]

    expect(looks).to_have_text(strongest(0, 0, len(ids) - 1))
    heads.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("heading", name="Layer 2, head 2")).to_be_visible()
    expect(looks).to_have_text(strongest(1, 1, len(ids) - 1))
    page.get_by_role("group", name="Choose the token that looks").get_by_role("button").nth(3).click()
    expect(looks).to_have_text(strongest(1, 1, 3))
    pixels = page.locator("canvas.map").evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    size = len(ids)
    alphas = [pixels[4 * i + 3] for i in range(size * size)]
    assert all((alpha == 0) == (i % size > i // size) for i, alpha in enumerate(alphas))  # nothing looks ahead


def test_the_logit_lens_shows_every_layers_guess(visit: Visit, speaker: Model, tiny_tokenizer: Tokenizer) -> None:
    page = visit.open("logit-lens")
    page.get_by_label("Text", exact=True).fill(TEXT)
    ids = [BOS, *tiny_tokenizer.encode(TEXT)]
    guesses = lens.logit_lens(speaker.gpt, ids, 5)
    expect(page.locator(".cell")).to_have_count(len(guesses) * len(ids))
    wanted = [shown(view) for guess in reversed(guesses) for view in lens.token_views(tiny_tokenizer, guess.ids[:, 0].tolist())]
    assert [text.rstrip("\n") for text in page.locator(".cell").all_text_contents()] == wanted
    dots = page.locator(".cell.is-right").count()
    assert dots == sum(int(guess.ids[t, 0]) == ids[t + 1] for guess in guesses for t in range(len(ids) - 1))
    values = page.locator(".looks .bar-value")
    expect(values).to_have_text([percent(p) for p in guesses[-1].probabilities[-1].tolist()])
    page.locator(".cell[aria-pressed=true]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    expect(values).to_have_text([percent(p) for p in guesses[-2].probabilities[-2].tolist()])


def test_the_mask_underlines_what_is_learned(visit: Visit) -> None:
    page = visit.open("mask")
    page.get_by_label("One line of a JSONL file").fill('{"question": "Who?", "answer": "A cat."}')
    learned = page.locator(".masked .is-trained")
    expect(learned.last).to_have_text("<|im_end|>")
    expect(page.locator(".masked")).to_contain_text("Who?")
    assert "".join(learned.all_text_contents()) == "A cat.<|im_end|>"
    page.get_by_role("button", name="messages").click()
    expect(page.locator(".masked")).to_contain_text("You are kind.")
    assert "".join(learned.all_text_contents()) == "I am a small model.<|im_end|>No, but I like stories.<|im_end|>"
    page.get_by_label("One line of a JSONL file").fill('{"question": "Who?"}')
    expect(page.get_by_role("alert")).to_contain_text('no field "answer"')
    assert all("400" in noise for noise in visit.noise)
    visit.noise.clear()  # the browser reports the refused request


def test_two_checkpoints_write_from_the_same_dice(visit: Visit) -> None:
    page = visit.open("compare")
    page.get_by_label("Beginning or question").fill(TEXT)
    slide(page, "Length", 20)
    page.get_by_label("Checkpoint A").select_option("base@20")
    page.get_by_label("Checkpoint B").select_option("base@20")
    page.get_by_role("button", name="Write both").click()
    expect(page.get_by_text("Both wrote the same text.")).to_be_visible()
    page.get_by_label("Checkpoint A").select_option("base@0")
    page.get_by_role("button", name="Write both").click()
    expect(page.locator(".side > .hint")).to_have_count(2)
    a, b = (page.get_by_label(f"What {side} writes").inner_text() for side in "AB")
    assert a.startswith(TEXT) and b.startswith(TEXT) and a != b


# --- training ---------------------------------------------------------------------------------------------------------------------------


def test_a_time_never_has_sixty_seconds(visit: Visit) -> None:
    page = visit.open("training")
    asked = [0.4, 59.4, 59.6, 75, 119.7, 3_599.6, 7_260]
    found = page.evaluate("async (all) => { const { duration } = await import('/static/ui.mjs'); return all.map(duration); }", asked)
    assert found == ["0 s", "59 s", "1 min 0 s", "1 min 15 s", "2 min 0 s", "1 h 0 min", "2 h 1 min"]


def stat(page: Any, name: str) -> Any:
    return page.locator(".stat", has_text=name).locator(".stat-value")


def test_a_run_is_shown_as_its_files_say_and_grows_with_them(visit: Visit, runs: Path) -> None:
    page = visit.open("training")
    page.get_by_label("Run", exact=True).select_option("base")
    run = RunFolder(runs / "base")
    last = run.metrics()[-1]
    expect(stat(page, "Loss")).to_contain_text(f"{last['loss']:.3f}")
    expect(stat(page, "Step")).to_contain_text("30 of 30")
    expect(stat(page, "Validation")).to_contain_text(f"{last['val_bpb']:.3f}")
    expect(page.locator(".state")).to_have_text("finished")
    expect(page.locator(".uplot")).to_have_count(3)
    expect(page.get_by_role("img", name="Loss from")).to_be_visible()
    with run.writing():
        run.log("metrics", {**last, "step": 31, "loss": 1.2345})
        expect(stat(page, "Loss")).to_contain_text("1.234")  # within a few seconds, without a reload
        expect(page.get_by_role("img", name="Loss from")).to_have_attribute("aria-label", re.compile("1.23 at step 31"))
        expect(page.locator(".state")).to_have_text("training now")
    run.rewind(30, keep_lines=False)
    expect(stat(page, "Loss")).to_contain_text(f"{last['loss']:.3f}")


def test_samples_skills_and_checks_of_a_run_are_shown(visit: Visit, runs: Path) -> None:
    page = visit.open("training")
    page.get_by_label("Run", exact=True).select_option("other")
    samples = files.read_lines(runs / "other" / "samples.jsonl")
    prompt = samples[0]["prompt"]
    rows = [row for row in samples if row["prompt"] == prompt]
    expect(page.locator(".sample")).to_have_text(prompt + rows[-1]["text"])
    page.locator(".slider", has_text="Step").locator("input").fill("0")
    expect(page.locator(".sample")).to_have_text(prompt + rows[0]["text"])
    expect(page.locator(".skills tbody tr")).to_have_text(re.compile("word order.*80 %"))
    expect(page.locator(".checks li")).to_have_count(5)
    expect(page.locator(".checks li").first).to_contain_text("normal")
    page.get_by_label("Compare with").select_option("base")
    expect(page.locator(".u-legend").first).to_contain_text("base")
    page.get_by_role("button", name="Logarithmic").click()
    expect(page.locator(".uplot")).to_have_count(3)
    page.get_by_label("Judge against").select_option("tinystories-PicoGPT")
    expect(page.locator(".checks li")).to_have_count(6)
    page.get_by_label("Compare with").select_option("shipped/tinystories-PicoGPT")
    expect(page.locator(".u-legend").first).to_contain_text("tinystories-PicoGPT")
