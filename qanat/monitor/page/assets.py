"""The files that a browser gets: they lie beside this module, and nothing is fetched from anywhere else.

`uplot.js` and `uplot.css` are uPlot's own, unchanged, under the license in `uplot.LICENSE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from qanat.monitor.http import Handler, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No script and no style that is not one of these files, and nothing from another place."""
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
}
_NAMES = (
    "page.css",
    "page.js",
    "plots.js",
    "tables.js",
    "text.js",
    "icon.svg",
    "uplot.js",
    "uplot.css",
    "uplot.LICENSE",
)


def asset_routes() -> Mapping[str, Handler]:
    """Return what answers for the page itself and for each of its files.  Reads them once."""
    routes = {f"/assets/{name}": _serve(name) for name in _NAMES}
    return {"/": _serve("index.html"), **routes}


def _serve(name: str) -> Handler:
    content = resources.files("qanat").joinpath("monitor", "page", "assets", name).read_bytes()
    response = Response(content, _TYPES[name.rpartition(".")[2]], headers={"Content-Security-Policy": POLICY})
    return lambda head: response
