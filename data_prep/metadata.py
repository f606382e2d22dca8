"""PMC's JSON about an article: `PMC<n>.<v>.json`."""

import json
import re
from dataclasses import dataclass
from typing import Any

_MEDIA = re.compile(r"(?:[a-z0-9]+://[^/]+/)?(?P<path>.+?)(?:\?md5=(?P<md5>[0-9A-Fa-f]{32}))?")


class BadRecord(Exception):
    """The article's JSON is unusable; the message is the reason that rejects.parquet records."""


@dataclass(frozen=True)
class Media:
    """A file of an article as its JSON lists it."""

    name: str
    """Relative to the article's folder."""
    md5: str
    """Empty if unknown."""


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
        folder, _, name = match["path"].partition("/") if match else ("", "", "")
        if match and folder == article and name:
            found[name] = Media(name, match["md5"] or "")
    return [found[name] for name in sorted(found)]


def md5_of(record: dict[str, Any], key: str) -> str:
    """The MD5 in the URL under `key`, such as `xml_url`; empty if there is none."""
    match = _MEDIA.fullmatch(str(record.get(key) or ""))
    return (match["md5"] or "") if match else ""


def is_true(value: Any) -> bool:
    """PMC's flags are found as booleans and as "yes", "true", "1"."""
    return str(value).strip().lower() in ("true", "yes", "y", "1")
