"""The site in a browser: Debian's Chromium, driven by Playwright, with axe-core for accessibility.

Pages come from a server on the loopback; every request to another host is refused and counts as a failure. Where the
browser, Playwright or axe-core is missing, the tests are skipped; in CI (`LABUTILS_REQUIRE_BROWSER`) they fail instead.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

pytestmark = [pytest.mark.timeout(1800), pytest.mark.notebook]

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAPER = {"width": 718, "height": 1047}  # A4 without its margins, at 96 pixels an inch
TABS = 4
SERIOUS = ("serious", "critical")

# Chromium looks up hosts of its own unless told not to; the last option makes every name but the loopback unknown.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)

# Resolves when formulas are set, fonts loaded and pictures decoded.
SETTLED = """async () => {
    if (window.MathJax?.startup) await MathJax.startup.promise;
    await document.fonts.ready;
    await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
}"""

BROKEN_IMAGES = """() => [...document.images].filter((image) => !image.complete || image.naturalWidth === 0)
    .map((image) => image.currentSrc.slice(0, 80))"""

# Formulas that MathJax has not set, or set as an error; TeX that stands in the text as written.
RAW_MATH = r"""() => {
    const found = [...document.querySelectorAll('article .math')]
        .filter((formula) => !formula.querySelector('mjx-container') || formula.querySelector('mjx-merror'))
        .map((formula) => formula.textContent.slice(0, 60));
    const texts = document.createTreeWalker(document.querySelector('article') ?? document.body, NodeFilter.SHOW_TEXT);
    for (let node = texts.nextNode(); node; node = texts.nextNode()) {
        const shown = !node.parentElement.closest('pre, code, script, style, mjx-container, .math');
        if (shown && /\\[()[\]]|\$\$|\$\\|\\[A-Za-z]{2,}/.test(node.data)) found.push(node.data.trim().slice(0, 60));
    }
    return found;
}"""

# What sticks out to the right of the window and does not scroll by itself, if the page scrolls sideways.
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.scrollingElement.scrollWidth <= width) return [];
    const scrolls = (e) => e && e !== document.body && (getComputedStyle(e).overflowX !== 'visible' ||
        getComputedStyle(e).position === 'fixed' || scrolls(e.parentElement));
    const out = [...document.body.querySelectorAll('*')]
        .filter((e) => e.getBoundingClientRect().right > width && !scrolls(e));
    return [`${document.scrollingElement.scrollWidth} px`, ...out.map((e) =>
        `${e.tagName.toLowerCase()}.${e.className} ${e.textContent.slice(0, 30)}`)].slice(0, 6);
}"""

# Code and pictures that paper would not show to their end.
CUT_OFF = """() => [...document.querySelectorAll('article :is(pre, img, .text_html)')]
    .filter((e) => e.getClientRects().length && (e.scrollWidth > e.clientWidth + 1 ||
        e.getBoundingClientRect().right > document.documentElement.clientWidth + 1))
    .map((e) => `${e.tagName} ${e.scrollWidth} > ${e.clientWidth} ${e.textContent.slice(0, 40)}`)"""

# What is folded is opened: axe-core sees only what is shown. It need not measure the same thing thousands of times. Of
# table rows with the same elements in them one stays; of spans, bold words and so on with the same tags and classes
# around them as well; a formula becomes a word.
SLIM = """() => {
    for (const block of document.querySelectorAll('article details:not(.claim, .settings)')) block.open = true;
    for (const formula of document.querySelectorAll('mjx-container')) formula.replaceChildren('formula');
    const kinds = new Map([[document.body, '']]), seen = new Set();
    for (const e of document.body.querySelectorAll('*')) {
        kinds.set(e, `${kinds.get(e.parentElement)}>${e.tagName}.${e.className}.${e.getAttribute('style')}`);
    }
    const isNew = (kind) => !seen.has(kind) && seen.add(kind);
    for (const row of document.querySelectorAll('article tbody tr')) {
        if (!isNew([row, ...row.querySelectorAll('*')].map((e) => kinds.get(e)).join())) row.remove();
    }
    const words = [...document.querySelectorAll('article :is(span, code, em, strong, small, br)')]
        .filter((e) => [...e.attributes].every(({name}) => ['class', 'style'].includes(name)));
    for (const word of words.filter((e) => !isNew(kinds.get(e)))) word.replaceWith(...word.childNodes);
    document.body.normalize();
}"""

