"""Open the page of ``prosparse report`` in Chromium, as phones, screens, printers and several kinds of eyes see it.

    python tests/browser/check_report.py OUT.onnx FOLDER

Measures OUT.onnx on a little text, adds a made-up threshold search if it has none, so that every chart is on the page,
and writes page and screenshots into FOLDER. Prints a line per fault and exits with 1 if there is one. Needs the extra
packages of prosparse-export[report,browser] and Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from page_faults import MEASURE, faults
from playwright.sync_api import Browser, Page, sync_playwright

from prosparse_export.artifact.measured_records import ThresholdSearch, ThresholdTrial
from prosparse_export.report import ReportOptions, measure, write_page
from prosparse_export.report.charts import CHARTS
from prosparse_export.text import default_text

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VISION = ("achromatopsia", "blurredVision", "deuteranopia", "protanopia", "reducedContrast", "tritanopia")
PHONE, SCREEN, PAPER = (390, 844), (1280, 800), (794, 1123)  # CSS px; paper: A4 at 96 to the inch


def make_page(artifact: Path, folder: Path) -> Path:
    """Write the report of ``artifact`` with every chart."""
    text = default_text()
    report = measure(artifact, [("introductions", text), ("later.txt", text[30_000:])], ReportOptions(1024, 256))
    if report.calibration is None:
        trials = tuple(
            ThresholdTrial(k, 0.8 + k / 3, 35 + 40 * k**2, (k,), 35 + 40 * k**2 < 36.4)
            for k in (0.0, 0.005, 0.01, 0.02, 0.03, 0.06, 0.12, 0.165, 0.18, 0.24)
        )
        search = ThresholdSearch("threshold", 0.04, 36.4, 1000, 0.165, chosen=trials[7], trials=trials)
        report = replace(report, calibration=search)
    write_page(report, folder / "report.html")
    return folder / "report.html"


@contextmanager
def opened(browser: Browser, path: Path, size: tuple[int, int], found: list[str], name: str) -> Iterator[Page]:
    """Open the page in its own window; what it says and asks for beyond itself goes into ``found``."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.on("console", lambda message: found.append(f"{name}: console: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"{name}: error: {error}"))
    page.on("request", lambda r: found.append(f"{name}: request: {r.url}") if r.url != path.as_uri() else None)
    page.goto(path.as_uri())
    try:
        yield page
    finally:
        page.close()


def check(browser: Browser, path: Path, folder: Path) -> list[str]:
    """Return the faults of the page at ``path``; its screenshots go into ``folder``."""
    found: list[str] = []
    for name, size, media in (("phone", PHONE, "screen"), ("screen", SCREEN, "screen"), ("print", PAPER, "print")):
        with opened(browser, path, size, found, name) as page:
            page.emulate_media(media=media)
            seen: dict[str, Any] = page.evaluate(MEASURE)
            found += [f"{name}: {fault}" for fault in faults(seen, set(CHARTS))]
            page.screenshot(path=folder / f"{name}.png", full_page=True)
            if media == "print":
                page.pdf(
                    path=folder / "print.pdf",
                    format="A4",
                    margin=dict.fromkeys(("top", "right", "bottom", "left"), "12mm"),
                )
    with opened(browser, path, SCREEN, found, "vision") as page:
        session = page.context.new_cdp_session(page)
        plain = page.screenshot(full_page=True)
        for kind in VISION:
            session.send("Emulation.setEmulatedVisionDeficiency", {"type": kind})
            picture = page.screenshot(path=folder / f"vision-{kind}.png", full_page=True)
            if picture == plain:
                found.append(f"vision: {kind}: expected another picture than without it, got the same")
    return found


def main(artifact: Path, folder: Path) -> int:
    """Return the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    path = make_page(artifact, folder.resolve())
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or "/usr/bin/chromium"
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        found = check(browser, path, folder)
        version = browser.version
        browser.close()
    for fault in found:
        print(fault, file=sys.stderr)
    pictures = len(list(folder.glob("*.png")))
    print(f"report page in Chromium {version}: {len(found)} faults, {pictures} screenshots in {folder}")
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
