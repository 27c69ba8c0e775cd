"""Running a randomisation test: net after net, method after method, in parts of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salviz import maps as map_kinds
from salviz import methods as registry
from salviz.classifiers.classifier import Classifier
from salviz.engine import Settings, explain_set, passes
from salviz.errors import Refusal
from salviz.images import Picture
from salviz.sanity.checks import Check, Checked
from salviz.sanity.interventions import checked_twin, interventions, stage_names
from salviz.sanity.strip import Strip
from salviz.seeds import generators, seed_of
from salviz.similarity.measures import Measure, entropy, find_measure
from salviz.targets import ClassTarget, PredictedTarget, Target
from salviz.work import Progress, Work, silent

AT_ONCE = 64
"""Images whose maps of the trained net are kept at a time."""

COMPARING = 0.25
"""A comparison of two maps under one measure in steps of progress; a pass of an image is one."""

Publish = Callable[[Checked], None]


def check_randomisation(
    classifier: Classifier,
    x: Tensor,
    check: Check,
    *,
    digests: Sequence[str],
    batch_size: int | None = None,
    progress: Progress = silent,
    publish: Publish = lambda checked: None,
    frame: Tensor | None = None,
    twin: Classifier | None = None,
) -> Checked:
    """Run a randomisation test.

    Args:
        classifier: The trained net; not changed.
        x: `(N, 3, H, W)` float32 in model space, on the classifier's device.
        check: What is asked.
        digests: Content digest of every image: it seeds the image's random numbers.
        batch_size: Images in one model pass at the most; None for what suits the device.
        progress: Called with (done, total) steps, about one a pass of an image; may raise `Cancelled`.
        publish: Called with what is known after every net; its arrays are filled in place.
        frame: `(3, H, W)` uint8, the first image as the model sees it: then its maps are kept as a film strip.
        twin: The classifier that `check.how` names, where it is a `Twin`.

    Returns:
        Similarities of every method, measure, draw, stage and image.

    Raises:
        Refusal: No method can explain this classifier. Where some can, the others are told in `refused`.
        SalvizError: Something does not fit together.
    """
    twin = checked_twin(classifier, check.how, twin)
    refused = _refused(check, [classifier] if twin is None else [classifier, twin])
    able = {name: given for name, given in check.methods.items() if name not in refused}
    if not able:
        raise Refusal(next(iter(refused.values())))
    check = replace(check, methods=able)
    names = stage_names(classifier, check.how)
    rows = tuple(check.rows)
    measures = [find_measure(name) for name in check.measures]
    shape = (check.draws, len(names), len(x))

    def empty(*sizes: int) -> NDArray[np.float32]:
        return np.full(sizes, np.nan, dtype=np.float32)

    found = Checked(
        check, names, rows,
        scores=empty(len(rows), len(measures), *shape), itself=empty(len(rows), len(measures), len(x)),
        entropies=empty(len(rows), *shape), entropy=empty(len(rows), len(x)),
        spread=empty(*shape), agrees=empty(*shape), classes=np.zeros(len(x), dtype=np.int64),
    )  # fmt: skip
    # A net is made for each part of the images: with few images there is one part.
    parts = [slice(start, min(start + AT_ONCE, len(x))) for start in range(0, len(x), AT_ONCE)]
    counter = _Counter(progress, _steps(classifier, check, len(x), len(names)))
    strip = None if frame is None else Strip(frame.cpu(), ("trained", *names))
    found = replace(found, strip=strip, refused=refused)
    for part in parts:
        trained = _Trained(classifier, x[part], check, measures, digests[part], batch_size, counter)
        if strip is not None and part.start == 0:
            strip.add(trained.native, trained.logits[0], int(trained.classes[0]))
        found.itself[:, :, part], found.entropy[:, part], found.classes[part] = trained.itself()
        for draw in range(check.draws):
            others = interventions(
                classifier, check.how, draw, images=x[part], digests=digests[part], classes=trained.classes, twin=twin
            )
            for place, (net, target) in enumerate(others):
                where = (draw, place, part)
                scores, entropies, spread, agrees, logits = trained.compare(net, target, f"{draw}|{place}")
                if strip is not None and part.start == draw == 0:
                    strip.add(trained.native, logits[0], trained.explained(logits, target))
                found.scores[:, :, draw, place, part] = scores
                found.entropies[:, draw, place, part] = entropies
                found.spread[where], found.agrees[where] = spread, agrees
                if part is parts[-1]:
                    found = replace(found, done=found.done + 1)
                publish(found)
    return found


def check_pictures(
    classifier: Classifier, pictures: Sequence[Picture], check: Check, *, keeps_strip: bool = False, **options: Any
) -> Checked:
    """Run a randomisation test on pictures as they were decoded.

    Args:
        classifier: The trained net.
        pictures: In order.
        check: What is asked.
        keeps_strip: Keep the first picture's maps as a film strip.
        options: Of `check_randomisation`: `batch_size`, `progress`, `publish`, `twin`.

    Returns:
        As `check_randomisation`.
    """
    prep = classifier.preprocessing
    frames = torch.stack([prep.frame(picture.image) for picture in pictures]).to(classifier.device)
    digests = [picture.digest for picture in pictures]
    frame = frames[0] if keeps_strip else None
    return check_randomisation(classifier, prep.normalise(frames), check, digests=digests, frame=frame, **options)


def _refused(check: Check, nets: Sequence[Classifier]) -> dict[str, str]:
    """Why methods cannot explain all of these nets, by id; in the words of the first that a method cannot explain."""
    found: dict[str, str] = {}
    for net in nets:
        with net.lock:
            reasons = {name: registry.get(name).refusal(net) for name in check.rows}
        # A twin is refused for the same reason; the net that was chosen is the one a person knows.
        found = {name: reason for name, reason in reasons.items() if reason is not None} | found
    return found


def _steps(classifier: Classifier, check: Check, count: int, stages: int) -> int:
    """Steps of a whole test: the trained net's maps twice where they are sampled, every net's, and comparisons."""
    size = classifier.preprocessing.input_size
    once = passes(check.rows, size, classifier)
    sampled = _sampled(check.methods)
    again = passes(sampled, size, classifier) if sampled else 0.0
    explained = count * check.copies * (once * (1 + check.draws * stages) + again)
    return round(explained + COMPARING * comparisons(check, count, stages))


def comparisons(check: Check, count: int, stages: int) -> int:
    """How many pairs of maps a test compares, each under one measure.

    Args:
        check: What is asked.
        count: Images.
        stages: Nets of a draw.
    """
    return count * len(check.rows) * len(check.measures) * (1 + check.draws * stages)


def _sampled(rows: Mapping[str, Settings | None]) -> dict[str, Settings | None]:
    """The methods of which another seed makes another map."""
    return {method: given for method, given in rows.items() if registry.get(method).card.stochastic}


class _Counter:
    """Adds up the progress of many calls."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.before, self.now = 0.0, 0

    def __call__(self, done: int, total: int) -> None:
        """Progress of the call that runs."""
        self.now = done
        self.progress(min(round(self.before) + done, self.total), self.total)

    def next(self) -> None:
        """The call is over."""
        self.before += self.now
        self.now = 0

    def compared(self, pairs: int) -> None:
        """So many pairs of maps were compared."""
        self.before += COMPARING * pairs
        self(0, 0)


