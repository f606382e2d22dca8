"""From measured rates to what all of PubMed Central's open articles take."""

from dataclasses import dataclass

from benchmarks.measure import Row

ARTICLES = 6_000_000
GIGABIT = 1e9 / 8  # bytes/s
HOUR = 3600.0


@dataclass(frozen=True)
class Measured:
    """What the projection starts from.

    Attributes:
        parse: articles/s of one core, XML to figures.
        pipeline: articles/s of one process, from a local mirror to shards.
        join: hashes/s of the near-duplicate join; 0 where it was not measured.
        gets: HTTPS requests/s of one process; 0 where it was not measured.
        bytes_per_article: XML and images.
        figures: in an article.
    """

    parse: float
    pipeline: float
    join: float
    gets: float
    bytes_per_article: float
    figures: int


def projection(measured: Measured, cores: int) -> tuple[list[Row], str]:
    """The table for 6 million articles, and a sentence that names the bottleneck.

    All rates are taken to hold at scale: linear in the number of cores, and the network at its
    nominal rate. Each article is two requests (JSON, XML) and one for each figure.
    """
    volume = ARTICLES * measured.bytes_per_article
    network = volume / GIGABIT / HOUR
    core_hours = ARTICLES / measured.pipeline / HOUR
    hours = {"the network at 1 Gb/s": network, f"{cores} cores": core_hours / cores}
    of = f"{ARTICLES / 1e6:g} million articles"
    rows = [
        Row(f"{of}: to download", "TB", volume / 1e12),
        Row(f"{of}: download at 1 Gb/s", "h", network),
        Row(f"{of}: parsing", "core-hours", ARTICLES / measured.parse / HOUR),
        Row(f"{of}: whole pipeline", "core-hours", core_hours),
        Row(f"{of}: whole pipeline on {cores} cores", "h", core_hours / cores),
        Row(f"{of}: cores that keep up with 1 Gb/s", "cores", core_hours / network),
    ]
    requests = ARTICLES * (2 + measured.figures)
    rows.append(Row(f"{of}: requests", "million", requests / 1e6))
    if measured.gets:
        hours["requests of one process"] = requests / measured.gets / HOUR
        rows.append(Row(f"{of}: requests of one process", "h", hours["requests of one process"]))
    if measured.join:
        hours["the join for near-duplicates on one core"] = (
            ARTICLES * measured.figures / measured.join / HOUR
        )
        rows.append(
            Row(
                f"{of}: near-duplicates of {ARTICLES * measured.figures / 1e6:g} million figures",
                "core-hours",
                hours["the join for near-duplicates on one core"],
            )
        )
    slowest = max(hours, key=lambda name: hours[name])
    listed = ", ".join(f"{name} {value:,.1f} h" for name, value in hours.items())
    return rows, f"{slowest} ({listed})"
