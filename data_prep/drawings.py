"""Bars for the dataset card, as SVG and HTML; every text in them is escaped."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup


def bars(counts: Mapping[str, int], limit: int = 20) -> Markup:
    """Horizontal bars with names and counts, the largest first, the rest summed up in one line."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    total, largest = sum(counts.values()), max(counts.values(), default=1)
    row = Markup(
        '<tr><td class="what">{}</td><td class="num">{:,}</td><td class="num soft">{:.1f}%</td>'
        '<td class="plot"><span class="bar" style="width:{:.1f}%"></span></td></tr>'
    )
    rows = [
        row.format(name or "(unknown)", count, 100 * count / total, 100 * count / largest)
        for name, count in ordered[:limit]
    ]
    if rest := ordered[limit:]:
        count = sum(count for _, count in rest)
        text = Markup(
            '<tr><td class="what soft">{:,} more</td><td class="num soft">{:,}</td>'
            '<td class="num soft">{:.1f}%</td><td class="plot"></td></tr>'
        )
        rows.append(text.format(len(rest), count, 100 * count / total))
    return Markup('<table class="bars"><tbody>{}</tbody></table>').format(Markup("").join(rows))


def columns(labels: Sequence[str], counts: Sequence[int]) -> Markup:
    """Vertical columns with a label below some of them; titles tell the counts on hover."""
    width, height, base = 560, 150, 126
    step = (width - 8) / max(len(counts), 1)
    every = max(1, -(-len(labels) // 9))
    largest = max([*counts, 1])
    parts = [
        Markup('<svg class="columns" viewBox="0 0 {} {}" role="img">').format(width, height),
        Markup('<line class="axis" x1="4" x2="{}" y1="{}" y2="{}"/>').format(width - 4, base, base),
        Markup('<text x="4" y="9">{:,}</text>').format(largest),
    ]
    for place, (label, count) in enumerate(zip(labels, counts, strict=True)):
        left, tall = 4 + place * step, (base - 14) * count / largest
        parts.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{}: {:,}</title></rect>"
            ).format(left + 0.1 * step, base - tall, 0.8 * step, tall, label, count)
        )
        if place % every == 0:
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    left + step / 2, base + 14, label
                )
            )
    return Markup("").join([*parts, Markup("</svg>")])
