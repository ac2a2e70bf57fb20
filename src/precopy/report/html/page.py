"""The page: one HTML file that needs nothing else, neither a script nor the network.

The documents may hold anything, so every text is escaped by the templates, and a policy in the page's
head forbids the browser to load or to run anything.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from precopy.report.html.bench_migrate import bench_migrate_report
from precopy.report.html.bench_predict import bench_predict_report
from precopy.report.html.bench_sync import bench_sync_report
from precopy.report.html.compare import compare_report
from precopy.report.html.demo import demo_report
from precopy.report.html.migration import migration_report
from precopy.report.html.other import failure_report, other_report, recorded_report
from precopy.report.html.parts import Report
from precopy.report.html.reading import Document, read_documents
from precopy.report.html.words import facts


@dataclass(frozen=True)
class Page:
    """``html``, and the ids of its sections in their order."""

    html: str
    sections: tuple[str, ...]


def render(data: bytes, name: str) -> Page:
    """The page of the documents in ``data``, the content of the file ``name``. Raises `UsageError`."""
    documents = read_documents(data, name)
    many = len(documents) > 1
    reports = tuple(
        (prefix, _report(document, prefix))
        for number, document in enumerate(documents, start=1)
        for prefix in (f"document-{number}-" if many else "",)
    )
    titles = list(dict.fromkeys(report.title for _, report in reports))
    title = ", ".join(titles[:_TITLES]) + (f" and {len(titles) - _TITLES} more" if len(titles) > _TITLES else "")
    html = _environment().get_template("page.html.j2").render(title=title, name=name, reports=reports)
    return Page(html, tuple(section for prefix, report in reports for section in _sections(report, prefix)))


_TITLES = 3
"""Documents that a page's title names, so that it can be read in a tab's tooltip and in a list of bookmarks."""
_UNIT = re.compile(r"(?<=\d) (?=(?:us|ms|s|%|[KMGT]iB|[kMG]?B(?:/s)?|times)(?![\w/]))")


def _unbroken(text: str) -> str:
    """``text`` with numbers and their units on one line."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", text)


@functools.cache
def _environment() -> Environment:
    """Kept, because templates are compiled once for each environment."""
    environment = Environment(
        loader=PackageLoader("precopy.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment


_PICTURES: dict[str, Callable[[Any, str], Report]] = {
    "migrate": migration_report,
    "demo": demo_report,
    "bench-sync": bench_sync_report,
    "bench-migrate": bench_migrate_report,
    "compare": compare_report,
    "bench-predict": bench_predict_report,
    "error": failure_report,
}
"""Kinds that have a page of their own, made of a record. Others are shown as a terminal does, or as the fields that
they have."""


def _report(document: Document, prefix: str) -> Report:
    if document.record is None:
        report = other_report(document, prefix)
    elif document.kind in _PICTURES:
        report = _PICTURES[document.kind](document.record, prefix)
    else:
        report = recorded_report(document, prefix)
    return replace(report, schema=document.schema, facts=facts(document.machine, report.workload))


def _sections(report: Report, prefix: str) -> list[str]:
    inner = [figure.id for part in report.parts for figure in part.figures]
    tail = [f"{prefix}{name}" for name, there in (("glossary", report.terms), ("machine", report.facts)) if there]
    return [f"{prefix}verdict", *inner, *tail]
