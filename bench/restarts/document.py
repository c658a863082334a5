"""Tables, and their places in the document."""


def table(headings, rows):
    """In Markdown, with numbers as people write them."""
    lines = [headings, ["---"] * len(headings), *([cell(it) for it in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value):
    return f"{value:,}" if isinstance(value, int) else str(value)


def ms(microseconds):
    """Milliseconds, with as many digits as matter."""
    if microseconds is None:
        return "–"
    value = microseconds / 1000
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


def write(document, part, text):
    begin, finish = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    before, rest = document.read_text().split(f"{begin}\n")
    after = rest.split(finish)[1]
    document.write_text(f"{before}{begin}\n{text}\n{finish}{after}")
