"""The pages of `web/`: one self-contained HTML file each, with the data they start from written into them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from shortlist.serving.messages import encode

MARK = b"/*DATA*/null"


def page(name: str, data: Mapping[str, Any]) -> bytes:
    """The page `name` with `data` in place of its mark, safe inside a script element."""
    html = files("shortlist.web").joinpath(f"{name}.html").read_bytes()
    json = (
        encode(data).replace(b"<", b"\\u003c").replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    )
    return html.replace(MARK, json, 1)
