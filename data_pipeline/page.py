"""One HTML page of tables and pictures that needs nothing beside itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Picture:
    """`uri` may be a data: URI; `detail` is set small."""

    uri: str
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """`bad` colours the heading."""

    heading: str
    text: str = ""
    table: Table | None = None
    pictures: list[Picture] = field(default_factory=list)
    bad: bool = False


def render_page(title: str, subtitle: str, sections: Sequence[Section], picture_width: int = 200) -> str:
    """The page as HTML; every text is escaped."""
    loader = jinja2.PackageLoader("data_pipeline")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.get_template("page.html")
    return page.render(title=title, subtitle=subtitle, sections=sections, picture_width=picture_width)
