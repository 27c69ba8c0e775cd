"""Scores of an image with some of its superpixels hidden, and what can be learned from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.passes import blank_like
from salviz.methods.sampling import alike, relative_error, sampled, unfinished
from salviz.methods.superpixels import Superpixels
from salviz.targets import ClassTarget
from salviz.work import Work

BLOCK = 128
"""Coalitions between two looks at the error; each look solves a linear system. Even, so that pairs stay together."""


@dataclass(frozen=True)
class Fit:
    """A linear model of the score, one coefficient a superpixel.

    Attributes:
        values: `(N, M)` float64 coefficients; 0 where a superpixel is padding.
        variances: `(N, M)` float64 squared standard errors; NaN where there are too few coalitions to tell.
    """

    values: Tensor
    variances: Tensor


Solve = Callable[[slice, Tensor, Tensor, Tensor, Tensor], Fit]
"""From the rows R of the batch, their `(R, S, M)` bool coalitions, `(R, S)` float64 scores, `(R, S)` bool coalitions
that were scored and `(R, M)` bool superpixels that exist."""

_NUMBERS = 20_000_000
"""Of one float64 design matrix, at the most: images are solved together as far as they fit."""


def hidden(classifier: Classifier, x: Tensor, found: Superpixels, fill: str) -> Tensor:
    """The image with everything hidden: `(N, 3, H, W)`.

    Args:
        classifier: Knows the normalisation.
        x: `(N, 3, H, W)` float32 in model space.
        found: The superpixels.
        fill: `mean`, `black`, or `average` for each superpixel's own mean colour.
    """
    return found.averaged(x) if fill == "average" else blank_like(classifier, x, fill)


def score_coalitions(
    classifier: Classifier,
    x: Tensor,
    blank: Tensor,
    labels: Tensor,
    coalitions: Tensor,
    target: ClassTarget,
    work: Work,
) -> tuple[Tensor, Tensor]:
    """Scores of coalitions: images of which only the superpixels of the coalition are seen.

    Args:
        classifier: The model.
        x: `(I, 3, H, W)` float32 in model space, each image once.
        blank: `(I, 3, H, W)`, what is seen elsewhere.
        labels: `(I, H, W)` int64 superpixel of every pixel.
        coalitions: `(I, S, M)` bool.
        target: One entry a row, of the N rows that show the images.
        work: Budget and progress; S passes an image.

    Returns:
        `(N, S)` float32, and `(N, S)` what rounding may come to in them.
    """
    copies = work.copies(len(x))
    flat = labels.flatten(1)
    scores, errors = [], []
    for start in range(0, coalitions.shape[1], copies):
        # Copies lead, in the order of `target.repeat`; the mask is one byte a pixel and never leaves this pass.
        part = coalitions[:, start : start + copies].transpose(0, 1)
        seen = part.gather(2, flat.expand(len(part), -1, -1)).view(len(part), len(x), 1, *x.shape[2:])
        logits = work.rows(classifier.predict(torch.where(seen, x, blank).flatten(0, 1)))
        everyone = target.repeat(len(part))
        scores.append(everyone.score(logits).view(len(part), -1))
        errors.append(everyone.rounding(logits).view(len(part), -1))
        work.tick(len(part) * len(x))
    return torch.cat(scores).T, torch.cat(errors).T


def _float64(tensor: Tensor) -> Tensor:
    """Where linear systems are solved: on the tensor's own device, unless it has no float64 (MPS)."""
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)


@dataclass(frozen=True)
class Explanation:
    """A fit and how it was come by.

    Attributes:
        values: `(N, M)` float64 coefficients, on the images' device where it has float64.
        maps: `(N, H, W)` float32: every pixel has its superpixel's coefficient.
        error: `(N,)` float32 standard error as a share of the map's spread; see `sampling.Estimate.error`.
        samples: `(N,)` float32 coalitions behind it, those known beforehand included.
    """

    values: Tensor
    maps: Tensor
    error: Tensor
    samples: Tensor


