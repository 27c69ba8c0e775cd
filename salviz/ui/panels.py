"""Pieces several pages use: skeletons, problems, scores, links and the display choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlencode

import streamlit as st

from salviz.flatness import is_flat
from salviz.overlay import decimals, format_value
from salviz.ui import state

PICTURES = (1, 1, 1, 1.1)
"""Widths of the photograph, the map, the overlay and the classes, side by side."""


def photograph(source: str, alt: str) -> None:
    """The photograph alone, where it will stand beside its map.

    Args:
        source: Its address.
        alt: What it shows.
    """
    with st.columns(PICTURES)[0]:
        st.image(source, caption="Photograph", width="stretch", alt=alt)


def skeletons(message: str, *, photograph: str = "", alt: str = "") -> None:
    """The page's layout before there is anything to show.

    Args:
        message: What is awaited.
        photograph: Address of the photograph, where it is known.
        alt: What it shows.
    """
    st.caption(message)
    for place, column in enumerate(st.columns(PICTURES)):
        with column:
            if place == 0 and photograph:
                st.image(photograph, caption="Photograph", width="stretch", alt=alt)
            else:
                st.skeleton(260)
    for column in st.columns(3):
        with column:
            st.skeleton(76)
    for column in st.columns(2):
        with column:
            for _ in range(3):
                st.skeleton(104)


_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]()<>#+!|$~:"})


def plain(text: str) -> str:
    """A name somebody else gave, as Markdown that shows it as it is."""
    return text.translate(_MARKS)


def problems(sentences: Sequence[str]) -> None:
    """One quiet box for everything that went wrong, nothing where nothing did."""
    # A place of its own, empty or not: what stands below must not move to another while the page is drawn.
    with st.container(key="problems"):
        if sentences:
            first, rest = list(sentences[:3]), list(sentences[3:])
            if rest:
                were = "was" if len(rest) == 1 else "were"
                first.append(f"And {counted(len(rest), 'part more', 'parts more')} of the link {were} left out.")
            st.warning("\n\n".join(first), icon=":material/info:")


def theme() -> str:
    """`light` or `dark`, as the browser shows it."""
    return "dark" if st.context.theme.type == "dark" else "light"


def ground() -> int:
    """Grey of the page, between pictures side by side."""
    return 18 if theme() == "dark" else 255


def header(names: Sequence[str], picture: Any) -> None:
    """What is on screen, in one line, with the link.

    Args:
        names: Joined into the title; empty ones are left out.
        picture: The photograph, or None.
    """
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title(" · ".join(plain(name) for name in names if name), anchor=False, width="stretch")
        link(is_shareable=picture is None or picture.shareable)


def score(title: str, value: Any, *, meaning: str, missing: str, is_awaited: bool = False) -> None:
    """A score with its interval and count, or why it is undefined.

    Args:
        title: Name of the score.
        value: A `metrics.Score`.
        meaning: One sentence of help.
        missing: Why it is undefined here and what to try.
        is_awaited: Whether rows are still to come.
    """
    if math.isnan(value.value):
        st.metric(title, "–" if is_awaited else "undefined", help=meaning)
        st.caption(missing or " ")
        return
    st.metric(title, number(value.value), help=meaning)
    st.caption(interval(value))


def interval(value: Any) -> str:
    """`[0.66, 0.75], n = 11`; or that too few rows, of either side where it has two, carry it."""
    rows = f"n = {value.count}" + (f", {value.undefined} undefined" if value.undefined else "")
    if math.isnan(value.low):
        from salviz.scores import too_few

        return f"{rows}: {too_few(value)}"
    return f"[{number(value.low)}, {number(value.high)}], {rows}"


def link(*, is_shareable: bool, is_shown: bool = True, kind: str = "picture") -> None:
    """The popover with the page's link, or why there is none.

    Args:
        is_shareable: Whether the picture can be opened by others.
        is_shown: Whether what is picked is on screen; else it is still to be computed.
        kind: What the picture is called.
    """
    with st.popover("Link", icon=":material/link:", key="link", on_change="rerun"):
        if not is_shareable:
            st.markdown(
                f"An uploaded {kind} cannot travel in a link: it stays on this server only while you are here. "
                "Everything else of this view can; choose a sample to share it, or download the result."
            )
            return
        base = (st.context.url or "").partition("?")[0]
        query = urlencode(state.link_parameters())
        st.markdown(
            "This link opens exactly this view:"
            if is_shown
            else "This link opens what is picked, and not the map before that is still on screen:"
        )
        st.code(f"{base}?{query}" if query else base, language=None, wrap_lines=True)


def choice(
    label: str, titles: Mapping[str, str], key: str, *, meaning: str | None = None, disabled: bool = False
) -> str:
    """A segmented control over ids, shown by their titles; always one is chosen.

    Args:
        label: Above the control.
        titles: Title of each id.
        key: Widget and URL key.
        meaning: One sentence of help.
        disabled: Shown but not to be used.
    """
    found = st.segmented_control(
        label,
        list(titles),
        format_func=lambda option: titles[option],
        key=key,
        required=True,
        help=meaning,
        disabled=disabled,
        persist_state="session",
    )
    # Streamlit can hand back nothing for a moment, though one is required.
    return str(next(iter(titles)) if found is None else found)


WIDE = 320
"""Pixels of a select box beside other controls: its label and the names in it stand in one line, on a phone too."""

_LABEL = 26
"""Pixels from the top of a control's label to the control."""


