"""Relevance propagation against textbook formulas in float64, zennit, captum, and conservation."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from salviz import engine
from salviz.errors import MethodError
from salviz.methods.relevance import lrp
from salviz.targets import ClassTarget
from tests.models import LinearNet, classifier_of, images, timm_model

COMPOSITES = ["epsilon_plus_flat", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat", "epsilon", "gamma"]


def explain(classifier, x, classes=(1, 3), output="logit", against=None, **parameters):
    return engine.explain(
        classifier, x, method="lrp", parameters=parameters, digests=[str(i) for i in range(len(x))],
        target=ClassTarget(torch.as_tensor(classes)[: len(x)], output, against),
    )  # fmt: skip


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected.float(), rtol=tolerance, atol=tolerance * scale)


def test_linear_model_in_closed_form() -> None:
    net = LinearNet(12)
    classifier, x = classifier_of(net, size=12, classes=4), images(2, 12)
    weight = net.weight.view(4, 3, 12, 12)
    found = explain(classifier, x, composite="epsilon", epsilon=0.0)
    torch.testing.assert_close(found.maps, weight[[1, 3]] * x)
    torch.testing.assert_close(found.completeness, -net.bias[[1, 3]], atol=1e-4, rtol=1e-4)
    contrast = explain(classifier, x, against=torch.tensor([0, 2]), composite="epsilon", epsilon=0.0)
    torch.testing.assert_close(contrast.maps, (weight[[1, 3]] - weight[[0, 2]]) * x)


# A textbook implementation: relevance as such, every layer as a dense matrix, every share written out.


def dense(layer, shape):
    """`(inputs, outputs)` matrix and `(outputs,)` bias of an affine layer."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    bias = layer(zero).flatten()
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return layer(units).flatten(1) - bias, bias


def contributions(rule, x, matrix, bias, low, high):
    """Each rule's `(inputs, outputs)` contributions and the whole that they are shares of; a list of such pairs."""
    z = x[:, None] * matrix
    total = z.sum(0) + bias
    if rule == "zero":
        return [(1.0, z, total)]
    if rule == "plus":
        return [(1.0, z.clamp(min=0), z.clamp(min=0).sum(0) + bias.clamp(min=0))]
    if rule == "alpha2beta1":
        minus = (-1.0, z.clamp(max=0), z.clamp(max=0).sum(0) + bias.clamp(max=0))
        return [(2.0, z.clamp(min=0), z.clamp(min=0).sum(0) + bias.clamp(min=0)), minus]
    if rule in ("gamma_conv", "gamma_linear"):
        extra = 0.25 if rule == "gamma_conv" else 0.05
        counted = z + extra * torch.where((z > 0) == (total > 0), z, 0.0)
        held = bias + extra * torch.where((bias > 0) == (total > 0), bias, 0.0)
        return [(1.0, counted, counted.sum(0) + held)]
    if rule == "flat":
        sees = (matrix != 0).double()
        return [(1.0, sees, sees.sum(0))]
    assert rule == "box"
    inside = z - low[:, None] * matrix.clamp(min=0) - high[:, None] * matrix.clamp(max=0)
    return [(1.0, inside, inside.sum(0))]


def hand_back_one(rule, x, layer, relevance, low=None, high=None, *, keeps):
    matrix, bias = dense(layer, x.shape)
    if not keeps and rule in ("plus", "alpha2beta1"):
        bias = torch.zeros_like(bias)
    arrived = torch.zeros(x.numel(), dtype=torch.float64)
    for weight, part, whole in contributions(rule, x.flatten(), matrix, bias, low, high):
        if rule != "zero":
            whole = whole + torch.where(whole < 0, -1e-9, 1e-9)  # every implementation's guard, and ours
        share = torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))
        arrived += weight * (share * relevance.flatten()).sum(1)
    return arrived.view(x.shape)


class Branched(nn.Module):
    """Convolutions that read values of both signs and of one, a skip connection, both pools, a wide head."""

    def __init__(self, form: str = "module") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one = nn.Conv2d(3, 4, 3, padding=1)
            self.two = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.three = nn.Conv2d(4, 4, 1)
            self.hidden = nn.Linear(36, 8)
            self.head = nn.Linear(8, 5)
        self.form = form

    def act(self, x):
        if self.form == "in place":
            return x.relu_()
        if self.form == "function":
            return F.relu(x)
        return nn.ReLU(inplace=self.form == "in place module")(x)

    def forward(self, x):
        a = self.act(self.one(x))
        b = self.three(self.two(a))
        if self.form.startswith("in place"):
            b += a
        else:
            b = a + b
        c = F.avg_pool2d(F.max_pool2d(self.act(b), 2), 2)
        return self.head(self.act(self.hidden(c.flatten(1))))


