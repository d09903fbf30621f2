"""The plot of growth: what more nodes and tasks cost, each curve against its own first point."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from bench.harness import Point, Row

WIDTH, HEIGHT, MARGIN, LEGEND = 760, 460, 56, 300
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22")

Curves = Mapping[str, Sequence[Point]]


def curves(rows: Iterable[Row]) -> Curves:
    """The points of each curve, by size; curves of one point say nothing of growth."""
    found: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        if row.point is not None:
            found[row.point.curve].append(row.point)
    return {
        name: sorted(points, key=lambda point: point.size)
        for name, points in sorted(found.items())
        if len({point.size for point in points}) > 1
    }


def exponent(points: Sequence[Point]) -> float:
    """The slope of the straight line through the logarithms, by least squares: 1 is linear."""
    x = [math.log(point.size) for point in points]
    y = [math.log(point.cost) for point in points]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - middle_x) ** 2 for a in x)


def svg(found: Curves) -> str:
    """The picture: both axes logarithmic and relative to a curve's first point; linear is the dashed line."""
    relative = {
        name: [(point.size / points[0].size, point.cost / points[0].cost) for point in points]
        for name, points in found.items()
    }
    every = [pair for pairs in relative.values() for pair in pairs]
    decades_x = max(1, math.ceil(math.log10(max((x for x, _ in every), default=10))))
    decades_y = max(1, decades_x, math.ceil(math.log10(max((y for _, y in every), default=10))))
    floor_y = min(0, math.floor(math.log10(min((y for _, y in every), default=1))))

    def at(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + math.log10(x) / decades_x * (WIDTH - MARGIN - LEGEND)
        up = (math.log10(y) - floor_y) / (decades_y - floor_y) * (HEIGHT - 2 * MARGIN)
        return round(across, 1), round(HEIGHT - MARGIN - up, 1)

    def line(start: tuple[float, float], end: tuple[float, float], style: str) -> str:
        return f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" {style}/>'

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x}" y="{y}" {more}>{escape(words)}</text>'

    top = 10.0**decades_y
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for decade in range(decades_x + 1):
        x = 10.0**decade
        drawn.append(line(at(x, 10.0**floor_y), at(x, top), 'stroke="#dddddd"'))
        drawn.append(text(at(x, 1)[0], HEIGHT - MARGIN + 18, f"{x:,.0f} ×", 'text-anchor="middle"'))
    for decade in range(floor_y, decades_y + 1):
        y = 10.0**decade
        drawn.append(line(at(1, y), at(10.0**decades_x, y), 'stroke="#dddddd"'))
        drawn.append(text(MARGIN - 6, at(1, y)[1] + 4, f"{y:,g} ×", 'text-anchor="end"'))
    drawn.append(
        line(at(1, 1), at(10.0**decades_x, 10.0**decades_x), 'stroke="black" stroke-dasharray="5 4"')
    )
    drawn.append(text(MARGIN, 24, "cost against nodes × tasks, both as multiples of a curve's first point"))
    drawn.append(text(WIDTH - LEGEND + 24, MARGIN, "dashed: linear"))
    for number, (name, pairs) in enumerate(relative.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(*pair) for pair in pairs]
        joined = " ".join(f"{x},{y}" for x, y in places)
        drawn.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        told = f"{name}: exponent {exponent(found[name]):.2f}"
        drawn.append(text(WIDTH - LEGEND + 24, MARGIN + 20 * (number + 1), told, f'fill="{colour}"'))
    return "\n".join([*drawn, "</svg>"]) + "\n"
