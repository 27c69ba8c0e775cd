"""Randomised nets: what is random, what stays, where the numbers come from."""

import math
from dataclasses import replace

import pytest
import torch

from salviz.classifiers.choices import INITIALISATIONS
from salviz.classifiers.digests import weights_digest
from salviz.classifiers.loading import untrained
from salviz.classifiers.randomising import Randomisation, randomised
from salviz.classifiers.stages import find_stages
from salviz.errors import ClassifierError
from tests.models import images, timm_model

NETS = ["test_resnet", "test_vit", "test_convnext"]


def rebuildable(name: str):
    import timm

    original = timm_model(name)
    return replace(original, rebuild=lambda: timm.create_model(name, pretrained=False))


def parameters(classifier) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in classifier.module.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent", "full"])
@pytest.mark.parametrize("name", [NETS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NETS[1:])])
def test_orders(name: str, order: str) -> None:
    classifier = rebuildable(name)
    before, digest = parameters(classifier), weights_digest(classifier.module)
    stages = find_stages(classifier)
    wanted = {
        "top_down": [stages[: place + 1] for place in range(len(stages))],
        "bottom_up": [stages[len(stages) - place - 1 :] for place in range(len(stages))],
        "independent": [(stage,) for stage in stages],
        "full": [stages],
    }[order]
    how = Randomisation(order, "moments")
    nets = list(randomised(classifier, how))
    assert len(nets) == len(wanted) == len(how.plan(stages))
    digests: list[str] = [digest]
    seen: list[set[str]] = []
    for net, part in zip(nets, wanted, strict=True):
        # A tensor of equal values has no deviation: its moments give it back, up to rounding.
        random = {m for stage in part for m in stage.parameters if before[m].std(correction=0) > 1e-6}
        flat = {m for m in before if before[m].std(correction=0) <= 1e-6}
        assert changed(before, parameters(net)) - flat == random
        if random and random not in seen:
            # A norm's ones and zeros stay what they are under these moments: the net is the one before.
            digests.append(net.digest)
            seen.append(random)
        assert not any(p.requires_grad for p in net.module.parameters())
        assert not net.module.training
    assert len(set(digests)) == len(digests) > 1
    assert weights_digest(classifier.module) == digest


@pytest.mark.slow
def test_what_a_tensor_draws_depends_on_nothing_but_seed_and_name() -> None:
    classifier = rebuildable("test_vit")
    for initialisation in INITIALISATIONS:
        full = parameters(next(randomised(classifier, Randomisation("full", initialisation, seed=3))))
        *_, last = randomised(classifier, Randomisation("top_down", initialisation, seed=3))
        assert not changed(full, parameters(last))
        *_, last = randomised(classifier, Randomisation("bottom_up", initialisation, seed=3))
        assert not changed(full, parameters(last))
        other = parameters(next(randomised(classifier, Randomisation("full", initialisation, seed=4))))
        assert "blocks.0.attn.qkv.weight" in changed(full, other)


def test_equal_layers_draw_differently() -> None:
    """Quantus seeds every layer alike, so that layers of one shape get the same weights."""
    for initialisation in INITIALISATIONS:
        net = next(randomised(rebuildable("test_vit"), Randomisation("full", initialisation)))
        found = parameters(net)
        assert not torch.equal(found["blocks.0.attn.qkv.weight"], found["blocks.1.attn.qkv.weight"])


def test_initialisations() -> None:
    classifier = rebuildable("test_resnet")
    trained = parameters(classifier)
    found = {
        how: parameters(next(randomised(classifier, Randomisation("full", how, seed=1)))) for how in INITIALISATIONS
    }
    name = max(trained, key=lambda key: trained[key].numel())
    weight = trained[name]
    torch.testing.assert_close(found["permute"][name].flatten().sort().values, weight.flatten().sort().values)
    assert not torch.equal(found["permute"][name], weight)
    moments = found["moments"][name]
    error = 5 * float(weight.std()) / math.sqrt(weight.numel())
    assert abs(float(moments.mean() - weight.mean())) < error
    assert abs(float(moments.std() - weight.std())) < error
    cut = found["truncated_normal"][name]
    deviation = math.sqrt(2.6 / weight[0].numel())
    assert float(cut.abs().max()) <= 2 * deviation
    # A normal cut at two deviations has .8796 of its deviation.
    assert float(cut.std()) == pytest.approx(0.8796 * deviation, rel=0.02)
    norms = [key for key in trained if key.endswith("bn1.weight")]
    assert norms
    for key in norms:
        assert (found["truncated_normal"][key] == 1).all()
        assert (found["module"][key] == 1).all()
    bound = 1 / math.sqrt(weight[0].numel())
    assert 0.98 * bound < float(found["module"][name].abs().max()) <= bound
    fresh = untrained(classifier, seed=5)
    assert found["architecture"].keys() == parameters(fresh).keys()
    assert float(found["architecture"][name].std()) == pytest.approx(float(parameters(fresh)[name].std()), rel=0.05)


def test_the_architectures_own_start_covers_tokens_and_tables() -> None:
    classifier = rebuildable("test_vit")
    found = parameters(next(randomised(classifier, Randomisation("full", "architecture"))))
    assert changed(parameters(classifier), found) >= {
        "cls_token",
        "pos_embed",
        "head.weight",
        "patch_embed.proj.weight",
    }


def test_statistics_of_batch_norms() -> None:
    classifier, x = rebuildable("test_resnet"), images(6, 160)
    stages = find_stages(classifier)
    how = {s: Randomisation("bottom_up", "permute", s) for s in ("reset", "keep", "estimate")}
    first = {s: next(randomised(classifier, how[s], images=x)) for s in how}
    stem, own, later = "conv1.0", "conv1.1", "layer4.0.bn1"
    norm = {s: dict(net.module.named_modules())[own] for s, net in first.items()}
    assert stages[-1].name == stem
    assert f"{own}.weight" in stages[-1].parameters
    trained = dict(classifier.module.named_modules())
    assert torch.equal(norm["keep"].running_mean, trained[own].running_mean)
    assert (norm["reset"].running_mean == 0).all()
    assert (norm["reset"].running_var == 1).all()
    out = dict(first["estimate"].module.named_modules())[stem](x)
    torch.testing.assert_close(norm["estimate"].running_mean, out.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm["estimate"].running_var, out.var(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    for net in first.values():
        # What is not random yet keeps what it learnt, and nothing stays in training mode.
        assert torch.equal(dict(net.module.named_modules())[later].running_mean, trained[later].running_mean)
        assert not any(part.training for part in net.module.modules())
    with pytest.raises(ClassifierError, match="give some"):
        next(randomised(classifier, how["estimate"]))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ClassifierError, match="top_down, bottom_up"):
        Randomisation("sideways")
