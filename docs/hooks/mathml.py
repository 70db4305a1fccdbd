"""Turns the formulas of a page into MathML, so that the site needs no script from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces every formula that the Markdown extension marked; called by MkDocs."""
    content = BLOCK.sub(lambda m: convert(html.unescape(m[1]), display="block"), content)
    return INLINE.sub(lambda m: convert(html.unescape(m[1])), content)