def explain_coalitions(
    classifier: Classifier,
    x: Tensor,
    blank: Tensor,
    found: Superpixels,
    coalitions: Tensor,
    target: ClassTarget,
    solve: Solve,
    work: Work,
    *,
    known: Tensor,
    ends: Tensor,
    tolerance: float,
) -> Explanation:
    """Score coalitions until a linear model of the score is sure enough.

    Where no coalition makes a difference all coefficients are 0.

    Args:
        classifier: The model.
        x: `(N, 3, H, W)` float32 in model space.
        blank: `(N, 3, H, W)`.
        found: The superpixels.
        coalitions: `(N, S, M)` bool, in the order in which they are taken.
        target: One entry an image.
        solve: Fits the model.
        work: Budget and progress.
        known: `(N, K)` scores of the first K coalitions, which cost nothing.
        ends: `(N, E)` scores of the whole and of the empty coalition, as far as they are known.
        tolerance: An image whose error is below needs no more coalitions; 0 takes all.
    """
    count, samples = coalitions.shape[:2]
    done = known.shape[1]
    scores = torch.zeros(count, samples, device=x.device)
    scores[:, :done] = known
    errors = torch.zeros_like(scores)
    taken = torch.arange(samples, device=x.device).expand(count, -1) < done
    exist, areas = found.exist(), found.areas()
    active = torch.arange(count, device=x.device)
    step = BLOCK if tolerance else max(samples, 1)

    def look() -> tuple[Fit, Tensor, Tensor]:
        together = max(1, _NUMBERS // max(samples * found.largest, 1))
        chunks = [slice(start, start + together) for start in range(0, count, together)]
        fits = [solve(rows, coalitions[rows], _float64(scores[rows]), taken[rows], exist[rows]) for rows in chunks]
        fit = Fit(torch.cat([part.values for part in fits]), torch.cat([part.variances for part in fits]))
        maps = found.spread(fit.values.to(x.device, torch.float32))
        variances = fit.variances.to(x.device, torch.float32)
        # The mean over the places of the map: every pixel counts, not every superpixel.
        noise = ((variances * areas).sum(dim=1) / areas.sum(dim=1)).sqrt()
        return fit, maps, relative_error(noise, maps, taken.sum(dim=1))

    while done < samples and len(active):
        stop = min(samples, done - done % step + step)
        now = sampled(active, count, work)
        given = (x, blank, found.labels, coalitions[:, done:stop])
        images, blanks, labels, drawn = (work.images(rows)[now.images] for rows in given)
        new = score_coalitions(classifier, images, blanks, labels, drawn, target.part(now.shown), work)
        scores[now.rows, done:stop], errors[now.rows, done:stop] = (values[now.wanted] for values in new)
        taken[now.rows, done:stop] = True
        done = stop
        if tolerance and done < samples:
            active = unfinished(active, look()[2], tolerance)
    fit, maps, error = look()
    # Where fewer were needed the others repeat the first.
    seen = torch.cat([ends, torch.where(taken, scores, scores[:, :1])], dim=1)
    is_flat = alike(seen, errors)
    values = fit.values.masked_fill(is_flat.to(fit.values.device)[:, None], 0.0)
    maps = maps.masked_fill(is_flat[:, None, None], 0.0)
    return Explanation(values, maps, error.masked_fill(is_flat, 0.0), taken.sum(dim=1).float())


def fit_ridge(coalitions: Tensor, scores: Tensor, taken: Tensor, exist: Tensor, *, width: float, penalty: float) -> Fit:
    """Ridge regression of the score on the superpixels, coalitions near the whole image counting more.

    Ribeiro et al. 2016, eq. 1 and sec. 3.4, with the weights of their code: a coalition at cosine distance d of the
    whole image weighs `exp(-d^2 / (2 width^2))`; the intercept is not penalised. Variances are the
    heteroscedasticity-robust ones of weighted least squares (White 1980), times `S / (S - M - 1)`.

    Args:
        coalitions: `(N, S, M)` bool.
        scores: `(N, S)` float64.
        taken: `(N, S)` bool, the coalitions that were scored.
        exist: `(N, M)` bool.
        width: Of the kernel.
        penalty: On the squares of the coefficients.
    """
    z = _float64(coalitions)
    real = _float64(exist)
    features = real.sum(dim=1)
    distance = 1 - (z.sum(dim=2) / features[:, None]).sqrt()
    weights = (-distance.square() / (2 * width**2)).exp() * _float64(taken)
    total = weights.sum(dim=1, keepdim=True)
    z = z - (torch.einsum("ns,nsm->nm", weights, z) / total)[:, None]
    y = scores - (weights * scores).sum(dim=1, keepdim=True) / total
    weighted = z * weights[..., None]
    # A padded column is zero: the penalty alone gives it the coefficient 0.
    gram = weighted.mT @ z + penalty * torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
    inverse = torch.linalg.inv(gram)
    values = torch.einsum("nij,nj->ni", inverse, torch.einsum("nsj,ns->nj", weighted, y))
    left = y - torch.einsum("nsm,nm->ns", z, values)
    count = taken.sum(dim=1).to(z)
    return Fit(values, _robust(weighted * left[..., None], inverse, count, count - features - 1))


def fit_shapley(
    coalitions: Tensor, scores: Tensor, taken: Tensor, exist: Tensor, *, gained: Tensor, weights: Tensor | None = None
) -> Fit:
    """Shapley values as the least squares fit of the score's gain, exact in their sum.

    Lundberg & Lee 2017, thm. 2. The constraint that the values add up to the gain of the whole image is taken out
    before solving: with the equal share `g/M` removed, what is left lies in the plane of sum 0. The least solution is
    taken where the coalitions do not determine it. Variances treat an antithetic pair as one sample (a sandwich
    estimator clustered by pairs), times `P / (P - M + 1)` for P pairs.

    Args:
        coalitions: `(N, S, M)` bool, drawn by the Shapley kernel; a coalition of even index is followed by its
            complement.
        scores: `(N, S)` float64, above the score of the empty coalition.
        taken: `(N, S)` bool, the coalitions that were scored.
        exist: `(N, M)` bool.
        gained: `(N,)` float64 score of the whole image above that of the empty coalition.
        weights: `(N, S)` float64 where coalitions were not drawn by the kernel but are weighted by it.
    """
    z, real, gained = _float64(coalitions), _float64(exist), _float64(gained)
    features = real.sum(dim=1, keepdim=True)
    share = gained[:, None] / features
    w = _float64(taken) if weights is None else weights * _float64(taken)
    y = scores - z.sum(dim=2) * share
    # Into the plane: of every coalition only the deviation from its own mean over the superpixels matters.
    z = (z - z.sum(dim=2, keepdim=True) / features[..., None]) * real[:, None]
    weighted = z * w[..., None]
    # The direction of equal values is the null space, to within rounding far below this.
    inverse = torch.linalg.pinv(weighted.mT @ z, rtol=1e-10, hermitian=True)
    change = torch.einsum("nij,nj->ni", inverse, torch.einsum("nsj,ns->nj", weighted, y))
    left = y - torch.einsum("nsm,nm->ns", z, change)
    scored = weighted * left[..., None]
    if scored.shape[1] % 2:
        scored = torch.cat([scored, torch.zeros_like(scored[:, :1])], dim=1)
    pairs = scored.view(len(scored), -1, 2, scored.shape[2]).sum(dim=2)
    count = (taken.sum(dim=1) / 2).ceil().to(z)
    variances = _robust(pairs, inverse, count, count - features[:, 0] + 1)
    return Fit((share + change) * real, variances)


def _robust(scored: Tensor, inverse: Tensor, count: Tensor, free: Tensor) -> Tensor:
    """Sandwich variances `(N, M)` of a fit: `diag(A^-1 (sum u u^T) A^-1) * count / free`.

    Args:
        scored: `(N, S, M)` derivatives u of every sample's loss.
        inverse: `(N, M, M)` inverse A^-1 of the normal equations' matrix.
        count: `(N,)` samples.
        free: `(N,)` samples less what was fitted.
    """
    squares = (scored @ inverse).square().sum(dim=1)
    factor = torch.where(free > 0, count / free.clamp(min=1), torch.full_like(count, float("nan")))
    return squares * factor[:, None]