RULES = {
    "epsilon_plus_flat": ("plus", "zero", "flat"),
    "epsilon_plus": ("plus", "zero", "plus"),
    "epsilon_gamma_box": ("gamma_conv", "zero", "box"),
    "epsilon_alpha2_beta1_flat": ("alpha2beta1", "zero", "flat"),
    "epsilon": ("zero", "zero", "zero"),
    "gamma": ("gamma_conv", "gamma_linear", "gamma_conv"),
}


def textbook(net, x, c, composite, low, high, keeps):
    def hand_back(rule, *layer):
        return hand_back_one(rule, *layer, keeps=keeps)

    conv, linear, first = RULES[composite]
    one = net.one(x[None])[0]
    a = F.relu(one)
    mid = net.two(a[None])[0]
    b = net.three(mid[None])[0]
    joined = a + b
    pooled, winners = F.max_pool2d(F.relu(joined)[None], 2, return_indices=True)
    mean = F.avg_pool2d(pooled, 2)[0]
    hidden = net.hidden(mean.flatten())
    logits = net.head(F.relu(hidden))
    relevance = torch.zeros(5, dtype=torch.float64)
    relevance[c] = logits[c]
    relevance = hand_back(linear, F.relu(hidden), net.head, relevance)
    relevance = hand_back(linear, mean.flatten(), net.hidden, relevance).view(mean.shape)
    relevance = hand_back("zero", pooled[0], lambda v: F.avg_pool2d(v, 2), relevance)
    relevance = F.max_unpool2d(relevance[None], winners, 2)[0]
    share = torch.where(joined == 0, 0.0, relevance / torch.where(joined == 0, 1.0, joined))
    to_a, to_b = a * share, b * share
    to_mid = hand_back(conv, mid, net.three, to_b)
    to_a = to_a + hand_back(conv, a, net.two, to_mid)
    return hand_back(first, x, net.one, to_a, low, high)


