"""What a language model wrote before and after, side by side."""

from collections.abc import Mapping, Sequence

from rankwise.recipes.language import Sample

SAMPLES = "samples.md"


def sample_table(before: Sequence[Sample], after: Sequence[Sample]) -> list[dict[str, str]]:
    """One mapping a prompt: `prompt`, `reference` (as the data go on), `before`, `after`."""
    return [
        {
            "prompt": one.prompt,
            "reference": one.reference,
            "before": one.written,
            "after": other.written,
        }
        for one, other in zip(before, after, strict=True)
    ]


def samples_page(table: Sequence[Mapping[str, str]]) -> str:
    """As Markdown, each text indented so that nothing in it is read as Markdown."""
    titles = {
        "prompt": "prompt",
        "reference": "as the data go on",
        "before": "before",
        "after": "after",
    }
    lines = ["# Samples", "", "Held-out prompts, continued greedily.", ""]
    for number, row in enumerate(table, 1):
        lines += [f"## {number}", ""]
        for key, title in titles.items():
            text = [f"    {line}".rstrip() for line in row[key].strip().splitlines()]
            text = text or ["    (nothing)"]
            lines += [f"{title}:", "", *text, ""]
    return "\n".join(lines)
