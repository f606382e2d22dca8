"""PMC's JSON about an article, and what can be decided from it before anything else is fetched."""

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from data_prep.jats import Metadata
from data_prep.licences import Use, allows, licence_name

_MEDIA = re.compile(r"(?:[a-z0-9]+://[^/]+/)?(?P<path>.+?)(?:\?md5=(?P<md5>[0-9A-Fa-f]{32}))?")
_YEAR = re.compile(r"\. ((?:1[6-9]|20)\d\d)\b")
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


class BadRecord(Exception):
    """The article's JSON is unusable; the message is the reason that rejects.parquet records."""


class Dropped(Exception):
    """A filter leaves the article out; the message is the reason, `stage` the step."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


@dataclass(frozen=True)
class Media:
    """A file of an article as its JSON lists it."""

    name: str
    """Relative to the article's folder."""
    md5: str
    """Empty if unknown."""


class FilterConfig(Protocol):
    """The keys that decide which articles are kept; PmcConfig documents them."""

    license: Use
    retracted: bool
    historical_ocr: bool
    since: str
    until: str
    languages: list[str]
    article_types: list[str]


def read_record(data: bytes) -> dict[str, Any]:
    """PMC's JSON as an object.

    Raises:
        BadRecord: it is none: whether the article was retracted is unknown.
    """
    try:
        record = json.loads(data.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise BadRecord("metadata JSON not readable")
    return record


def media_of(record: dict[str, Any], article: str) -> list[Media] | None:
    """The article's media files, sorted by name; None where the JSON says nothing of them.

    Only names are taken from the URLs, so a record can't send requests elsewhere.
    """
    urls = record.get("media_urls")
    if "media_urls" not in record or not isinstance(urls, list | None):
        return None
    found = {}
    for url in urls or []:
        match = _MEDIA.fullmatch(url) if isinstance(url, str) else None
        if match and match["path"].startswith(f"{article}/"):
            name = match["path"].removeprefix(f"{article}/")
            found[name] = Media(name, match["md5"] or "")
    return [found[name] for name in sorted(found)]


def md5_of(record: dict[str, Any], key: str) -> str:
    """The MD5 in the URL under `key`, such as `xml_url`; empty if there is none."""
    match = _MEDIA.fullmatch(str(record.get(key) or ""))
    return (match["md5"] or "") if match else ""


def is_true(value: Any) -> bool:
    """PMC's flags are found as booleans and as "yes", "true", "1"."""
    return str(value).strip().lower() in ("true", "yes", "y", "1")


def check_date(key: str, date: str) -> None:
    """Raise ValueError unless `date` is empty or an ISO date, as much of one as is known."""
    if date and not _DATE.fullmatch(date):
        raise ValueError(f"{key}={date}: write YYYY, YYYY-MM or YYYY-MM-DD")


def filter_record(config: FilterConfig, record: dict[str, Any]) -> None:
    """What the JSON alone decides.

    The year of its citation may be that of an issue, months after the article appeared, so dates
    are decided here only where that year is more than one outside of the range.

    Raises:
        Dropped: by which filter.
    """
    if not config.retracted and is_true(record.get("is_retracted")):
        raise Dropped("filter", "article retracted")
    if not config.historical_ocr and is_true(record.get("is_historical_ocr")):
        raise Dropped("filter", "article from historical OCR")
    if "license_code" in record:
        licence = licence_name([str(record["license_code"])])
        if not allows(licence, config.license):
            raise Dropped("licence", f"licence {licence or 'unknown'}")
    years = _YEAR.findall(str(record.get("citation") or ""))
    if len(set(years)) == 1:
        year = int(years[0])
        if config.since and year + 1 < int(config.since[:4]):
            raise Dropped("filter", f"date before {config.since}")
        if config.until and year - 1 > int(config.until[:4]):
            raise Dropped("filter", f"date after {config.until}")


def filter_article(config: FilterConfig, meta: Metadata) -> None:
    """What only the article's XML decides: exact date, language, type.

    Raises:
        Dropped: by which filter.
    """
    if config.languages and not _speaks(meta.language, config.languages):
        raise Dropped("filter", f"language {meta.language.lower()}")
    if config.article_types and meta.article_type not in config.article_types:
        raise Dropped("filter", f"article type {meta.article_type or 'unknown'}")
    if (config.since or config.until) and not meta.date:
        raise Dropped("filter", "date unknown")
    # As far as both are known: an article of 2020 passes since=2020-05.
    if config.since and meta.date < config.since[: len(meta.date)]:
        raise Dropped("filter", f"date before {config.since}")
    if config.until and meta.date[: len(config.until)] > config.until:
        raise Dropped("filter", f"date after {config.until}")


def _speaks(language: str, wanted: list[str]) -> bool:
    """`en` takes `en-GB`, and letter case does not matter."""
    code = language.lower().replace("_", "-")
    return any(code == w.lower() or code.startswith(f"{w.lower()}-") for w in wanted)
