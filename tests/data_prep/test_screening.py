"""Filters on articles, and the JSON that they read."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from data_prep.http import check_host
from data_prep.jats import Article, parse_article
from data_prep.memory import ArticleTooLarge, Memory, Ticket
from data_prep.metadata import BadRecord, Media, md5_of, media_of, read_record
from data_prep.screening import Dropped, ScreeningConfig, filter_article, filter_record
from tests.data_prep.factories import article_xml
from vlp.config import UserError, load_config

MD5 = "0123456789abcdef0123456789abcdef"


def config(*arguments: str) -> ScreeningConfig:
    """A configuration as the command line makes it."""
    return load_config(ScreeningConfig, ["source=x", "out=y", *arguments])


def article(language: str = "", kind: str = "research-article", date: str = "") -> Article:
    """An article with this front matter."""
    parsed = parse_article(article_xml("").replace(b"<article ", f"<article {language}".encode()))
    return replace(parsed, metadata=replace(parsed.metadata, article_type=kind, date=date))


@pytest.mark.parametrize(
    ("arguments", "record", "reason"),
    [
        ([], {"is_retracted": "Yes"}, "article retracted"),
        ([], {"is_retracted": "no"}, ""),
        (["retracted=true"], {"is_retracted": True}, ""),
        ([], {"is_historical_ocr": "true"}, "article from historical OCR"),
        (["historical_ocr=true"], {"is_historical_ocr": 1}, ""),
        ([], {"license_code": "CC BY-NC-ND"}, ""),
        ([], {"license_code": "cc-by-nc 4.0"}, ""),
        (["license=commercial"], {"license_code": "CC BY-NC"}, "licence CC BY-NC"),
        ([], {"license_code": "TDM"}, "licence unknown"),
        ([], {"license_code": None}, "licence unknown"),
        (["license=any"], {"license_code": None}, ""),
        ([], {}, ""),
        (["since=2020"], {"citation": "PLoS One. 2018 Nov 25;19(11):e03"}, "date before 2020"),
        (["since=2020"], {"citation": "PLoS One. 2019 Nov 25;19(11):e03"}, ""),  # XML decides
        (["until=2020-05"], {"citation": "Gut. 2022;1:2"}, "date after 2020-05"),
        (["until=2020-05"], {"citation": "Gut. 2021;1:2"}, ""),
        (["since=2020"], {"citation": "Proc. 1999. Meeting. 2021 May;2"}, ""),
    ],
)
def test_filters_on_the_json(arguments: list[str], record: dict[str, Any], reason: str) -> None:
    expected = pytest.raises(Dropped, match=f"^{reason}$") if reason else nullcontext()
    with expected:
        filter_record(config(*arguments), record)


@pytest.mark.parametrize(
    ("arguments", "front", "reason"),
    [
        (["languages=[en]"], {"language": 'xml:lang="en-GB" '}, ""),
        (["languages=[en]"], {}, ""),  # JATS's default
        (["languages=[en,de]"], {"language": 'xml:lang="PT" '}, "language pt"),
        (["languages=[en]"], {"language": 'xml:lang="enm" '}, "language enm"),
        (["article_types=[case-report]"], {"kind": "case-report"}, ""),
        (["article_types=[case-report]"], {"kind": ""}, "article type unknown"),
        (["article_types=[case-report]"], {}, "article type research-article"),
        (["since=2020-05"], {"date": "2020"}, ""),
        (["since=2020-05"], {"date": "2020-04-30"}, "date before 2020-05"),
        (["since=2020-05-02"], {"date": "2020-05-02"}, ""),
        (["until=2020-05"], {"date": "2020-05-31"}, ""),
        (["until=2020-05"], {"date": "2020-06-01"}, "date after 2020-05"),
        (["until=2020"], {}, "date unknown"),
    ],
)
def test_filters_on_the_xml(arguments: list[str], front: dict[str, str], reason: str) -> None:
    expected = pytest.raises(Dropped, match=f"^{reason}$") if reason else nullcontext()
    with expected:
        filter_article(config(*arguments), article(**front))


@pytest.mark.parametrize(
    "arguments", [["since=20"], ["until=May 2020"], ["since=2020", "until=2019-12"]]
)
def test_impossible_dates(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"since|until"):
        config(*arguments)


def test_media_are_names_only() -> None:
    urls = [
        f"s3://pmc-oa-opendata/PMC1.1/b c.jpg?md5={MD5}",
        "https://evil.example/PMC1.1/a.jpg",
        "s3://pmc-oa-opendata/PMC11.1/other.jpg",
        "s3://pmc-oa-opendata/PMC1.1/",
        "PMC1.1/plain.png",
        7,
    ]
    found = media_of({"media_urls": urls}, "PMC1.1")
    assert found == [Media("a.jpg", ""), Media("b c.jpg", MD5), Media("plain.png", "")]
    assert media_of({"media_urls": None}, "PMC1.1") == []
    assert media_of({}, "PMC1.1") is None
    assert media_of({"media_urls": "x"}, "PMC1.1") is None
    assert md5_of({"xml_url": f"s3://b/PMC1.1/PMC1.1.xml?md5={MD5}"}, "xml_url") == MD5
    assert md5_of({"xml_url": None}, "xml_url") == ""


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_bad_json(data: bytes) -> None:
    with pytest.raises(BadRecord):
        read_record(data)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://bucket.example", True),
        ("http://127.0.0.1:9000/b", True),
        ("http://bucket.example", False),
        ("https://user:word@bucket.example", False),
        ("https://bucket.example/?a=b", False),
        ("https://", False),
    ],
)
def test_hosts(url: str, good: bool) -> None:
    if good:
        check_host(url, "source")
    else:
        with pytest.raises(UserError, match="source="):
            check_host(url, "source")


def test_memory_never_exceeds_its_bound_and_the_first_never_waits() -> None:
    """Twenty articles of up to 40 bytes in a memory of 50, used one after the other."""

    async def article_bytes(ticket: Ticket, sizes: list[int]) -> None:
        for size in sizes:
            while not ticket.take(size):
                await ticket.room(size)
            await asyncio.sleep(0)

    async def scenario() -> Memory:
        memory = Memory(50, 40)
        tickets = [Ticket(memory) for _ in range(20)]
        sizes = [[n % 7 + 1] * 5 for n in range(20)]
        work = [
            asyncio.create_task(article_bytes(*pair)) for pair in zip(tickets, sizes, strict=True)
        ]
        for ticket, task in zip(tickets, work, strict=True):
            await memory.let_first(ticket)
            await task
            await memory.free(ticket)
        with pytest.raises(ArticleTooLarge, match="article larger than 40 bytes"):
            Ticket(memory).take(41)
        return memory

    memory = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert memory.held == 0
    assert memory.most_held + 35 > 50
    assert memory.most_held <= 90