# What stands around the article, the same on every page.
DROP_FRAME = """() => document.querySelectorAll('.bd-sidebar-primary, .bd-header-article, .bd-footer')
    .forEach((part) => part.remove())"""
WITH_FRAME = ("intro.html", "notebooks/11_manual_backpropagation.html", "reference/labutils.optim.html")

# The theme lets the keyboard reach what scrolls, 300 ms after the window changed; the sidebar slides meanwhile.
STILL = """async () => {
    const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));
    const ends = document.getAnimations().map((animation) => animation.finished.catch(() => {}));
    await Promise.race([Promise.all(ends), wait(3000)]);
    window.dispatchEvent(new Event('resize'));
    await wait(400);
}"""

# Colors fade from one theme to the other: what they pass through is nobody's to read.
USE_THEME = """(theme) => {
    Object.assign(document.documentElement.dataset, {theme, mode: theme});
    document.getAnimations().filter((one) => one instanceof CSSTransition).forEach((one) => one.finish());
}"""

VIOLATIONS = """async (options) => (await axe.run(document, {resultTypes: ['violations'], ...options})).violations
    .flatMap(({id, impact, nodes}) => nodes.map(({target, any, html}) =>
        ({id, impact, target: target.join(' '), why: any[0]?.message ?? '', html: html.slice(0, 160)})))"""


@dataclass
class Visit:
    """What came of opening one page."""

    errors: list[str] = field(default_factory=list)  # console errors, exceptions
    failed: list[str] = field(default_factory=list)  # requests that failed or went to another host
    images: list[str] = field(default_factory=list)
    formulas: int = 0
    raw_math: list[str] = field(default_factory=list)
    too_wide: list[str] = field(default_factory=list)
    violations: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # theme to axe-core's findings


# --- The browser -------------------------------------------------------------------------------------------------


