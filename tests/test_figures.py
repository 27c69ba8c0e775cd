"""Colours of charts: methods drawn together can be told apart, in both themes and by colour-blind people."""

from itertools import combinations

import numpy as np
import pytest
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from salviz.agreement import Agreement, Tree
from salviz.figures import (
    CELL,
    DASHES,
    MATRIX_TOP,
    METHOD_COLOURS,
    PALETTES,
    agreement,
    dashes,
    matrix_order,
    method_colour,
)
from salviz.figures.curves import randomisation
from salviz.methods import METHODS
from salviz.methods.card import FAMILIES
from salviz.metrics.randomisation import CHECKED, curve

OKABE_ITO = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB.
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "deuteranopia": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "tritanopia": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9309, 0.1476], [0.0047, 0.6914, 0.3039]]),
}


def linear(colour: str) -> np.ndarray:
    """sRGB to linear RGB."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB to Oklab (Ottosson 2020), where distances are about what people see."""
    cones = np.array(
        [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]],
    )
    axes = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return axes @ np.cbrt(cones @ rgb)


def closest(colours: tuple[str, ...], eye: str) -> float:
    """Distance of the two colours that are most alike to an eye."""
    seen = [oklab(np.clip(EYES[eye] @ linear(colour), 0, 1)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))


def colour(method: str) -> str:
    return method_colour(METHODS[method].card.family, list(METHODS).index(method))


@pytest.mark.parametrize("eye", EYES)
def test_any_two_colours_are_told_apart_by_every_eye(eye: str) -> None:
    # The usual reference for colour-blind readers, at its worst eye.
    assert closest(METHOD_COLOURS, eye) > min(closest(OKABE_ITO, one) for one in EYES)


@pytest.mark.parametrize("theme", PALETTES)
def test_lines_stand_out_from_the_page(theme: str) -> None:
    def light(colour: str) -> float:
        return 0.05 + float(linear(colour) @ [0.2126, 0.7152, 0.0722])

    ground = light(PALETTES[theme].ground)
    for one in METHOD_COLOURS:
        assert max(light(one), ground) / min(light(one), ground) > 2.5


def test_methods_drawn_together_have_colours_of_their_own() -> None:
    for family in FAMILIES:
        members = [name for name, method in METHODS.items() if method.card.family == family][: len(METHOD_COLOURS)]
        if family != "controls":
            assert len({colour(name) for name in members}) == len(members)
    # What is checked first, and what is compared most across families.
    for together in (
        CHECKED,
        ("gradient", "integrated_gradients", "smoothgrad", "grad_cam", "occlusion", "rise", "lrp"),
        ("gradient", "integrated_gradients", "grad_cam", "attention_rollout", "transformer_attribution"),
    ):
        assert len({colour(name) for name in together}) == len(together)


def test_lines_of_one_colour_differ_in_their_dash_and_symbol() -> None:
    names = ("gradient", "deeplift", "opti_cam", "smoothgrad", "random", "edge")
    colours = {name: colour(name) for name in names}
    assert colours["gradient"] == colours["deeplift"] == colours["opti_cam"] != colours["smoothgrad"]
    assert [dashes(colours)[name] for name in names[:4]] == [*DASHES[:3], DASHES[0]]
    known = {name: curve(np.full((1, 3, 2), 0.5), np.ones(2)) for name in names}
    figure = randomisation(
        ["a", "b", "c"], known, colours, {name: name for name in names}, current=None, measure="SSIM", theme="dark"
    )
    drawn = {
        trace.name: (trace.line.color, trace.line.dash, trace.marker.symbol) for trace in figure.data if trace.name
    }
    assert len(set(drawn.values())) == len(names)
    assert (drawn["random"][1], drawn["edge"][1]) == ("dot", "dash")


def test_the_matrix_leaves_its_width_to_the_cells_and_numbers_them() -> None:
    """Names beside the cells would leave a phone no room: they stand outside the chart, in the same order."""
    values = [[1.0, 0.25, 0.75], [0.25, 1.0, -0.5], [0.75, -0.5, 1.0]]
    tree = Tree(order=(0, 2, 1), branches=(), linkage=np.zeros((2, 4)))
    figure = agreement(["A", "B", "C"], values, tree, measure="ssim", theme="light")
    assert matrix_order(3, tree) == [0, 2, 1]
    assert matrix_order(3, None) == [0, 1, 2]
    margin = figure.layout.margin
    assert margin.l == margin.r == 0
    assert not figure.layout.yaxis2.showticklabels
    # A row is as high as a line of the names beside it.
    assert figure.layout.height - margin.t - margin.b == 3 * CELL
    assert margin.t == MATRIX_TOP
    (cells,) = figure.data
    assert [list(row) for row in cells.text] == [["", "0.75", "0.25"], ["0.75", "", "−0.50"], ["0.25", "−0.50", ""]]
    assert [(one.x, one.y, one.text) for one in figure.layout.annotations] == [
        (place, place, f"<b>{place + 1}</b>") for place in range(3)
    ]
    assert cells.customdata[1][2] == "C and B"


@pytest.mark.parametrize("flat", [False, True])
def test_branches_are_drawn_to_the_rows_they_join(flat: bool) -> None:
    """Drawn beside the matrix, distances to the left: scipy's own coordinates, at the rows of the cells."""
    values = np.array([[1, 0.1, 0.9, 0.3], [0.1, 1, 0.2, 0.8], [0.9, 0.2, 1, 0.4], [0.3, 0.8, 0.4, 1]])
    joined = linkage(squareform(1 - values, checks=False), "average", optimal_ordering=True)
    scipys = dendrogram(joined, no_plot=True)
    if flat:
        # A flat map as the first of five rows; it comes last in the matrix.
        whole = np.full((5, 5), np.nan)
        whole[1:, 1:] = values
        values = whole
    names = ["FLAT", *"ABCD"] if flat else [*"ABCD"]
    tree = Agreement(values, values).tree()
    figure = agreement(names, values.tolist(), tree, measure="spearman", theme="light")
    root, (left, right) = max(tree.linkage[:, 2]), figure.layout.xaxis.range
    assert -1.1 * root < left < -1.03 * root, "room for the width of the root's line, and no more"
    assert right == 0
    *branches, cells = figure.data
    assert [list(line.y) for line in branches] == [[(x - 5) / 10 for x in one] for one in scipys["icoord"]]
    assert [list(line.x) for line in branches] == [[-height for height in one] for one in scipys["dcoord"]]
    assert {line.xaxis for line in branches} == {"x"}
    assert {line.yaxis for line in branches} == {"y"}
    # A row of cells is at its leaf's place, from the top down.
    in_order = [names[row] for row in matrix_order(len(names), tree)]
    assert in_order[:4] == ["ABCD"[leaf] for leaf in scipys["leaves"]]
    assert in_order[4:] == (["FLAT"] if flat else [])
    assert [row[0].split(" and ")[0] for row in cells.customdata] == in_order
    assert list(figure.layout.yaxis.range) == [len(names) - 0.5, -0.5]
    assert figure.layout.yaxis2.matches == "y"
    if flat:
        assert list(cells.text[4]) == [""] * 5
