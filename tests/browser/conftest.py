"""Reports of real tiny runs in a real browser.

Chromium is the system's own: nothing is downloaded. Without it, or without Playwright, these tests are skipped, and the
summary says so; with HALFSEEN_REQUIRE_BROWSER=1 (as in CI) they fail instead.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import halfseen
from command_line import TINY
from halfseen.reports.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
SCRIPT = "<script>document.title='owned'<|script>"
HOSTILE = (f"{SCRIPT}<img src=x onerror=document.title='owned'>", "\u202egnp.\"exe' onclick=x", "</title><u>owned")
"""Class names as the report must show them; a folder can't have a slash in its name, so "|" stands for it there."""


def _lacking(what: str) -> None:
    if os.environ.get("HALFSEEN_REQUIRE_BROWSER") == "1":
        pytest.fail(f"HALFSEEN_REQUIRE_BROWSER=1, but {what}")
    pytest.skip(f"the report isn't tried in a browser: {what}")


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """The system's Chromium, without a window."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        _lacking(f"none of {', '.join(NAMES)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _lacking("Playwright isn't installed; the extra 'dev' has it")
    with sync_playwright() as playwright:
        # Root can't use the sandbox, and the page is our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: "Page"
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def picture(self, folder: Path, name: str) -> bytes:
        """A screenshot of the whole page, kept as a file."""
        return self.page.screenshot(path=folder / f"{name}.png", full_page=True)


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """`open_page(file, width=1200, dark=False)`; at the end nothing may have been said, asked for or overrun."""
    opened: list[Opened] = []

    def open_(file: Path, width: int = 1200, dark: bool = False) -> Opened:
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
        page.set_default_timeout(120_000)  # A picture of a long page takes its time on a busy machine.
        found = Opened(page)
        page.on("console", lambda message: found.console.append(message.text))
        page.on("pageerror", lambda error: found.console.append(str(error)))
        page.on("request", lambda request: found.requests.append(request.url))
        page.goto(file.as_uri())
        opened.append(found)
        return found

    yield open_
    for each in opened:
        address = each.page.url.partition("#")[0]
        title = each.page.title()
        each.page.close()
        assert each.console == []
        assert [url for url in each.requests if not url.startswith(("data:", address))] == []
        assert title != "owned", "a name's script has run"


@pytest.fixture(scope="session")
def runs(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs, analysed, on images in folders with hostile names; made only where there is a browser."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("browser")
    for index in range(30):
        place = folder / "photos" / HOSTILE[index % 3].replace("/", "|")
        place.mkdir(parents=True, exist_ok=True)
        shade = Image.linear_gradient("L").rotate(index % 3 * 90 + index).resize((32, 32))
        Image.merge("RGB", (shade, shade.point(lambda v: 255 - v), shade)).save(place / f"<b>{index}.png")
    chosen = [
        "train.max_steps=6", "evaluate.analyze=quick", "evaluate.analyze_images=24", "evaluate.knn=true",
        "evaluate.k=[2]",
    ]  # fmt: skip
    found = []
    for method in ("mae", "simmim"):
        words = [word for word in TINY[method] if "=" in word and not word.startswith("evaluate.")]
        halfseen.pretrain(
            folder / "photos", recipe=f"{method}_small", overrides=[*words, *chosen, f"run_dir={folder / method}"]
        )
        found.append(folder / method)
    return found


@pytest.fixture(scope="session")
def report(runs: list[Path]) -> Path:
    """The page of one run."""
    return runs[0] / "report.html"


@pytest.fixture(scope="session")
def comparison(runs: list[Path]) -> Path:
    """The page of two runs."""
    return write_report(runs, runs[0].parent / "comparison.html")
