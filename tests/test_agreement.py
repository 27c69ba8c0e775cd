"""How alike maps are, and the tree of them."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster
from scipy.stats import spearmanr

from salviz import maps, methods
from salviz.agreement import Agreement, agree
from salviz.comparison import compare
from salviz.exploring import explore
from tests.models import toy
from tests.test_comparison import PICTURE, every, request


def test_agreement_equals_scipys_on_the_same_maps() -> None:
    classifier = toy()
    found = compare({classifier.digest: classifier}, PICTURE, every(classifier, ["gradient", "grad_cam", "edge"]))
    flat = [
        maps.comparable(row.raw, methods.get(row.request.method).card, (32, 32)).flatten().numpy() for row in found.rows
    ]
    np.testing.assert_allclose(found.agreement.spearman, spearmanr(np.stack(flat), axis=1).statistic, atol=1e-5)
    assert (np.diag(found.agreement.ssim) == 1).all()
    np.testing.assert_array_equal(found.agreement.ssim, found.agreement.ssim.T)


def test_maps_of_different_frames_meet_on_the_photograph() -> None:
    """The same map under two crops agrees with itself; under a third that is shifted it does not."""
    classifier = toy()
    row = explore(classifier, PICTURE, request(classifier, "grad_cam"))
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = dataclasses.replace(row, raw=(3 * x + y)[None])
    # The right half of the frame, seen by a model of its own at twice the resolution.
    left, top, right, bottom = row.placement.box
    half = dataclasses.replace(row.placement, box=((left + right) / 2, top, right, bottom))
    fine = torch.nn.functional.interpolate(ramp.raw[None, :, :, 16:], size=(32, 32), mode="bilinear")[0]
    part = dataclasses.replace(row, raw=fine, placement=half)
    assert agree([ramp, part]).spearman[0, 1] > 0.999
    assert agree([ramp, dataclasses.replace(part, raw=fine.flip(2))]).spearman[0, 1] < 0


def test_flat_maps_agree_with_nothing_and_leave_no_tree() -> None:
    classifier = toy()
    row = explore(classifier, PICTURE, request(classifier, "grad_cam"))
    flat = dataclasses.replace(row, raw=torch.zeros_like(row.raw))
    found = agree([row, flat])
    assert np.isnan(found.spearman[0, 1])
    assert np.isnan(found.spearman[1, 1])
    assert found.spearman[0, 0] == 1
    assert found.tree() is None
    assert agree([row]).tree() is None


def test_a_map_that_is_flat_but_for_rounding_agrees_with_nothing() -> None:
    classifier = toy()
    row = explore(classifier, PICTURE, request(classifier, "grad_cam"))
    ulp = torch.finfo(torch.float32).eps
    found = agree([row, dataclasses.replace(row, raw=1 + ulp * (row.raw > row.raw.median()))])
    assert np.isnan(found.spearman[0, 1])
    assert np.isnan(found.spearman[1, 1])
    # What is small beside a large constant and yet no rounding is still compared.
    assert agree([row, dataclasses.replace(row, raw=1 + 1e-3 * row.raw / row.raw.abs().max())]).spearman[0, 1] > 0.9


def test_the_tree_joins_what_agrees() -> None:
    classifier = toy()
    asked = every(classifier, ["gradient", "smoothgrad_squared", "grad_cam", "layer_cam"])
    found = compare({classifier.digest: classifier}, PICTURE, asked)
    rank = found.agreement.spearman
    tree = found.agreement.tree()
    assert tree is not None
    assert sorted(tree.order) == [0, 1, 2, 3]
    assert len(tree.branches) == 3
    np.testing.assert_allclose(tree.linkage[0, 2], 1 - rank[~np.eye(4, dtype=bool)].max(), atol=1e-12)
    assert len(set(fcluster(tree.linkage, 2, "maxclust"))) == 2
    other = found.agreement.tree("ssim")
    assert other is not None
    alike = found.agreement.ssim
    np.testing.assert_allclose(other.linkage[0, 2], 1 - alike[~np.eye(4, dtype=bool)].max(), atol=1e-12)


def naive_average_linkage(distances: np.ndarray) -> list[tuple[frozenset[int], frozenset[int], float]]:
    """The two clusters joined and their distance, step by step: the mean over all pairs of their members."""
    clusters = [frozenset([row]) for row in range(len(distances))]
    joins = []
    while len(clusters) > 1:
        height, first, second = min(
            ((np.mean([distances[i, j] for i in a for j in b]), a, b) for a, b in combinations(clusters, 2)),
            key=lambda found: found[0],
        )
        joins.append((first, second, float(height)))
        clusters = [one for one in clusters if one not in (first, second)] + [first | second]
    return joins


def alike(count: int, seed: int = 0) -> np.ndarray:
    """Any symmetric agreement of so many rows, all pairs of which differ."""
    values = np.random.default_rng(seed).uniform(-0.5, 1, (count, count))
    values = np.triu(values, 1)
    return values + values.T + np.eye(count)


@pytest.mark.parametrize("flat", [(), (2,), (0, 3)])
def test_branches_join_the_rows_as_average_linkage_does(flat: tuple[int, ...]) -> None:
    """Each branch has its feet in the middle of what it joins, at their own heights, and its top at their distance."""
    values = alike(6)
    for row in flat:
        values[row] = values[:, row] = np.nan
    tree = Agreement(values, values).tree()
    assert tree is not None
    assert tree.order[len(tree.order) - len(flat) :] == flat, "without an agreement: last, as they came"
    assert sorted(tree.order) == list(range(6))
    kept = [row for row in range(6) if row not in flat]
    middle = {frozenset([row]): float(tree.order.index(row)) for row in kept}
    tops = {frozenset([row]): 0.0 for row in kept}
    expected = []
    distances = 1 - values[np.ix_(kept, kept)]
    for a, b, height in naive_average_linkage(distances):
        first, second = (frozenset(kept[i] for i in cluster) for cluster in (a, b))
        left, right = sorted([first, second], key=middle.__getitem__)
        expected.append(([middle[left]] * 2 + [middle[right]] * 2, [tops[left], height, height, tops[right]]))
        middle[first | second], tops[first | second] = (middle[first] + middle[second]) / 2, height
    assert len(tree.branches) == len(kept) - 1
    drawn, told = sorted(tree.branches, key=lambda branch: branch[1][1]), sorted(expected, key=lambda one: one[1][1])
    for (places, heights), (where, how_high) in zip(drawn, told, strict=True):
        np.testing.assert_allclose(places, where, atol=1e-12)
        np.testing.assert_allclose(heights, how_high, atol=1e-12)


def test_one_flat_row_leaves_the_others_their_tree() -> None:
    classifier = toy()
    row = explore(classifier, PICTURE, request(classifier, "grad_cam"))
    other = explore(classifier, PICTURE, request(classifier, "gradient"))
    flat = dataclasses.replace(row, raw=torch.zeros_like(row.raw))
    found = agree([flat, row, other])
    for measure in ("spearman", "ssim"):
        tree = found.tree(measure)
        assert tree is not None
        assert tree.order[2] == 0
        assert len(tree.branches) == len(tree.linkage) == 1
    np.testing.assert_allclose(found.tree().linkage[0, 2], 1 - found.spearman[1, 2], atol=1e-12)


def test_rows_that_share_no_pixel_keep_as_many_branches_as_they_can() -> None:
    values = alike(4)
    values[1, 2] = values[2, 1] = values[1, 3] = values[3, 1] = np.nan
    tree = Agreement(values, values).tree()
    assert tree is not None
    assert tree.order[3] == 1
    assert len(tree.branches) == 2
