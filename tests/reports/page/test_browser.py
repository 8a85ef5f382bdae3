"""The page in Debian's chromium: it draws, the slider moves, nothing is asked of any network."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

import bayeslora_cli as bl
from bayeslora_cli.reports.page.live_server import HOST, make_server
from bayeslora_cli.reports.page.page import page, sections
from bayeslora_cli.reports.page.records import load_records
from tests.reports.page.test_page import predictions
from tests.support.chat_runs import chat_run
from tests.support.page_runs import frozen, write_shown
from tests.support.pages import ATTACKS
from tests.support.task_files import complaints, paraphrases, questions, tagged, write_lines

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="apt-get install chromium chromium-driver",
    ),
]


class Browser:
    """A browser and what its pages have said and asked for."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, script, *arguments):
        """Wait until a script returns something true, and return it."""
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.driver, 20, poll_frequency=0.02)
        return wait.until(lambda _: self.run(f"return {script}", *arguments))

    def show(self, address, *, width=1280, scheme="light"):
        """Open a page in a tall window, so that all figures are drawn at once."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        sizes = {"width": width, "height": 40_000, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
        self.driver.get(address)
        self.until(
            "document.querySelectorAll('.plot').length > 0 && "
            "[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))"
        )

    def said(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked(self):
        """Addresses of all requests since the last call, but for data within the page."""
        messages = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        urls = (
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        )
        return {url for url in urls if not url.startswith("data:")}


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield Browser(driver)
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of five runs with hostile names and texts, and the runs."""
    root = tmp_path_factory.mktemp("browser")
    for seed in (1, 2):
        for criterion in ("snr", "sensitivity"):
            write_shown(root / "runs", seed=seed, score=0.61 + seed / 70, criterion=criterion,
                        note=" ".join(ATTACKS[:4]))  # fmt: skip
    frozen(root, "blora-ivon")
    records, results = load_records([root / "runs"])
    attack = "".join(ATTACKS).replace("\ud800", "")
    predicted = {r.anchor: predictions(attack, attack) for r in records}
    records = [
        replace(r, column=f"{r.column} {ATTACKS[3]}", environment={"device_name": attack})
        for r in records
    ]
    path = root / "page.html"
    path.write_text(page(records, sections(records, results, predicted)), encoding="utf-8")
    return path, records


KINDS = {
    "multi-label": (complaints, ("text", "labels")),
    "token-classification": (tagged, ("tokens", "ner_tags")),
    "multiple-choice": (questions, ("question", "choices", "answer")),
    "embedding": (paraphrases, ("anchor", "positive", "negative")),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, backbone):
    """A page of a trained run of each other kind of task, and the runs' results by data set."""
    root = tmp_path_factory.mktemp("kinds")
    runs = [chat_run(root)]
    for kind, (made, names) in KINDS.items():
        rows = [dict(zip(names, row, strict=True)) for row in made(40)]
        runs.append(bl.train(
            model=backbone("bert"), train_file=write_lines(root / f"{kind}.jsonl", rows),
            task_type=kind, device="cpu", batch_size=8, max_steps=4, output=str(root / "runs"),
        ))  # fmt: skip
    path = bl.report(root / "runs", output=root / "kinds.html", samples=2, device="cpu")
    found = [json.loads((Path(run.path) / "result.json").read_text()) for run in runs]
    return path, found


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_every_kind_of_task_has_its_examples(browser, kinds, width, scheme):
    path, results = kinds
    browser.asked()
    browser.show(path.as_uri(), width=width, scheme=scheme)
    assert browser.said() == []
    assert browser.asked() == {path.as_uri()}
    assert browser.run("return document.documentElement.scrollWidth") <= width
    cells = browser.run(
        "return [...document.querySelectorAll('td[data-value]')].map((c) => c.dataset.value)"
    )
    for result in results:
        assert set(result["last"]["metrics"]["validation"].values()) <= set(map(float, cells))
    tables = browser.run(
        "return [...document.querySelectorAll('#examples table')].map((t) => "
        "[t.caption.textContent, [...t.rows].map((r) => [...r.cells].map((c) => c.textContent))])"
    )
    for name in ("chats", *KINDS):
        own = [rows for caption, rows in tables if f" {name}," in caption]
        assert own, name
        for heads, *rows in own:
            assert rows
            assert all(row[0] for row in rows)  # the texts
            assert not any(text.startswith("[") for row in rows for text in row)
            assert ("label" in heads) == (name != "chats")
    # with everything unfolded nothing sticks out
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_it_draws_and_asks_for_nothing(browser, written, width, scheme):
    path, records = written
    browser.asked()
    browser.show(path.as_uri(), width=width, scheme=scheme)
    assert browser.said() == []
    assert browser.asked() == {path.as_uri()}
    assert browser.run("return document.querySelectorAll('.plot .hoverlayer').length") > 10
    assert browser.run("return document.documentElement.scrollWidth") <= width  # nothing sticks out
    cells = browser.run(
        "return [...document.querySelectorAll('td[data-value]')].map((c) => c.dataset.value)"
    )
    for record in records:
        best = record.result["best_at_budget"]["metrics"]["validation"]
        assert set(best.values()) <= set(map(float, cells))
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{background[4:-1]}]")) < 200) == (scheme == "dark")