@pytest.mark.parametrize(
    ("composite", "keeps"),
    [(c, keeps) for c in COMPOSITES for keeps in (True, False) if keeps or "plus" in c or "alpha2" in c],
)
def test_maps_equal_the_textbooks(composite: str, keeps: bool) -> None:
    classifier = classifier_of(Branched().double(), size=12, classes=5)
    x, classes = images(2, 12).double(), [1, 3]
    rules = lrp._COMPOSITES[composite](lrp._Settings(bias_share=keeps))
    maps, start, _, _ = lrp.propagate(classifier, x, ClassTarget(torch.tensor(classes)), rules)
    low, high = (
        classifier.preprocessing.normalise(torch.full((1, 3, 12, 12), value, dtype=torch.uint8)).double().flatten()
        for value in (0, 255)
    )
    expected = torch.stack([textbook(classifier.module, x[i], classes[i], composite, low, high, keeps) for i in (0, 1)])
    close(maps.float(), expected, 1e-6)
    torch.testing.assert_close(start, classifier.module(x)[[0, 1], classes])
    # In float32 rounding is all that differs; differences of the parts for and against magnify it.
    rounded = explain(
        classifier_of(Branched(), size=12, classes=5),
        x.float(),
        classes,
        composite=composite,
        epsilon=0.0,
        bias_share=keeps,
    )
    close(rounded.maps, expected, 1e-2 if "alpha2" in composite else 1e-4)
    score = classifier.module(x)[[0, 1], classes].float()
    torch.testing.assert_close(rounded.completeness, rounded.maps.sum(dim=(1, 2, 3)) - score, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("form", ["function", "in place", "in place module"])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_the_form_of_a_call_does_not_matter(form: str, composite: str) -> None:
    x = images(2, 12)
    plain, other = (classifier_of(Branched(kind), size=12, classes=5) for kind in ("module", form))
    torch.testing.assert_close(explain(other, x, composite=composite).maps, explain(plain, x, composite=composite).maps)


class Tapped(nn.Module):
    """A value that is read before or after a rectifier overwrites it, and a net in which none does."""

    def __init__(self, read: str, *, is_inplace: bool) -> None:
        super().__init__()
        self.read, self.is_inplace = read, is_inplace
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.head = nn.Linear(4, 5)

    def forward(self, x):
        z = self.second(F.relu6(self.first(x)))
        before = z * 1.0 if self.read == "before" else 0.0
        after = F.hardtanh(z, 0.0, 0.1, inplace=self.is_inplace)
        if not self.is_inplace:
            z = after
        return self.head((after + before + (z * 2.0 if self.read == "after" else 0.0)).mean((2, 3)))


@pytest.mark.parametrize("read", ["before", "after", "never"])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_whoever_reads_an_overwritten_value_gets_its_relevance(composite: str, read: str) -> None:
    x = images(2, 12)
    nets = [classifier_of(Tapped(read, is_inplace=form), size=12, classes=5) for form in (True, False)]
    found, expected = (explain(net, x, composite=composite) for net in nets)
    assert expected.maps.abs().max() > 0
    close(found.maps, expected.maps, 1e-5)
    torch.testing.assert_close(found.logits, nets[0].predict(x))


class Vgg(nn.Module):
    """Plain layers, each a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3),
            )  # fmt: skip
            self.head = nn.Sequential(nn.Linear(144, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x):
        return self.head(torch.flatten(self.features(x), 1))


def without_biases(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if getattr(part, "bias", None) is not None:
            part.bias = None
    return module


@pytest.mark.parametrize("composite", COMPOSITES)
def test_nothing_is_lost_in_a_relu_net_without_biases(composite: str) -> None:
    # Parts for and against need a neuron that has any, which is sure only where a ReLU follows.
    net = Vgg() if "plus" in composite or "alpha2" in composite else Branched()
    classifier = classifier_of(without_biases(net), size=12, classes=5)
    found = explain(classifier, images(2, 12), composite=composite, epsilon=0.0)
    score = found.logits[[0, 1], [1, 3]]
    assert (found.completeness.abs() <= 1e-4 * score.abs()).all()


@pytest.mark.parametrize("name", ["test_convnext", "test_convnext2", "test_nfnet", "test_mambaout"])
def test_nothing_is_lost_in_norms_gates_and_smooth_activations(name: str) -> None:
    """Layer norm, response norm, gated blocks, SiLU and GELU: timm initialises the biases of these nets with zeros."""
    found = explain(timm_model(name), images(2, 160), composite="gamma")
    score = found.logits[[0, 1], [1, 3]]
    assert (found.completeness.abs() <= 2e-3 * score.abs().clamp(min=1)).all()


def test_a_probability_hands_its_derivatives_share_to_the_logits() -> None:
    classifier, x = classifier_of(without_biases(Branched()), size=12, classes=5), images(2, 12)
    found = explain(classifier, x, output="probability", composite="epsilon", epsilon=0.0)
    logits = classifier.predict(x)
    p = logits.softmax(1)
    for i, c in enumerate((1, 3)):
        slope = p[i, c] * ((torch.arange(5) == c).float() - p[i])
        expected = (slope * logits[i]).sum()
        torch.testing.assert_close(found.maps[i].sum(), expected, atol=1e-6, rtol=1e-3)
        assert found.completeness[i].abs() <= 1e-6


# zennit


def resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    module = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize("build", [Vgg, resnet])
@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat"])
def test_maps_equal_zennits(build, composite: str) -> None:
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer

    # The VGG's head is for one size only.
    size = (32, 64) if build is resnet else (32, 32)
    with torch.random.fork_rng():
        classifier, module = classifier_of(build(), size=size, classes=10), build().eval()
    x, classes = images(2, size), torch.tensor([1, 3])
    normalise = classifier.preprocessing.normalise
    bounds = [normalise(torch.full((1, 3, *size), value, dtype=torch.uint8)).double() for value in (0, 255)]
    kinds = {
        "epsilon_plus_flat": (composites.EpsilonPlusFlat, {}),
        "epsilon_gamma_box": (composites.EpsilonGammaBox, {"low": bounds[0], "high": bounds[1]}),
        "epsilon_alpha2_beta1_flat": (composites.EpsilonAlpha2Beta1Flat, {}),
    }
    kind, options = kinds[composite]
    canonizers = [ResNetCanonizer()] if build is resnet else []
    # In float64, and with a smaller stabiliser than its default 1e-6, of which sums of small relevance feel the size.
    zennits = kind(canonizers=canonizers, epsilon=1e-12, stabilizer=1e-12, **options)
    with warnings.catch_warnings(), Gradient(model=module.double(), composite=zennits) as attributor:
        warnings.simplefilter("ignore")  # its hooks speak of inputs that need no gradient
        start = module(x.double()).detach() * F.one_hot(classes, 10)
        _, oracle = attributor(x.double(), start)
    found = explain(classifier, x, classes, composite=composite, epsilon=0.0)
    close(found.maps, oracle, 1e-3)
    for one, other in zip(found.maps, oracle, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.float().flatten()]))[0, 1] > 0.99999


def test_the_epsilon_rule_equals_captums() -> None:
    from captum.attr import LRP

    with torch.random.fork_rng():
        classifier, module = classifier_of(Vgg(), size=32, classes=10), Vgg().eval()
    x, classes = images(2, 32), torch.tensor([1, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's hooks
        oracle = LRP(module.double()).attribute(x.double().requires_grad_(), target=classes)
    close(explain(classifier, x, classes, composite="epsilon", epsilon=1e-9).maps, oracle.detach(), 1e-4)


def test_a_large_epsilon_takes_relevance_from_weak_outputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 2, bias=False), nn.Flatten(), nn.Linear(36, 3, bias=False))
    classifier, x = classifier_of(net, size=4, classes=3), images(1, 4)
    z = net[0](x)
    s = net[2](z.flatten(1))[0, 1]
    relevance = z.flatten() * net[2].weight[1] * s / (s + 0.5 * s.sign())
    factor = relevance / (z.flatten() + 0.5 * z.flatten().sign())
    expected = torch.zeros_like(x)
    for place, (k, i, j) in enumerate((k, i, j) for k in range(4) for i in range(3) for j in range(3)):
        expected[0, :, i : i + 2, j : j + 2] += (x[0, :, i : i + 2, j : j + 2] * net[0].weight[k]) * factor[place]
    close(explain(classifier, x, [1], composite="epsilon", epsilon=0.5).maps, expected, 1e-4)


# Transformers


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.blocks = nn.Sequential(Block(8), Block(8))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def ratio(a, b):
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def back_linear(x, layer, relevance):
    """Epsilon rule with epsilon 0 of a linear layer on `(T, C)`."""
    return x * (ratio(relevance, layer(x)) @ layer.weight)


def back_norm(x, norm, relevance):
    """AttnLRP: the scale is a constant, what is left is linear: centring, weight, bias."""
    scale = norm.weight / (x.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    share = ratio(relevance, norm(x)) * scale
    return x * (share - share.mean(dim=-1, keepdim=True))


def back_block(block, x, relevance):
    normed = block.norm1(x)
    q, k, v = block.qkv(normed).chunk(3, dim=-1)
    scores = q @ k.T / math.sqrt(q.shape[-1])
    weights = scores.softmax(dim=-1)
    mixed = weights @ v
    projected = block.proj(mixed)
    middle = x + projected
    inner = block.norm2(middle)
    raised = block.up(inner)
    lowered = block.down(F.gelu(raised))
    # out = middle + lowered
    to_lowered = lowered * ratio(relevance, middle + lowered)
    to_middle = middle * ratio(relevance, middle + lowered)
    to_raised = back_linear(F.gelu(raised), block.down, to_lowered)  # the identity rule of GELU
    to_middle = to_middle + back_norm(middle, block.norm2, back_linear(inner, block.up, to_raised))
    # middle = x + projected
    to_x = x * ratio(to_middle, middle)
    to_mixed = back_linear(mixed, block.proj, projected * ratio(to_middle, middle))
    share = ratio(to_mixed, 2 * mixed)  # eq. 14: both factors of a matrix product get half
    to_weights, to_v = weights * (share @ v.T), v * (weights.T @ share)
    to_scores = scores * (to_weights - weights * to_weights.sum(dim=-1, keepdim=True))  # eq. 13, softmax
    share = ratio(to_scores, 2 * scores) / math.sqrt(q.shape[-1])
    to_q, to_k = q * (share @ k), k * (share.T @ q)
    return to_x + back_norm(x, block.norm1, back_linear(normed, block.qkv, torch.cat([to_q, to_k, to_v], dim=-1)))


def test_transformers_follow_the_rules_of_attnlrp() -> None:
    net = Transformer()
    classifier, x = classifier_of(net, size=16, classes=5), images(1, 16)
    found = explain(classifier, x, [1], composite="epsilon", epsilon=0.0)
    wide = Transformer().double().requires_grad_(False)
    picture = x.double()
    patches = wide.patches(picture)
    tokens = [patches[0].flatten(1).T]
    for block in wide.blocks:
        tokens.append(block(tokens[-1][None])[0])
    normed = wide.norm(tokens[-1])
    mean = normed.mean(dim=0)
    relevance = torch.zeros(5, dtype=torch.float64)
    relevance[1] = wide.head(mean)[1]
    to_mean = back_linear(mean, wide.head, relevance)
    relevance = back_norm(tokens[-1], wide.norm, normed * ratio(to_mean, mean) / len(normed))
    for block, entered in zip(reversed(wide.blocks), reversed(tokens[:-1]), strict=True):
        relevance = back_block(block, entered, relevance)
    share = ratio(relevance, tokens[0]).T.reshape(1, 8, 4, 4)
    expected = picture * F.conv_transpose2d(share, wide.patches.weight, stride=4)
    close(found.maps, expected, 1e-4)


def test_the_standard_composite_knows_a_transformer() -> None:
    x = images(1, 160)
    for name, composite in (("test_vit", "gamma"), ("test_resnet", "epsilon_plus_flat")):
        classifier = timm_model(name)
        standard = explain(classifier, x).maps
        assert torch.equal(standard, explain(classifier, x, composite=composite).maps)


# What has no rule is refused


class Odd(nn.Module):
    """A convolution, then something, then a head."""

    def __init__(self, something, before=lambda x: x) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.mix = nn.Conv2d(4, 4, 1)
        self.something, self.before = something, before

    def forward(self, x):
        return self.head(self.something(self, self.conv(self.before(x))).mean(dim=(2, 3)))


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


REFUSED = [
    (lambda net, h: h.sin(), None, "no rule for sin"),
    (lambda net, h: h.softmax(1).log(), None, "no rule for log"),
    (lambda net, h: 1 / (1 + h.square()), None, "no rule for square"),
    (lambda net, h: 1 / F.relu(h), None, "division by a value that depends"),
    (lambda net, h: torch.einsum("nchw,nchw,nchw->nchw", h, h, h), None, "product of three values"),
    (lambda net, h: torch.addcmul(h, h, h), None, "no rule for addcmul"),
    (lambda net, h: F.conv2d(h, h[:1, :1].mean().expand(4, 4, 1, 1)), None, "no rule for conv2d"),
    (lambda net, h: h + h.sigmoid(), None, "add of a gate"),
    (lambda net, h: net.mix(h.sigmoid()) + h, None, "a gate that goes into another layer"),
    (lambda net, h: Hidden.apply(h).relu(), None, "cannot be seen into"),
    (lambda net, h: h.detach(), None, "nothing that carries relevance"),
    (lambda net, h: h, torch.sin, "sin of the image itself"),
    (lambda net, h: h, lambda x: x * x.mean(), "mean of the image itself"),
]


@pytest.mark.parametrize(("something", "before", "sentence"), REFUSED)
def test_what_has_no_rule_is_refused(something, before, sentence: str) -> None:
    net = Odd(something, before or (lambda x: x))
    with pytest.raises(MethodError, match=sentence):
        explain(classifier_of(net, size=8, classes=5), images(1, 8), [1])


@pytest.mark.parametrize("composite", COMPOSITES)
def test_what_only_looks_positive_is_not_taken_for_it(composite: str) -> None:
    """Rules take a short cut for values that cannot be negative."""
    forms = [
        lambda net, h: net.mix(F.relu(h) - 0.5),
        lambda net, h: net.mix(F.relu(h).add(-0.5)),
        lambda net, h: net.mix(torch.add(F.relu(h), F.relu(h) * 0 + 1, alpha=-0.5)),
        lambda net, h: net.mix(F.pad(F.relu(h), (1, 1, 1, 1), value=-0.5)[:, :, 1:-1, 1:-1] - 0.5),
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = Odd(forms[0])
    expected = explain(classifier_of(first, size=8, classes=5), images(2, 8), composite=composite).maps
    for form in forms[1:]:
        net = Odd(form)
        net.load_state_dict(first.state_dict())
        found = explain(classifier_of(net, size=8, classes=5), images(2, 8), composite=composite).maps
        torch.testing.assert_close(found, expected)


def test_an_image_that_is_first_rescaled_and_padded_is_explained_as_it_comes() -> None:
    """GoogLeNet's way to change the normalisation, and padding outside of the convolution."""

    def rescaled(x):
        parts = [x[:, i].unsqueeze(1) * (0.5 + 0.1 * i) + 0.2 for i in range(3)]
        return torch.cat(parts, dim=1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, inside = Odd(lambda net, h: h), Odd(lambda net, h: h, lambda x: F.pad(rescaled(x), (1, 1, 1, 1)))
    inside.load_state_dict(plain.state_dict())
    plain.conv.padding = (1, 1)
    plain, inside = (classifier_of(net, size=8, classes=5) for net in (plain, inside))
    x = images(2, 8)
    for composite in ("epsilon_plus_flat", "epsilon_plus", "epsilon", "gamma", "epsilon_alpha2_beta1_flat"):
        expected = explain(plain, rescaled(x), composite=composite)
        torch.testing.assert_close(explain(inside, x, composite=composite).maps, expected.maps)
    # The box is the image's own, rescaled with it.
    found = explain(inside, x, composite="epsilon_gamma_box")
    assert (found.completeness.isfinite()).all()
