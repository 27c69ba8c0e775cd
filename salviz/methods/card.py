"""The registry of saliency methods: a method is a batch function with a card."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import Module

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import known_layer
from salviz.errors import MethodError

Family = Literal[
    "gradients",
    "paths",
    "class activation maps",
    "perturbation",
    "optimised masks",
    "relevance",
    "attention",
    "controls",
]
FAMILIES: tuple[Family, ...] = get_args(Family)
"""In the order in which they are listed."""
Value = float | int | str | bool


@dataclass(frozen=True)
class Parameter:
    """One setting of a method.

    Attributes:
        name: Keyword of the method's function.
        default: The paper's value; where it is another, `meaning` says why.
        meaning: One sentence for people, with the unit.
        low: Smallest allowed number.
        high: Largest allowed number.
        choices: Allowed values where the parameter is not a number.
        step: Step of a slider.
        unset: What a default means that is no value of its own, such as an empty name or a zero for all, in words.
    """

    name: str
    default: Value
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    step: float | None = None
    unset: str = ""

    def check(self, value: Any) -> Value:
        """The value in the default's type; of a number or a switch its text will do.

        Raises:
            MethodError: Wrong type, outside the range or not among the choices.
        """
        if self.choices:
            if value not in self.choices:
                raise MethodError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}.")
            return str(value)
        if isinstance(self.default, str):
            return str(value)
        if isinstance(self.default, bool):
            known = {"true": True, "false": False}
            found = known.get(value.lower()) if isinstance(value, str) else value
            if not isinstance(found, bool):
                raise MethodError(f"{self.name} must be true or false, not {value!r}.")
            return found
        kind = int if isinstance(self.default, int) else float
        try:
            # Adding zero turns -0.0 into 0.0, so that both have one digest.
            number = kind(value) + 0
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or number != number or (isinstance(value, float) and number != value):
            raise MethodError(f"{self.name} must be {'a whole' if kind is int else 'a'} number, not {value!r}.")
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            raise MethodError(f"{self.name} must lie between {self.low:g} and {self.high:g}, not {value}.")
        return number


@dataclass(frozen=True)
class Attribution:
    """What a method returns.

    Attributes:
        maps: `(N, H, W)` or `(N, C, H, W)` float32, raw: no normalisation, no clipping, signs kept; at the
            method's native resolution.
        logits: `(N, K)` of the plain images, where the method came by them on its way.
        completeness: `(N,)` sum of the map minus the change of score it should add up to, for methods that
            promise completeness.
        standard_error: `(N,)` for sampling methods: see `sampling.Estimate.error`.
        samples: `(N,)` samples behind it, where a tolerance may have stopped it.
        passes: Image passes an image took for all its classes, where the card cannot know; None where it does.
    """

    maps: Tensor
    logits: Tensor | None = None
    completeness: Tensor | None = None
    standard_error: Tensor | None = None
    samples: Tensor | None = None
    passes: float | None = None


Explain = Callable[..., Attribution]
"""Every method: `(classifier, x, target, *, generators, work, **parameters) -> Attribution`.