def test_the_slider_moves_and_every_part_has_the_keyboard(browser, written):
    from selenium.webdriver.common.keys import Keys

    path, _ = written
    if browser.run("return location.href") != path.as_uri():
        browser.show(path.as_uri())
    slider = browser.driver.find_element("id", "ranks-step")
    drawn = "document.getElementById('plot-ranks').data[0].z.flat()"
    said = "document.getElementById('ranks-said').textContent"
    last = browser.run(f"return {drawn}")
    assert "(67%)" in browser.run(f"return {said}")
    slider.send_keys(Keys.HOME)
    browser.until(f"{said}.includes('(100%)')")
    assert browser.run(f"return {drawn}") != last
    assert slider.get_attribute("aria-valuetext").startswith("Step")
    # the last run, B-LoRA's, has bit widths as well
    browser.run(
        "const s = document.getElementById('ranks-run'); s.value = s.options.length - 1; "
        "s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    browser.until("document.getElementById('plot-ranks').data.length === 2")
    # what scrolls or opens takes the focus, and the focus is seen
    unreachable = browser.run(
        "return [...document.querySelectorAll('.scroll, pre, input, select, summary, a')]"
        ".filter((e) => e.tabIndex < 0).length"
    )
    assert unreachable == 0
    assert slider.value_of_css_property("outline-style") == "solid"
    assert browser.said() == []


def test_screen_readers_find_their_way(browser, written):
    """What chromium tells them: names of all that takes the focus, landmarks, headings in order."""
    path, _ = written
    if browser.run("return location.href") != path.as_uri():
        browser.show(path.as_uri())
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = [
        (
            node["role"]["value"],
            node.get("name", {}).get("value", ""),
            {p["name"]: p["value"].get("value") for p in node.get("properties", ())},
        )
        for node in nodes
        if not node["ignored"]
    ]
    roles = {role for role, _, _ in found}
    assert roles >= {"main", "navigation", "banner", "heading", "table", "slider", "status"}
    nameless = [
        role for role, name, properties in found
        if not name.strip() and (properties.get("focusable") or role in ("image", "table"))
    ]  # fmt: skip
    assert set(nameless) <= {"RootWebArea"}
    levels = [properties["level"] for role, _, properties in found if role == "heading"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    ids = [name for name in ids if not name.startswith(("topdefs", "clip", "legend"))]  # plotly's
    assert len(ids) == len(set(ids))


def test_the_table_is_of_the_run_that_is_chosen(browser, written):
    path, records = written
    if browser.run("return location.href") != path.as_uri():
        browser.show(path.as_uri())
    options = browser.run(
        "return [...document.getElementById('ranks-run').options].map(o => o.text)"
    )
    for number, name in enumerate(options):
        browser.run(
            "const s = document.getElementById('ranks-run'); s.value = arguments[0]; "
            "s.dispatchEvent(new Event('change', {bubbles: true}))", number,
        )  # fmt: skip
        caption = browser.run("return document.querySelector('#ranks-table caption').textContent")
        assert caption == f"Ranks of {name}"
        rows = browser.run(
            "return [...document.querySelectorAll('#ranks-table tbody tr')]"
            ".map((row) => [...row.cells].map((c) => c.textContent))"
        )
        heads = browser.run("return document.querySelectorAll('#ranks-table thead th').length")
        assert {len(row) for row in rows} == {heads}
        record = next((r for r in records if r.name == name), None)
        if record is not None:
            assert [int(row[5]) for row in rows] == [m.rank for m in record.report.matrices]
            assert [row[0] for row in rows] == [m.name for m in record.report.matrices]


def test_a_live_page_follows(browser, tmp_path):
    whole = frozen(tmp_path, "adalora-ivon-snr", "unfinished")
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("metrics.jsonl", "checkpoint"))
    server = make_server([run], "last", 0)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        address = f"http://{HOST}:{server.server_address[1]}/"
        browser.asked()
        browser.show(address)
        browser.run(
            "const s = document.getElementById('ranks-step'); s.value = 0; s.focus(); "
            "s.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        shutil.copy(whole / "metrics.jsonl", run)
        browser.until("document.querySelector('#curves .plot .main-svg') !== null")
        assert browser.run("return document.activeElement.id") == "ranks-step"
        assert browser.run("return document.getElementById('ranks-step').value") == "0"
        assert all(url.startswith(address) for url in browser.asked())
        assert browser.said() == []
    finally:
        server.shutdown()
        server.server_close()
