"""The report in a real Chromium: it draws, zooms, pans, tells what it hovers over, and complains about nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe
import browser
import pytest
import report_maker as maker

from loadtest.report import html

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium (apt-get install chromium)"),
]

CANVAS = "document.getElementById('canvas')"
TIP = "document.getElementById('tip').textContent"
INK = f"""(() => {{
  const c = {CANVAS}, seen = new Set(), data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  for (let i = 0; i < data.length; i += 4) seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
  return seen.size;
}})()"""
IMAGE = f"{CANVAS}.toDataURL()"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Tab]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("run"), maker.Play())


def render(folder: Path, play: maker.Play) -> Path:
    recorded = maker.write(folder, play)
    out = folder / "report.html"
    out.write_text(html.render(maker.judge(recorded), recorded, "Hotfix", {"scenario": "title: Hotfix"}))
    return out


@pytest.fixture(autouse=True)
def quiet(tab: browser.Tab) -> Iterator[None]:
    tab.errors.clear()
    yield
    assert tab.errors == []


def centre(tab: browser.Tab) -> tuple[float, float]:
    """Where a stream of the page lies in the viewport."""
    tab.js(f"{CANVAS}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box: dict[str, Any] = tab.js(f"JSON.parse(JSON.stringify({CANVAS}.getBoundingClientRect()))")
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_it_draws_at_every_width_and_theme_without_scrolling_sideways(
    tab: browser.Tab, page: Path, width: int, dark: bool
) -> None:
    tab.open(page, width, 844, dark)
    assert tab.js(INK) > 50
    assert tab.js("document.documentElement.scrollWidth") == width
    ground = tab.js("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark


def test_a_mouse_hovers_zooms_and_pans(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    x, y = centre(tab)
    tab.mouse("mouseMoved", x, y)
    assert "tenant-a" in tab.js(TIP)
    assert "tokens: v" in tab.js(TIP)
    whole = tab.js(IMAGE)
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=-240)
    closer = tab.js(IMAGE)
    assert closer != whole
    tab.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    tab.mouse("mouseMoved", x - 150, y, button="left", buttons=1)
    tab.mouse("mouseReleased", x - 150, y, button="left", clickCount=1)
    assert tab.js(IMAGE) not in (whole, closer)


def test_the_keyboard_reaches_everything_the_mouse_does(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    tab.js(f"{CANVAS}.focus()")
    whole = tab.js(IMAGE)
    told = set()
    for _ in range(3):
        tab.key("n")
        told.add(tab.js(TIP))
    assert len(told) == 3
    assert all("notable:" in t for t in told)
    tab.key("Escape")
    tab.key("+")
    zoomed = tab.js(IMAGE)
    tab.key("ArrowRight")
    assert len({whole, zoomed, tab.js(IMAGE)}) == 3
    tab.key("0")
    assert tab.js(IMAGE) == whole
    tab.key("ArrowDown")
    assert "sent" in tab.js(TIP)


def test_the_filter_and_the_witness_button_choose_what_is_drawn(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    whole = tab.js(f"{CANVAS}.clientHeight")
    choose = "s.value = '0'; s.dispatchEvent(new Event('change'))"
    tab.js(f"(() => {{ const s = document.getElementById('adapter'); {choose}; }})()")
    tab.paint()
    assert tab.js(f"{CANVAS}.clientHeight") != whole
    stream = tab.js("(() => { const b = document.querySelector('.goto'); b.click(); return b.dataset.stream; })()")
    tab.paint()
    assert tab.js(TIP).startswith(stream)
    assert tab.js("(() => { const b = document.getElementById('tip').getBoundingClientRect(); return b.top > 0; })()")
    assert "named by a witness" in tab.js(TIP)
    assert tab.js("document.getElementById('adapter').value") == "-1"


def test_every_control_has_a_name_and_every_image_words(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        n["role"]["value"]
        for n in tree
        if not n.get("ignored")
        and n["role"]["value"] in ("button", "link", "combobox", "img", "application", "region", "table")
        and not n.get("name", {}).get("value")
    ]
    assert nameless == []
    assert tab.js("document.querySelectorAll('h1').length") == 1
    ids = tab.js("JSON.stringify([...document.querySelectorAll('[id]')].map((e) => e.id))")
    assert len(set(json.loads(ids))) == len(json.loads(ids))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("small"), maker.Play(streams=40, swaps=6, quiet_s=2.0, fail_every=9))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_nothing_serious(tab: browser.Tab, small: Path, width: int, dark: bool) -> None:
    tab.open(small, width, 844, dark)
    tab.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert axe.violations(tab) == []


def test_hovering_over_a_token_tells_its_version(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    x, y = centre(tab)
    tab.mouse("mouseMoved", x, y)
    assert "here: v" in tab.js(TIP)


def test_foreign_text_runs_nowhere(tab: browser.Tab, tmp_path: Path) -> None:
    bad = "</script><script>window.owned=1</script><img src=x onerror='window.owned=1'>"
    play = maker.Play(adapters=(bad, '"><svg onload=window.owned=1>'), words=bad, streams=80, swaps=4, quiet_s=2.0)
    tab.open(render(tmp_path, play))
    x, y = centre(tab)
    tab.mouse("mouseMoved", x, y)
    assert tab.js("window.owned === undefined")
    assert tab.js(INK) > 50


def test_ten_thousand_streams_are_drawn_and_said_to_be_thinned(tab: browser.Tab, tmp_path: Path) -> None:
    page = render(tmp_path, maker.Play(streams=10_000, tokens=12, itl_ms=100.0, fail_every=50, users=400))
    assert page.stat().st_size < 5_000_000
    tab.open(page)
    assert tab.js(f"{CANVAS}.clientHeight") < 900
    assert "of 10,000 streams are drawn" in tab.js("document.getElementById('thinned').textContent")
    assert tab.js(INK) > 50
