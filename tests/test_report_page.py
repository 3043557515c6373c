"""The report in a real browser: opened from disk, with no network."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic_run

from seif_jax.report import page as report_page
from seif_jax.report.run_files import open_runs

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium")
SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
ENDING = "startend:end_checker"
WIDTHS = (390, 1280)
ATTACK = (
    "<script>window.attacked = 1</script></script><img src=x onerror='window.attacked = 1'>"
    '\u2028</pre><b>bold</b> "quoted" \\u003c `${window.attacked = 1}` <!-- ]]> 漢字 🙂'
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=SWITCHES.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run = synthetic_run.make(folder / "one", prompts=5, group=4, reply=ATTACK)
    return report_page.write(open_runs([run]), run / "report")


@pytest.fixture
def opened(browser, report, request) -> Iterator:
    """The page at the width and in the colours that the test's parameters name; nothing may be
    printed to the console or asked of a network."""
    width, colours = getattr(request, "param", (1280, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=colours, offline=True
    )
    page = context.new_page()
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda r: r.url.startswith("file://") or noise.append(r.url))
    page.goto(report.as_uri())
    page.wait_for_selector("h1")
    yield page
    assert noise == []
    context.close()


def scroll_through(page) -> None:
    height = page.evaluate("document.documentElement.scrollHeight")
    for y in range(0, height + 1, 600):
        page.evaluate(f"window.scrollTo(0, {y})")
        page.wait_for_timeout(50)


@pytest.mark.parametrize(
    "opened",
    [(width, colours) for width in WIDTHS for colours in ("light", "dark")],
    indirect=True,
    ids=lambda value: f"{value[0]}-{value[1]}",
)
def test_every_chart_is_drawn_at_every_width_in_both_themes(opened):
    scroll_through(opened)
    plots = opened.locator(".plot:visible")
    assert plots.count() >= 15
    opened.wait_for_function(
        "[...document.querySelectorAll('.plot')].every("
        "plot => !plot.checkVisibility() || plot.querySelector('.main-svg'))"
    )
    drawn = opened.locator(".plot:visible .trace, .plot:visible .bars .point").count()
    assert drawn >= plots.count()
    width = opened.viewport_size["width"]
    assert opened.evaluate("document.documentElement.scrollWidth") == width


def test_every_section_has_a_link(opened):
    links = opened.locator("#nav a")
    assert all(text.strip() for text in links.all_inner_texts())
    targets = [link.get_attribute("href") for link in links.all()]
    assert targets == [
        f"#{section.get_attribute('id')}" for section in opened.locator("section").all()
    ]


@pytest.mark.parametrize("opened", [(1280, "dark"), (1280, "light")], indirect=True)
def test_the_theme_is_the_systems_until_it_is_chosen(opened, request):
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    colours = {True: "rgb(13, 15, 20)", False: "rgb(246, 246, 249)"}

    def background() -> str:
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    assert background() == colours[dark]
    opened.locator("#theme").click()
    assert background() == colours[not dark]
    opened.reload()
    assert background() == colours[not dark]


def open_samples(page) -> None:
    page.locator("#samples").scroll_into_view_if_needed()
    page.wait_for_selector(".sample")


def status(page) -> str:
    return page.locator("#samples [role=status]").inner_text()


def choose(page, **filters) -> None:
    """Sets filters and waits until the list is shown again."""
    for name, value in filters.items():
        control = page.locator(f"#samples [name={name.replace('_', '-')}]")
        if control.evaluate("element => element.tagName") == "SELECT":
            control.select_option(value)
        elif value is True:
            control.check()
        else:
            control.fill(value)
            control.dispatch_event("change")
    page.wait_for_function(
        "!document.querySelector('#samples [role=status]').textContent.includes('Loading')"
    )


def test_texts_of_samples_stay_text(opened):
    """Also those that look like markup, in every stage."""
    open_samples(opened)
    for stage in ("follower", "instructor", "generate"):
        choose(opened, round="1", stage=stage, order="sampled")
        first = opened.locator(".sample").first
        assert ATTACK.replace("\u2028", "") in first.inner_text().replace("\u2028", "")
        assert first.locator("b, img, script").count() == 0
    assert opened.evaluate("window.attacked") is None


def test_filters_show_what_they_name(opened, report):
    """Held against what the samples' file says."""
    samples = rows_of(report.parents[1] / "round_2" / "follower" / "samples.parquet")
    open_samples(opened)
    choose(opened, round="2", stage="follower")
    assert status(opened).startswith(f"{len(samples)} samples, page 1 of {-(-len(samples) // 10)}")

    def disagrees(row: dict) -> bool:
        return any(v["rule"] not in (None, v["judge"]) for v in row["verdicts"])

    def has(row: dict, kind: str) -> bool:
        return kind in [v["instruction_id"] for v in row["verdicts"]]

    cases = [
        ({"reason": "none_met"}, lambda row: row["reason"] == "none_met"),
        ({"reason": "none"}, lambda row: not row["reason"]),
        ({"reason": "", "disagree": True}, disagrees),
        (
            {"kind": "startend:end_checker"},
            lambda r: disagrees(r) and has(r, "startend:end_checker"),
        ),
    ]
    for filters, wanted in cases:
        choose(opened, **filters)
        count = sum(map(wanted, samples))
        assert 0 < count < len(samples)
        assert status(opened).startswith(f"{count} samples")
    opened.get_by_role("button", name="Reset").click()
    choose(opened, step_from="2", step_to="3", reward_from="0.5")
    count = sum(row["step"] in (2, 3) and (row["reward"] or 0) >= 0.5 for row in samples)
    assert status(opened).startswith(f"{count} samples")
    choose(opened, reward_to="0.4")
    assert status(opened) == "No samples match"


