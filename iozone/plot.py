"""SVG without libraries: throughput by record size (`draw`), and systems side by side (`bars`)."""
from html import escape
from math import ceil, floor, log2, log10

ORDER = ["write", "rewrite", "read", "reread", "random read", "random write"]
COLOURS = ["#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#c77f1a", "#555555", "#2aa5a0"]
PANEL_W, PANEL_H, GAP_X, GAP_Y, LEFT, TOP, COLUMNS = 300, 190, 62, 74, 70, 104, 3


def size(kib):
    return f"{kib // 1024} MiB" if kib >= 1024 else f"{kib} KiB"


def nice(mib):
    """Throughput with two or three digits."""
    return f"{mib:,.0f}" if mib >= 10 else f"{mib:.1f}"


def draw(rows):
    """The canonical workload of `rows` (dicts of the CSV) as an SVG document."""
    rows = [r for r in rows if r["workload"] == "canonical"]
    if not rows:
        raise ValueError("no rows of the canonical workload")
    series = {}
    for r in rows:
        label = r.get("series") or r["condition"]
        series.setdefault(label, {}).setdefault(r["test"], {})[int(r["record_kib"])] = float(r["kib_per_s"]) / 1024
    tests = [t for t in ORDER if any(t in s for s in series.values())]
    records = sorted({int(r["record_kib"]) for r in rows})
    values = [v for s in series.values() for t in s.values() for v in t.values() if v > 0]
    # One logarithmic scale for all panels, so that heights compare across them.
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    lines = ceil(len(tests) / COLUMNS)
    width = LEFT + COLUMNS * (PANEL_W + GAP_X)
    height = TOP + lines * (PANEL_H + GAP_Y) + 24
    first = rows[0]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="30" font-size="19" font-weight="bold">tercet: throughput by record size</text>',
        f'<text x="{LEFT}" y="50" fill="#666">{escape(first["tool"])}, one file of {size(int(first["file_kib"]))}, fsync and '
        f'close timed, reads with cold kernel caches; {escape(first["commit"])}, {escape(first["date"])}</text>',
        f'<text x="{LEFT}" y="66" fill="#666">{escape(first["machine"])}</text>',
    ]
    x = LEFT
    for k, label in enumerate(series):
        out.append(f'<line x1="{x}" x2="{x + 26}" y1="84" y2="84" stroke="{COLOURS[k % len(COLOURS)]}" stroke-width="3"/>')
        out.append(f'<text x="{x + 32}" y="88">{escape(label)}</text>')
        x += 60 + 7 * len(label)
    for n, test in enumerate(tests):
        x0, y0 = LEFT + n % COLUMNS * (PANEL_W + GAP_X), TOP + n // COLUMNS * (PANEL_H + GAP_Y) + 22
        out += panel(x0, y0, test, records, low, high, series, first_column=n % COLUMNS == 0)
    out.append("</svg>")
    return "\n".join(out) + "\n"


