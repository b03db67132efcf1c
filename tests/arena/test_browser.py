"""The page in a real browser: keys, mouse, touch, reloads and lost connections, and what a voter gets to see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from arena_cases import QUESTIONS, WORD, Server, votes_in
from page import Page, page_at
from process_group import Processes
from programs import Chromium

Act = Callable[[Page, Server], Awaitable[None]]


class Lab:
    """A server whose votes can be looked at, and a browser that is at it."""

    def __init__(self, chromium: Chromium, processes: Processes, study: Path, folder: Path) -> None:
        self._chromium, self._processes, self._study = chromium, processes, study
        self.votes = folder / "votes.sqlite"
        self.server = self.start()

    def start(self, port: int = 0) -> Server:
        return Server(self._processes, self._study, "--votes", str(self.votes), port=port)

    @asynccontextmanager
    async def page(self, path: str = "/") -> AsyncIterator[Page]:
        async with page_at(self._chromium.endpoint, self.server.url + path) as page:
            yield page

    def outcomes(self, ticket: str) -> dict[str, str]:
        return {question: outcome for (of, question), outcome in votes_in(self.votes).items() if of == ticket}


@pytest.fixture
def lab(chromium: Chromium, processes: Processes, study: Path, tmp_path: Path) -> Lab:
    return Lab(chromium, processes, study, tmp_path)


def test_keys_vote_through_several_pairs_and_nothing_tells_the_run(lab: Lab) -> None:
    async def run() -> None:
        async with lab.page() as page:
            keys = {
                "ArrowLeft": "left",
                "ArrowRight": "right",
                "ArrowDown": "tie",
                " ": "skip",
                "1": "left",
                "2": "right",
            }
            pressed = iter([*keys, "0", *keys])
            outcomes = keys | {"0": "tie"}
            texts = []
            for _ in range(4):
                ticket, expected = await page.ready(), {}
                for question in QUESTIONS:
                    await page.asked(question)
                    key = next(pressed)
                    expected[question] = outcomes[key]
                    texts.append(await page.value("document.documentElement.outerHTML + document.cookie"))
                    await page.press(key)
                await page.until(f"!busy && pair.ticket !== {json.dumps(ticket)}")
                assert lab.outcomes(ticket) == expected
            assert await page.value("[...document.images].every(image => image.naturalWidth === 32)")
            assert not any(WORD in text for text in [*texts, *page.seen]) and len(page.seen) > 8
            assert page.complaints == []
            await page.value("document.getElementById('to-board').click()")
            rows = await page.until("[...document.querySelectorAll('td.name')].map(cell => cell.innerText)")
            assert rows and all(WORD in row for row in rows)
            assert page.complaints == []

    asyncio.run(run())


def test_a_reload_goes_on_where_it_was(lab: Lab) -> None:
    async def run() -> None:
        async with lab.page() as page:
            ticket = await page.ready()
            await page.press("ArrowLeft")
            await page.asked(QUESTIONS[1])
            for _ in range(2):
                await page.send("Page.reload")
                await page.asked(QUESTIONS[1])
                assert await page.ready() == ticket
            await page.press("ArrowDown")
            await page.asked(QUESTIONS[2])
            assert lab.outcomes(ticket) == {QUESTIONS[0]: "left", QUESTIONS[1]: "tie"}
            assert page.complaints == []

    asyncio.run(run())


def test_double_clicks_and_keys_held_down_count_once(lab: Lab) -> None:
    async def run() -> None:
        async with lab.page() as page:
            ticket = await page.ready()
            await page.click("#buttons [data-outcome=left]", times=2)
            await page.asked(QUESTIONS[1])
            assert lab.outcomes(ticket) == {QUESTIONS[0]: "left"}
            await page.press("ArrowRight", times=30)
            await page.asked(QUESTIONS[2])
            assert lab.outcomes(ticket) == {QUESTIONS[0]: "left", QUESTIONS[1]: "right"}
            # The space bar skips, also after a click; on a button that was reached by keys it presses that button.
            await page.press(" ")
            assert await page.ready() != ticket
            assert lab.outcomes(ticket)[QUESTIONS[2]] == "skip"
            ticket = await page.ready()
            await page.until("document.activeElement === document.body")
            while await page.value("document.activeElement.dataset.outcome") != "tie":
                await page.press("Tab")
            assert await page.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
            await page.press(" ")
            await page.asked(QUESTIONS[1])
            assert lab.outcomes(ticket) == {QUESTIONS[0]: "tie"}

    asyncio.run(run())


def test_a_phone_votes_by_touch(lab: Lab) -> None:
    async def run() -> None:
        async with lab.page() as page:
            await page.phone()
            ticket = await page.ready()
            shape = json.loads(
                await page.value(
                    "JSON.stringify({over: document.documentElement.scrollWidth - innerWidth, "
                    "sizes: [...document.images].map(image => [image.clientWidth, image.clientHeight]), "
                    "pixelated: [...document.images].map(image => getComputedStyle(image).imageRendering), "
                    "buttons: [...document.querySelectorAll('#buttons button')].map("
                    "button => [button.clientHeight, button.getBoundingClientRect().bottom])})"
                )
            )
            assert shape["over"] <= 0  # nothing to scroll sideways for
            assert shape["sizes"][0] == shape["sizes"][1] and min(shape["sizes"][0]) > 150
            assert set(shape["pixelated"]) == {"pixelated"}
            assert all(height >= 42 and bottom <= 667 for height, bottom in shape["buttons"])
            await page.tap("#right")
            await page.asked(QUESTIONS[1])
            await page.tap("#buttons [data-outcome=tie]")
            await page.asked(QUESTIONS[2])
            assert lab.outcomes(ticket) == {QUESTIONS[0]: "right", QUESTIONS[1]: "tie"}
            assert page.complaints == []

    asyncio.run(run())


def test_an_answer_outlives_a_killed_server_and_a_reload(lab: Lab) -> None:
    async def run() -> None:
        async with lab.page() as page:
            ticket = await page.ready()
            lab.server.process.kill()
            lab.server.process.wait()
            await page.press("ArrowLeft")
            await page.until("document.getElementById('status').innerText.startsWith('No connection')")
            assert lab.outcomes(ticket) == {}
            lab.start(lab.server.port)
            await page.send("Page.reload")
            await page.asked(QUESTIONS[1])
            assert await page.value("pair.ticket") == ticket
            assert lab.outcomes(ticket) == {QUESTIONS[0]: "left"}

    asyncio.run(run())


def test_names_and_prompts_are_text(chromium: Chromium, processes: Processes, tmp_path: Path) -> None:
    """What looks like a script is shown, and runs nowhere."""
    from arena_cases import make_study

    study = make_study(tmp_path / "study", runs=2, prompts=2)
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    for place in study.glob("*/samples/*/metadata.jsonl"):
        place.write_text(json.dumps({"prompt": f"{evil} {place.parent.name}"}))
    for place in study.glob("*/config.json"):
        place.write_text(json.dumps({"config": {"name": evil + place.parent.name}}))
    server = Server(processes, study, "--votes", str(tmp_path / "votes.sqlite"))

    async def run() -> None:
        async with page_at(chromium.endpoint, server.url) as page:
            await page.ready()
            assert evil in await page.value("document.getElementById('prompt').innerText")
            await page.press("ArrowLeft")
            await page.asked(QUESTIONS[1])
            await page.send("Page.navigate", url=server.url + "/board")
            assert evil in await page.until("document.querySelector('td.name')?.innerText")
            assert page.complaints == []

    asyncio.run(run())


def test_an_answer_that_breaks_off_is_asked_for_again(lab: Lab) -> None:
    """The server has counted, and the connection ends within what it says of it; or a proxy says something else."""

    async def run() -> None:
        async with lab.page() as page:
            ticket = await page.ready()
            await page.value(
                "{ const whole = window.fetch; let broken = 0; window.fetch = async (...asked) => {"
                " const response = await whole(...asked);"
                " if (broken++ > 1) return response;"
                " return new Response((await response.text()).slice(0, 5), { status: 200 }); }; }"
            )
            await page.press("ArrowLeft")
            await page.asked(QUESTIONS[1])
            assert lab.outcomes(ticket) == {QUESTIONS[0]: "left"}
            assert page.complaints == []

    asyncio.run(run())


def test_an_image_that_is_missing_takes_no_vote_and_is_asked_for_again(
    chromium: Chromium, processes: Processes, tmp_path: Path
) -> None:
    """Until it is there only skipping is taken, and this is said where it is seen in a small window."""
    from arena_cases import make_study

    study = make_study(tmp_path / "study", runs=2, prompts=2)
    images = list(study.glob("*/samples/*/samples/*.png"))
    votes = tmp_path / "votes.sqlite"
    server = Server(processes, study, "--votes", str(votes))
    for image in images[: len(images) // 2]:  # of one run, so that one image is missing of each pair
        image.rename(image.with_suffix(".gone"))

    async def run() -> None:
        async with page_at(chromium.endpoint, server.url) as page:
            await page.window(780, 493)
            ticket = await page.ready()
            assert "missing" in await page.value("document.getElementById('status').innerText")
            ends = "['status', 'buttons'].map(id => document.getElementById(id).getBoundingClientRect().bottom)"
            assert max(await page.value(ends)) <= 493
            for key in ("ArrowLeft", "2", "ArrowDown"):
                await page.press(key)
            for button in ("#left", "#buttons [data-outcome=right]", "#buttons [data-outcome=tie]"):
                await page.click(button)
            await page.press(" ")
            await page.asked(QUESTIONS[1])
            assert votes_in(votes) == {(ticket, QUESTIONS[0]): "skip"}
            for image in images[: len(images) // 2]:
                image.with_suffix(".gone").rename(image)
            await page.until("missing.size === 0 && document.getElementById('status').innerText === ''")
            assert await page.value("[...document.images].every(image => image.naturalWidth === 8)")
            await page.ready()
            await page.press("ArrowLeft")
            await page.asked(QUESTIONS[2])
            assert votes_in(votes)[ticket, QUESTIONS[1]] == "left"

    asyncio.run(run())


def test_the_board_shows_groups_apart_and_how_little_some_votes_tell(
    chromium: Chromium, processes: Processes, tmp_path: Path
) -> None:
    from arena_cases import make_study

    for name in ("one", "two"):
        study = make_study(tmp_path / "root" / name, runs=2, prompts=2)
        for path in study.glob("*/samples/*/metadata.jsonl"):
            path.write_text(json.dumps({"prompt": f"{name} {path.parent.name}"}))
    server = Server(processes, tmp_path / "root", "--questions", "aesthetics")

    async def run() -> None:
        async with page_at(chromium.endpoint, server.url) as page:
            pairs = 0
            while await page.until("!busy && pair.ticket || document.body.innerText.includes('Thank you')") is not True:
                await page.ready()
                pairs += 1
                await page.press("ArrowLeft")
                await page.until(f"pair.judged === {pairs}")
            assert pairs == 4
            await page.send("Page.navigate", url=server.url + "/board")
            titles = await page.until("[...document.querySelectorAll('h3')].map(title => title.innerText)")
            assert titles == [f"Group {n} of 2, rated apart: these runs have not met the others" for n in (1, 2)]
            assert "Votes on 2 prompts only" in await page.value("document.querySelector('#boards .note').innerText")
            assert await page.value("document.querySelectorAll('table').length") == 2
            assert page.complaints == []

    asyncio.run(run())