class Lab:
    """A running Chromium and the address of a site; coroutines run on its event loop."""

    def __init__(self, window: BrowserContext, address: str, run: Callable[[Awaitable[Any]], Any]) -> None:
        self.window, self.address, self.run = window, address, run

    @asynccontextmanager
    async def tab(self, visit: Visit, size: dict[str, int]) -> AsyncIterator[Page]:
        """A page of its own that writes errors and failed requests into `visit`."""
        page = await self.window.new_page()
        await page.set_viewport_size(size)
        own = urlsplit(self.address).netloc
        page.on("console", lambda told: visit.errors.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("requestfailed", lambda request: visit.failed.append(f"{request.url[:120]}: {request.failure}"))
        page.on("response", lambda r: visit.failed.append(f"{r.url[:120]}: {r.status}") if r.status >= 400 else None)
        page.on(
            "request",
            lambda request: (
                visit.failed.append(f"{request.url[:120]}: another host")
                if urlsplit(request.url).scheme in ("http", "https") and urlsplit(request.url).netloc != own
                else None
            ),
        )
        try:
            yield page
        finally:
            await page.close()

    @asynccontextmanager
    async def open(self, name: str, size: dict[str, int]) -> AsyncIterator[Page]:
        """A page of the site, ready; what a reader does with it must cause no error and ask no other host."""
        visit = Visit()
        async with self.tab(visit, size) as page:
            await page.goto(f"{self.address}/{name}")
            await page.evaluate(SETTLED)
            yield page
        assert (visit.errors, visit.failed) == ([], [])

    async def visit(self, name: str, axe: str) -> Visit:
        """Open one page of the site and look at it: wide and narrow, light and dark."""
        visit = Visit()
        async with self.tab(visit, WIDE) as page:
            await page.goto(f"{self.address}/{name}")
            await page.evaluate(SETTLED)
            visit.images = await page.evaluate(BROKEN_IMAGES)
            visit.formulas = await page.locator("mjx-container").count()
            visit.raw_math = await page.evaluate(RAW_MATH)
            await page.set_viewport_size(PHONE)
            visit.too_wide = await page.evaluate(TOO_WIDE)
            await page.set_viewport_size(WIDE)
            await page.evaluate(STILL)
            await page.evaluate(SLIM)
            if name not in WITH_FRAME:
                await page.evaluate(DROP_FRAME)
            await page.evaluate(axe)
            await page.evaluate(USE_THEME, "light")
            visit.violations["light"] = await page.evaluate(VIOLATIONS, {})
            await page.evaluate(USE_THEME, "dark")
            # the other rules do not depend on colors
            dark = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
            visit.violations["dark"] = await page.evaluate(VIOLATIONS, dark)
        return visit

    def visit_all(self, names: list[str], axe: str) -> dict[str, Visit]:
        """Open pages, a few side by side."""

        async def one(name: str, free: asyncio.Semaphore) -> Visit:
            async with free:
                return await self.visit(name, axe)

        async def all_of_them() -> list[Visit]:
            free = asyncio.Semaphore(TABS)
            return await asyncio.gather(*(one(name, free) for name in names))

        return dict(zip(names, self.run(all_of_them()), strict=True))


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    protocol_version = "HTTP/1.1"  # keeps a connection for the many files of a page

    def log_message(self, format: str, *args: Any) -> None:
        pass


def check_tools() -> None:
    """Skip, or in CI fail, where something to open pages with is missing; before the site is built for it."""
    missing = [
        *([] if CHROMIUM else ["no chromium (Debian: apt-get install chromium)"]),
        *([] if importlib.util.find_spec("playwright") else ["no playwright (pip install playwright)"]),
        *([] if AXE.is_file() else ["no axe-core (npm ci)"]),
    ]
    if missing:
        reason = "the pages cannot be opened: " + ", ".join(missing)
        if os.environ.get("LABUTILS_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def tools() -> None:
    check_tools()


@pytest.fixture(scope="module")
def open_site(tools: None) -> Iterator[Callable[[Path], Lab]]:
    """Serve a folder and give the browser, one for all tests."""
    from playwright.async_api import async_playwright

    servers: list[ThreadingHTTPServer] = []
    with asyncio.Runner() as loop:
        playwright = loop.run(async_playwright().start())
        browser = loop.run(playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS)))
        # one window, so that the tabs share a cache
        window = loop.run(browser.new_context(color_scheme="light", reduced_motion="reduce"))
        window.set_default_timeout(120_000)  # milliseconds: the machine may be busy

        def serve(folder: Path) -> Lab:
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
            return Lab(window, f"http://127.0.0.1:{server.server_port}", loop.run)

        yield serve
        loop.run(browser.close())
        loop.run(playwright.stop())
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def lab(open_site: Callable[[Path], Lab], built_book: Path) -> Lab:
    return open_site(built_book)


@pytest.fixture(scope="module")
def visits(lab: Lab, built_book: Path) -> dict[str, Visit]:
    """Every page of the site, opened; of those that show source code, all of one form, two."""
    names = sorted(path.relative_to(built_book).as_posix() for path in built_book.rglob("*.html"))
    sources = [name for name in names if name.startswith("_modules/")]
    left_out = {"index.html", *sources[2:]}  # the first page redirects
    chosen = [name for name in names if name not in left_out and not name.startswith("_static/")]
    return lab.visit_all(chosen, AXE.read_text(encoding="utf-8"))


def findings(visits: dict[str, Visit], what: str) -> dict[str, list[str]]:
    return {name: getattr(visit, what) for name, visit in visits.items() if getattr(visit, what)}


def serious(visits: dict[str, Visit], theme: str) -> dict[str, list[str]]:
    """The findings that count, once for each element of each page."""
    return {
        name: told
        for name, visit in visits.items()
        if (
            told := [
                f"{found['id']}: {found['target']} {found['why']} {found['html']}"
                for found in visit.violations[theme]
                if found["impact"] in SERIOUS
            ]
        )
    }


# --- Every page --------------------------------------------------------------------------------------------------


def test_no_page_reports_an_error_or_asks_another_host(visits: dict[str, Visit]) -> None:
    assert set(WITH_FRAME) <= set(visits)
    assert findings(visits, "failed") == {}
    assert findings(visits, "errors") == {}


def test_formulas_are_set(visits: dict[str, Visit]) -> None:
    assert findings(visits, "raw_math") == {}
    assert visits["part1.html"].formulas > 10