class _Trained:
    """The trained net's maps of some images, to compare others with."""

    def __init__(
        self,
        classifier: Classifier,
        x: Tensor,
        check: Check,
        measures: Sequence[Measure],
        digests: Sequence[str],
        batch_size: int | None,
        counter: _Counter,
    ) -> None:
        self.x, self.check, self.digests = x, check, digests
        self.batch_size, self.counter = batch_size, counter
        self.valid = _seen(classifier, x) if check.skips_baseline else None
        self.classifier = classifier
        self.same: dict[str, Tensor] = {}
        """`(Q, N)` similarities of maps with themselves, as far as they were asked for."""
        self.native: dict[str, Tensor] = {}
        """The first image's maps at native resolution, of the net that was explained last."""
        # The random map is drawn anew for every net.
        asked = {name: given for name, given in check.rows.items() if name != "random"}
        found, self.logits = self._explain(classifier, asked, check.seed, PredictedTarget())
        # Other controls ask no net: their maps are those of every net. One is asked for where there is nothing else,
        # for the net's logits.
        seeing = {name: given for name, given in asked.items() if registry.get(name).card.family != "controls"}
        self.asked = seeing or {"edge": None}
        self.blind = {name: found[name] for name in asked if name not in seeing}
        found["random"] = self._noise(check.seed)
        self.maps = {name: found[name] for name in check.rows}
        self.compared = {
            name: [measure.with_first(own, valid=self.valid) for measure in measures] for name, own in self.maps.items()
        }
        self.classes = self.logits.argmax(dim=1)
        self.target: Target = ClassTarget(self.classes) if check.target == "original" else PredictedTarget()

    def _explain(
        self, net: Classifier, methods: Mapping[str, Settings | None], seed: int, target: Target
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Raw maps of a net at the input's resolution, by method, and its logits."""
        found, logits = self._once(net, self.x, methods, seed, target, self.digests)
        if self.check.copies > 1:
            # The noise may change the prediction; the question stays the same.
            classes = target.resolve(logits).classes
            for noisy, digests, repeats in self._noisy():
                fixed = ClassTarget(classes.repeat_interleave(repeats))
                some, _ = self._once(net, noisy, methods, seed, fixed, digests)
                for name, maps in some.items():
                    found[name] = found[name] + maps.view(len(self.x), repeats, *maps.shape[1:]).sum(dim=1)
            found = {name: maps / self.check.copies for name, maps in found.items()}
        return {name: self._laid(name, maps) for name, maps in found.items()}, logits

    def _once(
        self,
        net: Classifier,
        x: Tensor,
        methods: Mapping[str, Settings | None],
        seed: int,
        target: Target,
        digests: Sequence[str],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Raw maps of a net by method, and its logits."""
        found = explain_set(
            net, x, methods=methods, target=target, digests=digests, seed=seed, batch_size=self.batch_size,
            progress=self.counter,
        )  # fmt: skip
        self.counter.next()
        # All methods saw the same net: whichever came by its logits.
        return {name: explained.maps for name, explained in found.items()}, next(iter(found.values())).logits

    def _noisy(self) -> Iterator[tuple[Tensor, list[str], int]]:
        """Copies of the images with noise, some at a time: each image's copies in turn, their digests, how many."""
        spread = self.x.amax(dim=(1, 2, 3)) - self.x.amin(dim=(1, 2, 3))
        deviation = (self.check.noise * spread).view(-1, 1, 1, 1, 1)
        at_once = max(1, AT_ONCE // len(self.x))
        for start in range(1, self.check.copies, at_once):
            numbers = range(start, min(start + at_once, self.check.copies))
            # The same noise for every net, so that only the weights differ.
            digests = [f"{digest}|copy {number}" for digest in self.digests for number in numbers]
            streams = generators(self.check.seed, digests, "smooth", self.x.device)
            shape = self.x.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=stream, device=self.x.device) for stream in streams])
            noisy = self.x.unsqueeze(1) + deviation * noise.view(len(self.x), len(numbers), *shape)
            yield noisy.flatten(0, 1), digests, len(numbers)

    def _noise(self, seed: int) -> Tensor:
        """The random map at the input's resolution, as the engine would draw it."""
        method = registry.get("random")
        streams = generators(seed, self.digests, method.card.id, self.x.device)
        drawn = method.explain(self.classifier, self.x, PredictedTarget(), generators=streams, work=Work())
        return self._laid("random", drawn.maps)

    def _laid(self, method: str, raw: Tensor) -> Tensor:
        self.native[method] = raw[0]
        return _at_input(raw, (int(self.x.shape[2]), int(self.x.shape[3])))

    def itself(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Similarity of each map with itself under another seed, entropies, and classes."""
        seed = seed_of(self.check.seed, "", "again")
        other = {**self.maps, "random": self._noise(seed)}
        sampled = _sampled(self.asked)
        if sampled:
            other |= self._explain(self.classifier, sampled, seed, self.target)[0]
        entropies = np.stack([entropy(found).cpu().numpy() for found in self.maps.values()])
        return self._scores(other), entropies, self.classes.cpu().numpy()

    def compare(
        self, net: Classifier, target: Target | None, name: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], Tensor]:
        """Similarities, entropies, spread of the logits, agreement and logits of another net."""
        # The same random numbers as for the trained net, so that only the weights differ; but for the random map.
        found, logits = self._explain(net, self.asked, self.check.seed, target or self.target)
        found |= self.blind
        found["random"] = self._noise(seed_of(self.check.seed, name, "random map"))
        spread = logits.std(dim=1) / self.logits.std(dim=1)
        agrees = (logits.argmax(dim=1) == self.classes).float()
        entropies = np.stack([entropy(found[method]).cpu().numpy() for method in self.maps])
        return self._scores(found), entropies, spread.cpu().numpy(), agrees.cpu().numpy(), logits

    def explained(self, logits: Tensor, target: Target | None) -> int:
        """The class that the first image's maps explain.

        Args:
            logits: `(N, K)` of the net at hand.
            target: Where the intervention decides.
        """
        return int((target or self.target).resolve(logits).classes[0])

    def _scores(self, others: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """`(M, Q, N)`."""
        rows = []
        for name, compare in self.compared.items():
            other = others[name]
            if other is self.maps[name] and name in self.same:
                rows.append(self.same[name])
                self.counter.compared(len(compare) * len(other))
                continue
            columns = []
            for similarity in compare:
                columns.append(similarity(other))
                self.counter.compared(len(other))
            rows.append(torch.stack(columns))
            if other is self.maps[name]:
                self.same[name] = rows[-1]
        found: NDArray[np.float32] = torch.stack(rows).cpu().numpy()
        return found


def _at_input(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Raw maps resized to the input, channel by channel: `(N, C, H, W)`."""
    channels = raw if raw.ndim == 4 else raw.unsqueeze(1)
    flat = map_kinds.resize(channels.flatten(0, 1), size)
    return flat.view(*channels.shape[:2], *size)


def _seen(classifier: Classifier, x: Tensor) -> Tensor:
    """`(N, H, W)` bool: pixels that differ from black and from the mean colour, where baselines would be."""
    black = classifier.preprocessing.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=x.device))
    return (x != black).any(dim=1) & (x != 0).any(dim=1)
