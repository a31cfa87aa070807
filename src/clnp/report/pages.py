"""Where all pages come from: templates in which every text of others is escaped, and nothing that is missing passes silently."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def pages() -> Environment:
    """Return the templates of this package."""
    return Environment(
        loader=PackageLoader("clnp.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
