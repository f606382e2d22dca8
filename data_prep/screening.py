"""Which articles to leave out, decided from as little as possible: the JSON, else the XML."""

import re
from dataclasses import dataclass, field
from typing import Any

from data_prep.articles import ArticleConfig
from data_prep.jats import Article
from data_prep.licences import allows, licence_name
from data_prep.metadata import is_true

_YEAR = re.compile(r"\. ((?:1[6-9]|20)\d\d)\b")
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


class Dropped(Exception):
    """A filter leaves the article out; the message is the reason, `stage` the step."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


@dataclass(frozen=True, kw_only=True)
class ScreeningConfig(ArticleConfig):
    """Filters on articles as a whole; each article left out is counted with the reason."""

    retracted: bool = False
    """Keep retracted articles."""
    historical_ocr: bool = False
    """Keep scanned articles of earlier centuries, whose text is from character recognition."""
    since: str = ""
    """Keep articles published on or after this date: YYYY, YYYY-MM or YYYY-MM-DD."""
    until: str = ""
    """Keep articles published on or before this date; the whole of a year or month counts."""
    languages: list[str] = field(default_factory=list)
    """Keep articles in these languages, `en` including `en-GB`; empty: all."""
    article_types: list[str] = field(default_factory=list)
    """Keep these of JATS's article types: research-article, case-report...; empty: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, date in (("since", self.since), ("until", self.until)):
            if date and not _DATE.fullmatch(date):
                raise ValueError(f"{key}={date}: write YYYY, YYYY-MM or YYYY-MM-DD")
        if self.since and self.until and self.until < self.since[: len(self.until)]:
            raise ValueError("until: set it to a date that is not before since")


def filter_record(config: ScreeningConfig, record: dict[str, Any]) -> None:
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


def filter_article(config: ScreeningConfig, article: Article) -> None:
    """What only the article's XML decides: exact date, language, type.

    Raises:
        Dropped: by which filter.
    """
    meta = article.metadata
    language = meta.language.lower() or "en"  # as JATS has it where a file says nothing
    if config.languages and not _speaks(language, config.languages):
        raise Dropped("filter", f"language {language}")
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
    code = language.replace("_", "-")
    return any(code == w.lower() or code.startswith(f"{w.lower()}-") for w in wanted)