@contextmanager
def unlabelled() -> Iterator[None]:
    """A place for a control without a label beside others that have one, at the height of theirs.

    The row is aligned at its top, where the labels are: its controls are not of one height.
    """
    with st.container(width="content", gap=None):
        st.space(_LABEL)
        yield


def pick(
    label: str,
    titles: Mapping[str, str],
    key: str,
    *,
    meaning: str | None = None,
    width: int | Literal["stretch"] = "stretch",
) -> str:
    """A select box over ids, shown by their titles; see `choice`."""
    found = st.selectbox(
        label,
        list(titles),
        format_func=lambda option: titles.get(option, option),
        key=key,
        help=meaning,
        persist_state="session",
        width=width,
    )
    return str(found)


def number(value: float) -> str:
    """Two decimals with a real minus sign, or `undefined`."""
    return "undefined" if math.isnan(value) else decimals(value)


def share(value: float) -> str:
    """A share in per cent with two digits, or `unknown`."""
    # Digits first: a plain `.2g` writes a hundred as 1e+02.
    return "unknown" if math.isnan(value) else f"{float(f'{100 * value:.2g}'):g} %"


def explained(exploration: Any, name: Callable[[int], str]) -> tuple[str, str]:
    """Name of the class that a clean map explains, and what it is against: ` rather than …`, or nothing.

    Args:
        exploration: With one clean image.
        name: Short name of a class.
    """
    rivals = exploration.rivals
    return name(int(exploration.classes[0])), "" if rivals is None else f" rather than {name(int(rivals[0]))}"


def completeness(exploration: Any) -> str:
    """How far a clean map is from adding up, and to what it should, in the words of its method's card."""
    from salviz import methods

    error = float(exploration.completeness[0])
    if not math.isfinite(error):
        return "completeness error undefined"
    output = exploration.request.output
    score = {"logit": "the class's score (its logit)", "probability": "the class's probability"}[output]
    if exploration.rivals is not None:
        whole = {"logit": "scores (their logits)", "probability": "probabilities"}[output]
        score = f"the difference of the two classes' {whole}"
    linear = score if output == "logit" else f"the sum of the logits, each times the derivative of {score} by it"
    size = f"{format_value(abs(error))} {'less' if error < 0 else 'more'}" if error else "no more and no less"
    told = methods.get(exploration.request.method).card.completeness.format(error=size, score=score, linear=linear)
    return f"completeness error {format_value(error)}: {told}"


def standard_error(exploration: Any) -> str:
    """How unsure a clean map of a sampling method is, how many samples it took, and whether that was enough."""
    from salviz.methods.sampling import remark

    error = float(exploration.standard_error[0])
    told = f"standard error {share(error)} of its spread"
    if exploration.samples is None:
        return told
    told += f" after {counted(int(exploration.samples[0]), 'sample', 'samples')}"
    said = remark(error, float(exploration.request.settings.get("tolerance", 0)))
    return f"{told}, {said}" if said else told


def flatness(exploration: Any) -> list[str]:
    """What to say of a clean map that shows nothing, if it does."""
    for is_signed, sentence in (
        (True, "the map is flat: no place counts more than another"),
        (False, "no place speaks for it: see “For and against” under Display"),
    ):
        values = exploration.native_map(is_signed=is_signed)
        if is_flat(float(values.min()), float(values.max())):
            return [sentence]
    return []


def counted(number: float, one: str, many: str) -> str:
    """`1 pass`, `2.5 passes`, `1,281 passes`."""
    return f"{number:,.10g} {one if number == 1 else many}"