def test_pictures_are_shown(visits: dict[str, Visit]) -> None:
    assert findings(visits, "images") == {}


def test_no_page_scrolls_sideways_on_a_phone(visits: dict[str, Visit]) -> None:
    assert findings(visits, "too_wide") == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible(visits: dict[str, Visit], theme: str) -> None:
    assert serious(visits, theme) == {}


# --- What readers do ---------------------------------------------------------------------------------------------

NOTEBOOK = "notebooks/21_function_fitting.html"
WITH_SLIDER = "notebooks/11_manual_backpropagation.html"
each_size = pytest.mark.parametrize("size", [WIDE, PHONE])

# axe-core measures the whole page, however small the part that is asked for: so the rest of the page goes.
ALONE = """(selector) => {
    const parts = [...document.querySelectorAll(selector)];
    for (const e of document.querySelectorAll('article section > *, .bd-sidebar, .bd-header-article')) {
        if (!parts.some((part) => part.contains(e) || e.contains(part))) e.remove();
    }
}"""


def in_browser(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine, on the browser's event loop."""

    @functools.wraps(test)
    def run(lab: Lab, **more: Any) -> None:
        lab.run(test(lab, **more))

    return run


async def findings_in(page: Page, selector: str) -> list[str]:
    """What axe-core finds in a part of a page as it is now, light and dark. Comes last: little else is left."""
    await page.evaluate(ALONE, selector)
    await page.evaluate(AXE.read_text(encoding="utf-8"))
    found = []
    for theme in ("light", "dark"):
        await page.evaluate(USE_THEME, theme)
        run = "async (part) => (await axe.run(part)).violations.map(({id, nodes}) => `${id} ${nodes[0].html}`)"
        found += [f"{theme}: {told}" for told in await page.evaluate(run, selector)]
    return found


@in_browser
async def test_the_first_page_leads_to_the_introduction(lab: Lab) -> None:
    async with lab.tab(Visit(), WIDE) as page:
        await page.goto(f"{lab.address}/index.html")
        await page.wait_for_url("**/intro.html")
        assert "How neural networks learn" in await page.title()


@pytest.mark.parametrize(
    ("size", "button"), [(WIDE, ".search-button-field"), (PHONE, ".article-header-buttons .search-button")]
)
@in_browser
async def test_search_finds_a_term(lab: Lab, size: dict[str, int], button: str) -> None:
    async with lab.open("intro.html", size) as page:
        await page.locator(button).click()
        await page.locator("#pst-search-dialog input").press_sequentially("momentum")
        await page.keyboard.press("Enter")
        # they come one after the other
        result = page.locator("#search-results li > a").filter(has_text="SGD by hand").first
        await result.wait_for()
        await page.wait_for_load_state("networkidle")  # the pages that the excerpts come from
        await result.click()
        await page.wait_for_url("**/12_manual_sgd.html*")
        assert "momentum" in (await page.locator("article").inner_text()).lower()


@in_browser
async def test_the_sidebar_opens_and_closes_on_a_phone(lab: Lab) -> None:
    async with lab.open("intro.html", PHONE) as page:
        entry = page.locator(".bd-docs-nav").get_by_text("How to use this book")
        toggle = page.locator("button.primary-toggle")
        assert not await entry.is_visible()
        for close in ("Escape", "outside"):
            await toggle.click()
            await entry.wait_for(state="visible")
            if close == "Escape":
                await page.keyboard.press("Escape")
            else:
                await page.mouse.click(PHONE["width"] - 5, PHONE["height"] // 2)
            await entry.wait_for(state="hidden")
        await toggle.click()
        await page.locator("summary[aria-label='Pages of: Part 2: Depth'] > span").click()
        await page.locator(".bd-docs-nav").get_by_text("Function fitting").click()
        await page.wait_for_url("**/21_function_fitting.html")
        assert not await page.locator("dialog[open]").count()
        assert "Function fitting" in await page.locator("article h1").inner_text()


@in_browser
async def test_the_theme_can_be_chosen_and_stays(lab: Lab) -> None:
    color = "[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    async with lab.open("intro.html", WIDE) as page:
        first, light = await page.evaluate(color)
        while (await page.evaluate("document.documentElement.dataset.mode")) != "dark":
            await page.locator(".theme-switch-button").first.click()
        await page.goto(f"{lab.address}/part1.html")
        second, dark = await page.evaluate(color)
        await page.evaluate("localStorage.clear()")
    assert (first, second) == ("light", "dark")
    assert light != dark


@each_size
@in_browser
async def test_a_figure_opens_large_and_closes_by_keyboard(lab: Lab, size: dict[str, int]) -> None:
    async with lab.open(NOTEBOOK, size) as page:
        small = page.locator("figure.numbered img").first
        button = page.locator("figure.numbered button.zoom").first
        large = page.locator("dialog.zoomed")
        for close in ("Escape", "Enter"):  # the button in the dialog has the focus
            await button.focus()
            await page.keyboard.press("Enter")
            await large.wait_for(state="visible")
            assert (await large.locator("p").inner_text()).startswith("Figure 21.1 ")
            widths = [await one.evaluate("e => e.getBoundingClientRect().width") for one in (small, large)]
            assert widths[0] < widths[1] <= size["width"]
            await page.keyboard.press(close)
            await large.wait_for(state="hidden")
            assert await button.evaluate("e => e === document.activeElement")
        await small.click()
        await large.wait_for(state="visible")
        assert await findings_in(page, "dialog.zoomed") == []


@each_size
@in_browser
async def test_answers_and_solutions_are_folded_and_open(lab: Lab, size: dict[str, int]) -> None:
    async with lab.open(NOTEBOOK, size) as page:
        for kind, word in (("right", "Yes"), ("wrong", "No")):
            answer = page.locator(f"details[data-answer={kind}]").first
            assert not await answer.locator("p").first.is_visible()
            await answer.locator("summary").focus()
            await page.keyboard.press("Enter")
            await answer.locator("p").first.wait_for(state="visible")
            assert (await answer.locator("p").first.inner_text()).startswith(word)
        solution = page.locator("details", has_text="BEGIN SOLUTION").last
        assert not await solution.locator("pre").is_visible()
        await solution.locator("summary").click()
        await solution.locator("pre").wait_for(state="visible")
        assert await findings_in(page, ":is(section:has(> details[open][data-answer]), details.hide[open])") == []


@each_size
@in_browser
async def test_a_slider_moves_by_keyboard_without_a_kernel(lab: Lab, size: dict[str, int]) -> None:
    async with lab.open(WITH_SLIDER, size) as page:
        slider = page.locator("figure.slider").first
        shown, told = slider.locator("img:visible"), slider.locator("output")
        before, said = await shown.get_attribute("data-value"), await told.inner_text()
        assert before == said
        await slider.locator("input").focus()
        await page.keyboard.press("ArrowRight")
        assert await shown.count() == 1
        assert await shown.get_attribute("data-value") == await told.inner_text() != before
        await page.keyboard.press("Tab")  # to the one button of all its pictures
        await page.keyboard.press("Enter")
        alt = await page.locator("dialog.zoomed img").get_attribute("alt")
        assert alt == await shown.get_attribute("alt") != ""
        await page.keyboard.press("Escape")
        await page.emulate_media(media="print")
        assert await shown.count() == 1
        assert not await slider.locator("label").is_visible()
        await page.emulate_media(media="screen")
        assert await findings_in(page, "figure.slider") == []


@each_size
@in_browser
async def test_claims_can_be_filtered_searched_sorted_and_linked(lab: Lab, size: dict[str, int]) -> None:
    visit = Visit()
    async with lab.tab(visit, size) as page:
        await page.goto(f"{lab.address}/claims.html")
        shown = page.locator("details.claim:visible")
        total = await shown.count()
        assert await page.locator(".claims-tools output").inner_text() == f"{total} of {total} claims"
        await page.get_by_label("Verdict", exact=True).select_option("not-supported")
        await page.get_by_label("Notebook", exact=True).select_option("21")
        some = await shown.count()
        assert 0 < some < total
        for text in await shown.all_inner_texts():
            assert "not supported" in text
            assert "notebook 21" in text
        await page.get_by_label("Sort by", exact=True).select_option("document")
        assert await shown.count() == some
        await page.get_by_label("Search claims", exact=True).fill("no claim says this")
        assert await shown.count() == 0
        name = await page.locator("details.claim").last.get_attribute("id")
        await page.goto(f"{lab.address}/claims.html#{name}")
        await page.locator(f"#{name}[open]").wait_for()
        assert await page.locator(f"#{name}").get_by_text("link to this claim").is_visible()
        async with page.expect_download() as download:
            await page.get_by_text("(CSV)").click()
        assert "agreement" in Path(await (await download.value).path()).read_text(encoding="utf-8").splitlines()[0]
        assert await findings_in(page, ":is(.claims-tools, details.claim[open])") == []
    assert visit.errors == []  # a download counts as a request that failed


@in_browser
async def test_claims_can_be_read_without_javascript(lab: Lab) -> None:
    window = await lab.window.browser.new_context(java_script_enabled=False)
    page = await window.new_page()
    await page.goto(f"{lab.address}/claims.html")
    first = page.locator("details.claim").first
    await first.locator("summary").click()
    assert "quick run" in await first.inner_text()
    assert not await page.locator(".claims-tools").inner_text()
    await window.close()


@in_browser
async def test_a_formula_brings_no_script_along(lab: Lab) -> None:
    async with lab.open("part1.html", WIDE) as page:
        await page.evaluate(r"""async () => {
            const made = await MathJax.tex2chtmlPromise('\\href{javascript:alert(1)}{x}');
            document.querySelector('article').append(made);
        }""")
        assert await page.locator("a[href^=javascript]").count() == 0


@pytest.mark.parametrize("name", ["part1.html", NOTEBOOK])
@in_browser
async def test_a_page_can_be_printed(lab: Lab, name: str) -> None:
    async with lab.open(name, PAPER) as page:
        await page.emulate_media(media="print")
        assert not await page.locator(".bd-sidebar-primary").is_visible()
        assert await page.evaluate(CUT_OFF) == []
        assert (await page.pdf(format="A4")).startswith(b"%PDF")


# --- The checks can fail -----------------------------------------------------------------------------------------

BAD_PAGE = r"""<!doctype html><html lang="en" data-theme="light"><title>Bad</title>
<style>[data-theme=dark] {background: #000; color: #333} .math {color: inherit}</style>
<main><article><h1>Bad</h1><p>What is \(x\)?</p><p class="math">y^2</p><button></button>
<img src="gone.png" alt="Nothing."><p style="width: 900px">Wide.</p></article></main>
<script src="https://example.org/x.js"></script><script>throw new Error("from the page")</script></html>"""


def test_faults_of_a_page_are_found(open_site: Callable[[Path], Lab], tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(BAD_PAGE)
    bad = open_site(tmp_path).visit_all(["bad.html"], AXE.read_text(encoding="utf-8"))
    visit = bad["bad.html"]
    assert any("from the page" in error for error in visit.errors)
    assert any("example.org" in failure and "another host" in failure for failure in visit.failed)
    assert any("gone.png" in failure and "404" in failure for failure in visit.failed)
    assert len(visit.images) == 1
    assert visit.raw_math == ["y^2", r"What is \(x\)?"]
    assert "900 px" in visit.too_wide[0] or visit.too_wide
    assert [told.split(":")[0] for told in serious(bad, "light")["bad.html"]] == ["button-name"]
    assert {told.split(":")[0] for told in serious(bad, "dark")["bad.html"]} == {"color-contrast"}


FADING_PAGE = r"""<!doctype html><html lang="en" data-theme="light"><title>Fading</title>
<style>* {color: #000; background: #fff; transition: color 60s}
[data-theme=dark] * {color: #fff; background: #333}</style>
<main><article><h1>Fading</h1><p>A text.</p></article></main></html>"""


def test_colors_are_looked_at_when_they_have_faded_in(open_site: Callable[[Path], Lab], tmp_path: Path) -> None:
    (tmp_path / "fading.html").write_text(FADING_PAGE)
    fading = open_site(tmp_path).visit_all(["fading.html"], AXE.read_text(encoding="utf-8"))
    assert (serious(fading, "light"), serious(fading, "dark")) == ({}, {})


def test_what_is_missing_is_said_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_browser.CHROMIUM", None)
    monkeypatch.delenv("LABUTILS_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no chromium"):
        check_tools()
    monkeypatch.setenv("LABUTILS_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no chromium"):
        check_tools()
