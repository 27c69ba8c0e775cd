"""Regenerates the README's tables: `python -m tests.readme` writes, the test of the same name checks."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def replace_between(text: str, marker: str, content: str) -> str:
    """The text with what stands between `<!-- marker -->` and `<!-- /marker -->` replaced."""
    start, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    before, rest = text.split(start)
    return f"{before}{start}{content.rstrip()}\n{end}{rest.split(end)[1]}"


def put_into(path: Path, marker: str, content: str) -> None:
    """Replace what stands between a marker's two comments in a file."""
    path.write_text(replace_between(path.read_text("utf-8"), marker, content), "utf-8")


def methods_table() -> str:
    """The registry as Markdown; passes at the defaults on an input of 224 x 224."""
    from salviz.methods import METHODS

    lines = ["| id | method | family | map | needs | passes an image | source |", "|---|---|---|---|---|---:|---|"]
    for id, method in METHODS.items():
        card = method.card
        passes = card.passes(card.check_parameters({}), (224, 224))
        cells = (f"`{id}`", card.title, card.family, card.sign, card.requirement, f"{passes:g}", card.citation)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shipped_table() -> str:
    """The small classifiers that come with Salviz, from their cards."""
    import json

    from salviz.assets import find_asset
    from salviz.classifiers.registry import SHIPPED, shipped_file

    lines = [
        "| id | epochs | right on its training labels | right on the test set | trained in |",
        "|---|---:|---:|---:|---:|",
    ]
    for id in SHIPPED:
        path = find_asset(shipped_file(id).replace(".safetensors", ".json"))
        assert path is not None
        about = json.loads(path.read_text("utf-8"))
        lines.append(
            f"| `{id}` | {about['recipe']['epochs']} | {about['train_accuracy']:.1%} | "
            f"{about['test_accuracy']:.1%} | {about['seconds'] / 60:.0f} min |"
        )
    return "\n".join(lines)


def main() -> None:
    """Write the tables that follow from the registries."""
    put_into(README, "methods", methods_table())
    put_into(README, "shipped", shipped_table())


if __name__ == "__main__":
    main()
