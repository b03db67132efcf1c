"""The report in a real browser, from disk: pointed at, clicked, tapped, by keys alone, and without scripts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from page import Page, page_at
from programs import Chromium
from test_report import study as make_tables
from test_report_figure8 import tree

from scaling.analysis import Analysis
from scaling.figure8 import figure8_section
from scaling.interactive import run_facts
from scaling.look import Look, run_mark
from scaling.page import Lead, Section, render
from scaling.score_correlations import score_correlations
from scaling.study import load_study

NAME = "d3-lognorm"
SELECTOR = f'.panel .run[data-run="{run_mark(NAME)}"]'
LAST = f"""(run => {{
  const at = [...run.querySelectorAll("use")].at(-1);
  const box = at.getBoundingClientRect();
  return {{x: box.x + box.width / 2, y: box.y + box.height / 2}};
}})(document.querySelector({json.dumps(SELECTOR)}))"""
SHOWN = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText"
SIDE = "document.getElementById('side').hidden ? '' : document.getElementById('side').innerText"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tables(tmp_path_factory.mktemp("study") / "s")
    tables = load_study(folder)
    for run in tables.runs["run_id"]:
        tree(folder / run)
    correlations, why = score_correlations(tables, {})
    look = Look.of(tables.runs, tables.results)
    part = figure8_section(tables, Analysis(correlations=correlations, uncorrelated=why), look, folder / "figures")
    answers = [
        ("By how much", ["Validation loss: 7.7 % below rf (−2.8 to 17.1 %)"]),
        ("How sure", ["Probability 0.96"]),
    ]
    steps = [("One more seed.", "mmdit study run mine"), ("Deeper.", "mmdit recommend results.csv --flops 3.4e+13")]
    lead = Lead("rf/lognorm(0.00,1.00) won.", answers, "What to run next", steps)
    path = folder / "report.html"
    path.write_text(render("t", "", [part, Section("End")], lead=lead, facts=run_facts(tables, folder)))
    return path


async def loaded(page: Page) -> None:
    await page.until("document.readyState === 'complete' && document.querySelector('.panel svg') !== null")


def test_pointing_and_clicking(chromium: Chromium, report: Path) -> None:
    async def run() -> None:
        async with page_at(chromium.endpoint, report.as_uri()) as page:
            await loaded(page)
            await page.value("document.querySelector('.panel').scrollIntoView()")
            at = await page.value(LAST)
            await page.point(at["x"] + 3, at["y"] - 2)
            told = await page.until(SHOWN)
            assert NAME in told and "step 400: loss" in told and "FLOPs" in told and "depth: 3" in told
            assert await page.value("document.querySelectorAll('.run.on').length") == len(
                await page.value(f"[...document.querySelectorAll({json.dumps(SELECTOR)})].map(g => g.tagName)")
            )
            await page.point(2, 2)
            await page.until(f"({SHOWN}) === ''")
            for kind in ("mousePressed", "mouseReleased"):
                await page.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)
            told = await page.until(SIDE)
            assert NAME in told and "prompt 2" in told and "alert(1)" in told
            assert await page.value(
                "[...document.querySelectorAll('#side img')].every(i => i.complete && i.naturalWidth)"
            )
            await page.press("Escape")
            await page.until(f"({SIDE}) === ''")
            assert page.complaints == [] and all(seen.startswith(("file:", "data:")) for seen in page.seen)

    asyncio.run(run())


def test_keys_alone(chromium: Chromium, report: Path) -> None:
    async def run() -> None:
        async with page_at(chromium.endpoint, report.as_uri()) as page:
            await loaded(page)
            while await page.value("document.activeElement.classList.contains('run')") is not True:
                await page.press("Tab")
            first = await page.value("document.activeElement.dataset.run")
            await page.press("ArrowRight")
            second = await page.value("document.activeElement.dataset.run")
            assert first != second and await page.value(SHOWN)
            await page.press("Enter")
            assert await page.until(SIDE)
            assert await page.value("document.activeElement.id") == "close"
            await page.press("Escape")
            assert await page.value("document.activeElement.dataset.run") == second  # where one was
            await page.press("Tab")
            panel = "document.activeElement.closest('.panel').querySelector('figcaption').textContent"
            assert await page.value(panel) == "Loss against FLOPs"  # one stop a panel

    asyncio.run(run())


def test_on_a_phone_the_answers_are_on_the_first_screen_and_a_tap_opens(chromium: Chromium, report: Path) -> None:
    async def run() -> None:
        async with page_at(chromium.endpoint, report.as_uri()) as page:
            await loaded(page)
            await page.phone(375, 812)
            bottom = "document.querySelector('.lead').getBoundingClientRect().bottom"
            assert 0 < await page.until(f"innerWidth === 375 && {bottom}") < 812
            assert await page.value("document.documentElement.scrollWidth") == 375  # nothing sticks out
            await page.value("document.querySelector('.panel').scrollIntoView()")
            at = await page.value(LAST)
            await page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[at])
            await page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            assert NAME in await page.until(SIDE)

    asyncio.run(run())


def test_without_scripts_figures_stand(chromium: Chromium, report: Path) -> None:
    async def run() -> None:
        async with page_at(chromium.endpoint, "about:blank") as page:
            await page.send("Emulation.setScriptExecutionDisabled", value=True)
            await page.send("Page.navigate", url=report.as_uri())
            # The debugger still evaluates.
            await loaded(page)
            assert await page.value("document.querySelectorAll('.panel svg').length") == 3
            assert "Without scripts" in await page.value("document.body.innerText")
            assert await page.value(f"({SHOWN}) + ({SIDE})") == ""

    asyncio.run(run())
