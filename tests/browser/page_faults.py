"""What a browser measures of the report page, and which of it is a fault."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

SMALLEST_TEXT = 8.0  # CSS px
_OVERLAP = 0.15  # of the smaller text's area: boxes are higher than letters, so a little is nothing

# One object: the window's width and the page's, and for every figure its box, and box and font size of its texts.
MEASURE = """() => {
  const box = element => {
    const r = element.getBoundingClientRect();
    return {left: r.left, top: r.top, right: r.right, bottom: r.bottom};
  };
  const leaves = element => [...element.querySelectorAll("text, tspan")].filter(e => !e.querySelector("tspan"));
  const size = element => {
    const m = element.getScreenCTM();
    return parseFloat(getComputedStyle(element).fontSize) * Math.hypot(m.a, m.b);
  };
  return {
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    figures: [...document.querySelectorAll("figure")].map(figure => {
      const svg = figure.querySelector("svg");
      return {
        name: figure.id.replace("figure-", ""),
        visible: svg.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}),
        box: box(svg),
        texts: leaves(svg).map(e => ({text: e.textContent, size: size(e), box: box(e)})),
      };
    }),
  };
}"""


def faults(seen: dict[str, Any], expected: set[str]) -> Iterator[str]:
    """Yield a line for each fault in what `MEASURE` returned.

    Args:
        seen: sizes in CSS px.
        expected: the charts that have to be there.
    """
    if seen["page"] > seen["width"]:
        yield f"page: expected at most {seen['width']} px wide, got {seen['page']}: it scrolls sideways"
    names = [figure["name"] for figure in seen["figures"]]
    if set(names) != expected or len(names) != len(expected):
        yield f"figures: expected {sorted(expected)}, got {sorted(names)}"
    for figure in seen["figures"]:
        yield from (f"{figure['name']}: {fault}" for fault in _figure_faults(figure))


def _figure_faults(figure: dict[str, Any]) -> Iterator[str]:
    box, texts = figure["box"], figure["texts"]
    if not figure["visible"] or _area(box) < 1e4:
        yield f"expected to be visible, got visible {figure['visible']}, box {box}"
    if not texts:
        yield "a chart without text"
    for text in texts:
        name, inside = text["text"], text["box"]
        if text["size"] < SMALLEST_TEXT:
            yield f"text {name!r}: expected at least {SMALLEST_TEXT:g} px high, got {text['size']:.2f}"
        if inside["left"] < box["left"] - 1 or inside["right"] > box["right"] + 1:
            yield f"text {name!r}: expected within the figure, got {inside} in {box}"
        if inside["top"] < box["top"] - 1 or inside["bottom"] > box["bottom"] + 1:
            yield f"text {name!r}: expected within the figure, got {inside} in {box}"
    for one, other in combinations(texts, 2):
        a, b = one["box"], other["box"]
        width = min(a["right"], b["right"]) - max(a["left"], b["left"])
        height = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
        if width > 0 and height > 0 and width * height > _OVERLAP * min(_area(a), _area(b)):
            yield f"texts {one['text']!r} and {other['text']!r}: expected apart, got one on the other"


def _area(box: dict[str, float]) -> float:
    return (box["right"] - box["left"]) * (box["bottom"] - box["top"])