def rows_of(path: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_the_best_come_first_and_pages_turn(opened):
    open_samples(opened)
    opened.get_by_role("button", name="Best").click()
    choose(opened)
    rewards = [float(text.split()[-1]) for text in opened.locator(".reward").all_inner_texts()]
    assert len(rewards) == 10 and rewards == sorted(rewards, reverse=True)
    opened.get_by_role("button", name="Next").first.click()
    opened.wait_for_function(
        "document.querySelector('#samples [role=status]').textContent.includes('page 2 of')"
    )
    opened.wait_for_selector("article[aria-label^='Sample 11 of']")
    assert opened.get_by_role("button", name="Previous").first.is_enabled()
    opened.get_by_role("button", name="Worst").click()
    opened.wait_for_function("document.querySelector('.reward').innerText.endsWith('0')")
    assert "page 1 of" in status(opened)


def test_tables_sort_by_key_and_have_headers(opened):
    table = opened.locator("#rounds table")
    assert table.locator("thead th[scope=col]").first.inner_text() == "round"
    button = table.get_by_role("button", name="round")
    button.focus()
    opened.keyboard.press("Enter")
    assert table.locator("tbody tr").first.locator("td").first.inner_text() == "2"
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_roles_are_chosen_by_keyboard(opened):
    health = opened.locator("#health")
    health.get_by_role("radio", name="Follower").focus()
    opened.keyboard.press("ArrowRight")
    assert health.locator("#instructor-reward").is_visible()
    assert not health.locator("#follower-reward").is_visible()


def test_charts_say_in_words_and_numbers_what_they_show(opened):
    unnamed = opened.evaluate(
        "[...document.querySelectorAll('.plot')].filter(p => p.getAttribute('role') !== 'img' || "
        "p.getAttribute('aria-label').length < 20).length"
    )
    assert unnamed == 0
    chart = opened.locator("#follower-reward")
    chart.get_by_text("Numbers").click()
    chart.locator("tbody tr").first.wait_for()
    assert chart.locator("tbody tr").count() == 8  # two rounds of four steps
    headings = opened.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    )
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(headings, headings[1:], strict=False))
    controls = "#samples input, #samples select"
    named = opened.locator(controls).evaluate_all(
        "all => all.filter(e => !e.labels.length && !e.ariaLabel).length"
    )
    assert named == 0


def test_several_runs_side_by_side(browser, tmp_path):
    """Also those whose names look like markup."""
    names = ["<b>one</b> &amp; <i>1", "seed_1"]
    runs = [
        synthetic_run.make(tmp_path / name.replace("/", "∕"), seed=n, rounds=1, prompts=2)
        for n, name in enumerate(names)
    ]
    names = [run.name for run in runs]
    path = report_page.write(open_runs(runs), tmp_path / "page")
    page = browser.new_context(offline=True).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("h1")
    assert page.locator("h1").inner_text() == "2 runs"
    legend = page.locator("#follower-reward .legend button")
    assert legend.all_inner_texts() == names
    legend.first.click()
    assert legend.first.get_attribute("aria-pressed") == "false"
    health = page.locator("#health")
    health.scroll_into_view_if_needed()
    shown = [f"#follower-reasons-{name}" for name in names]
    visible = [page.locator(f"[id='{name[1:]}']").is_visible() for name in shown]
    assert visible == [True, False]
    health.get_by_label("Details of").select_option(names[1])
    visible = [page.locator(f"[id='{name[1:]}']").is_visible() for name in shown]
    assert visible == [False, True]
    scores = page.locator("#score-held_out .plot")
    scores.scroll_into_view_if_needed()
    scores.hover()
    hover = scores.locator(".hoverlayer")
    hover.get_by_text("1").first.wait_for()
    page.wait_for_timeout(200)
    assert names[0] in hover.text_content()
    page.locator("#compare").scroll_into_view_if_needed()
    page.wait_for_selector("#compare-follower-reward .main-svg")
    open_samples(page)
    choose(page, run=names[0], round="1", stage="follower")
    assert status(page).startswith("16 samples")
    assert errors == []
    page.context.close()


def test_a_missing_part_is_said(browser, report, tmp_path):
    """A folder that was copied in part says which file it lacks."""
    copy = shutil.copytree(report.parent, tmp_path / "copy")
    shutil.rmtree(copy / "data" / "samples" / "0" / "round_2_follower")
    page = browser.new_context(offline=True).new_page()
    page.goto((copy / "index.html").as_uri())
    page.locator("#samples").scroll_into_view_if_needed()
    page.wait_for_function(
        "document.querySelector('#samples [role=status]').textContent.includes('cannot be read')"
    )
    assert "round_2_follower/index.js" in status(page)
    page.context.close()


def test_scripts_hold_nothing_that_ends_them(report):
    """No text of a sample can end a script or its string, wherever the files are put."""
    scripts = sorted((report.parent / "data").rglob("*.js"))
    assert len(scripts) > 5
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert "<" not in text and "\u2028" not in text
        name, _, body = text.removeprefix("seif.").partition("(")
        assert json.loads(body.rstrip().removesuffix(");")) and name in ("report", "index", "part")