Arguments are a `Classifier` whose lock is held, `(N, 3, H, W)` float32 images in model space, a `Target` with
one entry an image, one `torch.Generator` an image, the `Work` to report to, and the parameters by name. Where an image
is explained for several classes it comes once for each of them, side by side (see `Work.images`).
"""

Evidence = Literal["magnitude", "positive", "as_is"]
Scaling = Literal["minmax", "percentile"]


def _always(classifier: Classifier) -> str | None:
    return None


def _alone(parameters: Mapping[str, Any]) -> Mapping[Hashable, float]:
    return {}


def two_passes(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    """A forward and a backward."""
    return 2.0


def one_pass(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    """A forward."""
    return 1.0


HEAD = "head"
"""What methods share, with the layer's name, that need a layer's activation and the score's gradient at it: the images'
pass, which is the same for all classes."""


def no_pass(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    """The model is not asked, or the prediction says all."""
    return 0.0


def is_of_images(name: Hashable) -> bool:
    """Whether what methods share under a name is the same for all classes of an image."""
    return isinstance(name, tuple) and name[0] == HEAD


def _nothing(classifier: Classifier, parameters: Mapping[str, Any]) -> float:
    return 0.0


@dataclass(frozen=True)
class MethodCard:
    """What people and programs need to know of a method before running it.

    Attributes:
        id: Public, stable id.
        title: Name for people.
        family: Kinship; gives the method its hue.
        idea: Three plain sentences.
        formula: LaTeX.
        citation: Source.
        evidence: How the unsigned map comes from the raw one: `magnitude` (sum of absolute channels),
            `positive` (ReLU of the channel sum) or `as_is`.
        scaling: How COSE's released code scales this kind of map before comparing: `minmax`, or
            `percentile` (minimum to 99th percentile, clipped).
        signed: Whether the raw map's sign means for and against.
        passes: Image passes for (parameters, input height and width), besides the prediction of the image itself:
            forwards and backwards both count one. Where 0 `channels` stand for all, as many as nets usually have.
        differentiates: Whether most of these are halves of a forward and backward through the whole net. Others are
            forwards alone, maybe with a gradient of the head, and can be several times as fast.
        more: What an image costs on top with (classifier, parameters), in passes, where that depends on the net: an
            estimate, which does not wait for the classifier's lock.
        parameters: Settings with the paper's defaults.
        explains_predicted: Whether the method finds the predicted class in its own first pass, so that the
            engine need not run one before it.
        failures: Known failures, one sentence.
        refusal: Why it cannot explain a classifier, or None; asked before anything runs.
        needs: What it needs of a classifier, in a few words; empty where it explains any.
        has_target: Whether the map depends on the class that is explained.
        stochastic: Whether it draws samples; it then reports a standard error and how many it drew, and its settings
            `samples` and `tolerance` bound that number.
        stream: Purpose its random numbers are seeded with; its id where empty. Methods with one stream draw the same.
        completeness: What its completeness error is measured between, as the end of a sentence; empty where it promises
            none. `{error}` stands for how much more or less, `{score}` for what is explained, and `{linear}` for that
            score's linear part in the logits: itself, unless it is a probability.
        shares: Those of its `passes` that it has in common with others of a set, for its parameters: how many by their
            name.
        leads: Whether it comes before others that take as many passes: they can go on from its, it cannot from theirs.
        all_classes: Whether one pass of a view gives the scores of all classes that an image is explained for: its
            passes are then as many for several classes as for one, and never show a row of each at once.
    """

    id: str
    title: str
    family: Family
    idea: str
    formula: str
    citation: str
    evidence: Evidence
    scaling: Scaling
    signed: bool
    passes: Callable[[Mapping[str, Any], tuple[int, int]], float]
    differentiates: bool = True
    more: Callable[[Classifier, Mapping[str, Any]], float] = _nothing
    parameters: tuple[Parameter, ...] = ()
    explains_predicted: bool = False
    failures: str = ""
    refusal: Callable[[Classifier], str | None] = _always
    needs: str = ""
    has_target: bool = True
    stochastic: bool = False
    stream: str = ""
    completeness: str = ""
    shares: Callable[[Mapping[str, Any]], Mapping[Hashable, float]] = _alone
    leads: bool = False
    all_classes: bool = False

    def cost(self, classifier: Classifier, parameters: Mapping[str, Any], classes: int = 1) -> float:
        """Passes that an image costs on a classifier, for an estimate of its time.

        Args:
            classifier: What is to be explained; not locked.
            parameters: All of them.
            classes: How many classes of it are explained.
        """
        size = classifier.preprocessing.input_size
        passes = self.passes(self.settled(classifier, parameters), size) + self.more(classifier, parameters)
        return self.for_classes(parameters, passes, classes)

    def for_classes(self, parameters: Mapping[str, Any], passes: float, classes: int) -> float:
        """What an image costs that is explained for several classes.

        Args:
            parameters: All of them.
            passes: That it costs for one.
            classes: How many.
        """
        if self.all_classes:
            return passes
        common = self.common(parameters)
        return common + (passes - common) * classes

    def common(self, parameters: Mapping[str, Any]) -> float:
        """Those of its shared passes that are the same for all classes of an image."""
        return sum(passes for name, passes in self.shares(parameters).items() if is_of_images(name))

    def settled(self, classifier: Classifier, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters with as many `channels` as the classifier's layer really runs, where the method has these.

        Args:
            classifier: What is to be explained; not waited for where somebody else has its lock.
            parameters: All of them.
        """
        layer = known_layer(classifier, parameters.get("layer") or None) if "channels" in parameters else None
        if layer is None:
            return parameters
        return {**parameters, "channels": layer.run(int(parameters["channels"]))}

    @property
    def requirement(self) -> str:
        """What it needs of a classifier, in a few words, for methods that explain any too."""
        return self.needs or "any classifier"

    @property
    def sign(self) -> str:
        """`signed` or `unsigned`: see `signed`."""
        return "signed" if self.signed else "unsigned"

    def check_parameters(self, given: Mapping[str, Any] | None) -> dict[str, Value]:
        """All parameters: defaults overlaid with `given`, checked.

        Raises:
            MethodError: An unknown name or a value out of its range.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        unknown = sorted(set(given or {}) - set(known))
        if unknown:
            settings = f"Its settings are {', '.join(known)}." if known else "It has no settings."
            raise MethodError(f"{self.title} has no setting {unknown[0]!r}. {settings}")
        return {name: p.check((given or {}).get(name, p.default)) for name, p in known.items()}


@dataclass(frozen=True, eq=False)
class Method:
    """A registered method: its card and its function."""

    card: MethodCard
    explain: Explain
    _refusals: WeakKeyDictionary[Module, str | None] = field(default_factory=WeakKeyDictionary, repr=False)

    def refusal(self, classifier: Classifier) -> str | None:
        """Why the method cannot explain this classifier, or None; the model is probed once and remembered."""
        with classifier.lock:
            if classifier.module not in self._refusals:
                self._refusals[classifier.module] = self.card.refusal(classifier)
            return self._refusals[classifier.module]


METHODS: dict[str, Method] = {}


def register(card: MethodCard) -> Callable[[Explain], Explain]:
    """Decorator that puts a method and its card into the registry."""

    def put(function: Explain) -> Explain:
        if card.id in METHODS:
            raise ValueError(f"method {card.id!r} is registered twice")
        METHODS[card.id] = Method(card, function)
        return function

    return put


def get(method_id: str) -> Method:
    """The method of an id.

    Raises:
        MethodError: No such method.
    """
    if method_id not in METHODS:
        raise MethodError(f"There is no method {method_id!r}. Known methods: {', '.join(METHODS)}.")
    return METHODS[method_id]