def panel(x0, y0, test, records, low, high, series, first_column):
    span = max(log2(records[-1] / records[0]), 1)
    at_x = lambda kib: x0 + 14 + (PANEL_W - 28) * log2(kib / records[0]) / span
    at_y = lambda mib: y0 + PANEL_H * (1 - (log10(mib) - low) / (high - low))
    yield f'<text x="{x0}" y="{y0 - 8}" font-weight="bold">{test}</text>'
    for power in range(low, high + 1):
        y = at_y(10 ** power)
        yield f'<line x1="{x0}" x2="{x0 + PANEL_W}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#666">{10 ** power:,g}</text>'
    if first_column:
        mid = y0 + PANEL_H / 2
        yield f'<text x="{x0 - 48}" y="{mid}" transform="rotate(-90 {x0 - 48} {mid})" text-anchor="middle" fill="#666">MiB/s</text>'
    for kib in records:
        yield f'<line x1="{at_x(kib):.1f}" x2="{at_x(kib):.1f}" y1="{y0 + PANEL_H}" y2="{y0 + PANEL_H + 4}" stroke="#999"/>'
        yield f'<text x="{at_x(kib):.1f}" y="{y0 + PANEL_H + 17}" text-anchor="middle" fill="#666">{size(kib)}</text>'
    yield f'<line x1="{x0}" x2="{x0 + PANEL_W}" y1="{y0 + PANEL_H}" y2="{y0 + PANEL_H}" stroke="#999"/>'
    for k, by_test in enumerate(series.values()):
        points = [(at_x(kib), at_y(v), v) for kib, v in sorted(by_test.get(test, {}).items()) if v > 0]
        colour = COLOURS[k % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for i, (x, y, v) in enumerate(points):
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{nice(v)} MiB/s</title></circle>'
            # Figures for the first line above it, for the second below it; more would be clutter.
            if k < 2:
                yield f'<text x="{x:.1f}" y="{y + (-8 if k == 0 else 17):.1f}" text-anchor="middle" font-size="10" fill="{colour}">{nice(v)}</text>'


def bars(head, labels, names, units, middle, lower_is_better):
    """Every figure of iozone/bench on one line: how many times better each system is than the reference.

    The reference is GlusterFS if it was measured, else the first system; better is to the right, on a
    logarithmic scale. `middle` maps (system, figure) to (median, half the range in percent).
    """
    reference = "gluster" if "gluster" in labels else next(iter(labels))

    def times(system, name):
        a, b = middle.get((system, name)), middle.get((reference, name))
        if not a or not b or not a[0] or not b[0]:
            return None
        return b[0] / a[0] if units[name] in lower_is_better else a[0] / b[0]

    points = {n: [(s, t) for s in labels if (t := times(s, n))] for n in names}
    rows = [n for n in names if any(s != reference for s, _ in points[n])]
    if not rows:
        raise ValueError("nothing to compare: measure at least two systems")
    every = [t for n in rows for _, t in points[n]]
    low, high = floor(log10(min(every))), ceil(log10(max(every)))
    high = max(high, low + 1)
    left, top, step, width = 210, 110, 24, 640
    at = lambda t: left + width * (log10(t) - low) / (high - low)
    bottom = top + step * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 40} {bottom + 50}" '
        f'width="{left + width + 40}" height="{bottom + 50}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="20" y="28" font-size="19" font-weight="bold">How many times better than {escape(labels[reference])}</text>',
        f'<text x="20" y="48" fill="#666">further right is better, logarithmic; {escape(head["commit"])}, {escape(head["date"])}, '
        f'medians of {head["rounds"]}; {escape(head["machine"])}</text>',
    ]
    x = 20
    for k, (system, label) in enumerate(labels.items()):
        out.append(f'<circle cx="{x + 5}" cy="72" r="5" fill="{COLOURS[k % len(COLOURS)]}"/><text x="{x + 15}" y="76">{escape(label)}</text>')
        x += 34 + 6.2 * len(label)
    for power in range(low, high + 1):
        shown = f"{10 ** power:,}x" if power >= 0 else f"1/{10 ** -power:,}"
        weight = 2 if power == 0 else 1
        out.append(f'<line x1="{at(10 ** power):.1f}" x2="{at(10 ** power):.1f}" y1="{top - 8}" y2="{bottom}" stroke="#ccc" stroke-width="{weight}"/>')
        out.append(f'<text x="{at(10 ** power):.1f}" y="{bottom + 18}" text-anchor="middle" fill="#666">{shown}</text>')
    order = list(labels)
    for i, name in enumerate(rows):
        y = top + step * i + step / 2
        out.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#f0f0f0"/>')
        for system, t in points[name]:
            value = middle[system, name][0]
            out.append(f'<circle cx="{at(t):.1f}" cy="{y}" r="{6 if system == "tercet" else 4}" '
                       f'fill="{COLOURS[order.index(system) % len(COLOURS)]}" fill-opacity="0.85">'
                       f'<title>{escape(labels[system])}: {value:,.4g} {units[name]} ({t:,.3g}x)</title></circle>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
