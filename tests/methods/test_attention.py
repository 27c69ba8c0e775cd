"""Attention methods against naive matrix products in float64, on maps caught by other means."""

import copy
import functools

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from salviz import engine
from salviz.methods.attention import capture
from salviz.methods.attention.rollout import roll_out
from salviz.targets import ClassTarget
from tests.models import classifier_of, images, timm_model

METHODS = ["attention_rollout", "grad_attention_rollout", "transformer_attribution", "legrad"]
SIDE = 160


def explain(classifier, x, method, classes=(3, 7), **parameters):
    return engine.explain(
        classifier, x, method=method, parameters=parameters, digests=[str(i) for i in range(len(x))],
        target=ClassTarget(torch.as_tensor(classes)[: len(x)]),
    ).maps  # fmt: skip


def small_vit(**options):
    """timm's VisionTransformer with strong weights, so that attention is uneven."""
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = VisionTransformer(**settings | options)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    size = module.patch_embed.img_size
    return classifier_of(module, size=size, classes=8, name="small_vit")


@functools.cache
def eager(name: str = "test_vit"):
    module = copy.deepcopy(timm_model(name).module)
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return classifier_of(module, size=SIDE, classes=1000, name="eager")


@pytest.mark.parametrize("method", METHODS)
def test_fused_and_written_out_attention_give_the_same(method: str) -> None:
    x = images(2, SIDE)
    fused = timm_model("test_vit")
    assert fused.module.blocks[0].attn.fused_attn
    assert capture.layout(fused).depth == capture.layout(eager()).depth == len(fused.module.blocks) == 6
    expected = explain(eager(), x, method)
    torch.testing.assert_close(explain(fused, x, method), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def caught(classifier, x, classes):
    """Attention, its gradients and blocks' outputs of an eager net, in float64, by hooks on its modules."""
    module = copy.deepcopy(classifier.module).double()
    maps: list[torch.Tensor] = []

    def catch(part, inputs, output):
        output.requires_grad_(True)
        output.retain_grad()
        maps.append(output)

    for block in module.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(catch)
    logits = module(x.double())
    logits.gather(1, torch.as_tensor(classes)[:, None]).sum().backward()
    return [a.detach() for a in maps], [a.grad for a in maps]


VARIANTS = [
    # options, prefix, grid, tokens the head reads
    ({}, 1, (4, 4), [0]),
    ({"class_token": False, "global_pool": "avg"}, 0, (4, 4), range(16)),
    ({"class_token": False, "global_pool": "map"}, 0, (4, 4), range(16)),
    ({"reg_tokens": 4}, 5, (4, 4), [0]),
    ({"reg_tokens": 4, "class_token": False, "global_pool": "avg"}, 4, (4, 4), range(4, 20)),
    ({"global_pool": "avg"}, 1, (4, 4), range(1, 17)),
    ({"img_size": (24, 40)}, 1, (3, 5), [0]),
    ({"reg_tokens": 2, "no_embed_class": True, "img_size": (40, 16), "qk_norm": True}, 3, (5, 2), [0]),
]


@pytest.mark.parametrize(("options", "prefix", "grid", "read"), VARIANTS)
def test_maps_equal_naive_matrix_products(options: dict, prefix: int, grid: tuple, read) -> None:
    classifier = small_vit(**options)
    x, classes = images(2, classifier.preprocessing.input_size), (3, 7)
    maps, gradients = caught(classifier, x, classes)
    tokens = prefix + grid[0] * grid[1]
    assert maps[0].shape == (2, 2, tokens, tokens)

    def patches(matrix: torch.Tensor) -> torch.Tensor:
        return matrix[:, list(read)].mean(dim=1)[:, prefix:].reshape(2, *grid)

    identity = torch.eye(tokens, dtype=torch.float64).expand(2, -1, -1)
    for fusion, fuse in (("mean", torch.mean), ("max", torch.amax), ("min", torch.amin)):
        rollout = identity
        for a in maps:
            mixed = 0.5 * identity + 0.5 * fuse(a, dim=1)
            rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
        found = explain(classifier, x, "attention_rollout", classes, fusion=fusion)
        torch.testing.assert_close(found, patches(rollout).float(), rtol=1e-4, atol=1e-6)

    weighed, generic = identity, identity
    for a, g in zip(maps, gradients, strict=True):
        mixed = 0.3 * identity + 0.7 * (a * g).mean(dim=1).clamp(min=0)
        weighed = mixed / mixed.sum(dim=-1, keepdim=True) @ weighed
        generic = generic + (a * g).clamp(min=0).mean(dim=1) @ generic
    found = explain(classifier, x, "grad_attention_rollout", classes, residual=0.3)
    torch.testing.assert_close(found, patches(weighed - identity).float(), rtol=1e-3, atol=1e-5)
    found = explain(classifier, x, "transformer_attribution", classes)
    torch.testing.assert_close(found, patches(generic - identity).float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("options", "prefix", "grid", "read"), VARIANTS)
def test_legrad_equals_a_block_by_block_computation(options: dict, prefix: int, grid: tuple, read) -> None:
    """Each block alone: its tokens through the final norm and head, one backward each, as the paper has it."""
    classifier = small_vit(**options)
    x, classes = images(2, classifier.preprocessing.input_size), torch.tensor([3, 7])
    module = copy.deepcopy(classifier.module).double()
    found = []

    def catch(part, inputs, output):
        found.append(output.requires_grad_(True))

    for block in module.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(catch)
    tokens = module.norm_pre(module._pos_embed(module.patch_embed(x.double())))
    layers = []
    for block in module.blocks:
        tokens = block(tokens.detach())
        logits = module.forward_head(module.norm(tokens))
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), found[-1])
        rows = gradient.clamp(min=0).mean(dim=1)[:, list(read)].mean(dim=1)
        layers.append(rows[:, prefix:].reshape(2, *grid))
    expected = torch.stack(layers)
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        explain(classifier, x, "legrad", classes), expected.mean(dim=0).float(), rtol=1e-3, atol=1e-5 * scale
    )
    torch.testing.assert_close(
        explain(classifier, x, "legrad", classes, blocks=2), expected[1:].mean(dim=0).float(), rtol=1e-3,
        atol=1e-5 * scale,
    )  # fmt: skip


def test_discarding_drops_the_weakest_attentions_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.rand(2, 5, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    rollout = torch.eye(5, dtype=torch.float64).expand(2, -1, -1)
    for block in blocks:
        kept = block.clone()
        for image in kept:
            for place in image.flatten().argsort()[:10].tolist():
                image.view(-1)[place] = 0
        mixed = 0.5 * torch.eye(5) + 0.5 * kept
        rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
    queries = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    found = queries + roll_out(queries, blocks, 0.5, 0.4)
    torch.testing.assert_close(found, rollout[:, 0], check_dtype=False)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, dtype=torch.float64), check_dtype=False)


def torchvision_vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=8
        )
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    return classifier_of(module, size=32, classes=8, name="torchvision_vit")


def test_torchvisions_attention_is_seen_past_its_fast_path() -> None:
    classifier, x = torchvision_vit(), images(2, 32)
    module = copy.deepcopy(classifier.module)
    weights = []
    tokens = module._process_input(x)
    tokens = torch.cat([module.class_token.expand(2, -1, -1), tokens], dim=1) + module.encoder.pos_embedding
    for block in module.encoder.layers:
        normed = block.ln_1(tokens)
        weights.append(block.self_attention(normed, normed, normed, need_weights=True)[1])
        tokens = block(tokens)
    rollout = torch.eye(17).expand(2, -1, -1)
    for weight in weights:
        rollout = (0.5 * torch.eye(17) + 0.5 * weight) @ rollout
    assert torch.backends.mha.get_fastpath_enabled()
    found = explain(classifier, x, "attention_rollout")
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(found, rollout[:, 0, 1:].reshape(2, 4, 4), rtol=1e-4, atol=1e-6)
    for method in METHODS[1:]:
        assert not engine.explain(classifier, x, method=method, digests=["a", "b"]).is_flat.any()


def test_taking_fused_attention_apart_changes_no_value() -> None:
    """Masks, a given scale, causal attention and grouped heads included."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(3))
    bias = torch.randn(6, 6, generator=generator)
    cases = [{}, {"attn_mask": bias}, {"attn_mask": bias > -1.0}, {"is_causal": True}, {"scale": 0.1}]
    for options in cases:
        expected = F.scaled_dot_product_attention(q, k, v, **options)
        with capture.AttentionMode() as seen:
            found = F.scaled_dot_product_attention(q, k, v, **options)
        torch.testing.assert_close(found, expected)
        assert len(seen.kept) == 1
    with capture.AttentionMode():
        found = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True))


def test_the_rollout_knows_no_class_and_the_others_do() -> None:
    x = images(1, SIDE)
    for method in METHODS:
        one, other = (explain(timm_model("test_vit"), x, method, [c]) for c in (3, 7))
        assert torch.equal(one, other) == (method == "attention_rollout")


def test_a_distilled_transformer_is_read_from_both_its_tokens() -> None:
    from timm.models.deit import VisionTransformerDistilled

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = VisionTransformerDistilled(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=8, weight_init="skip"
        )
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    layout = capture.layout(classifier_of(module, size=32, classes=8))
    assert layout.queries.tolist() == [0.5, 0.5] + [0.0] * 16


def parallel_blocks():
    from timm.models.vision_transformer import ParallelThingsBlock

    return small_vit(block_fn=ParallelThingsBlock)


def swin():
    module = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4], num_classes=8
    )
    return classifier_of(module, size=64, classes=8, name="swin")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: timm_model("test_resnet"), "has no attention between all patches"),
        (lambda: timm_model("test_convnext"), "has no attention between all patches"),
        (swin, "within windows"),
        (parallel_blocks, "side by side"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_attention_over_the_image_is_refused(build, sentence: str, method: str) -> None:
    from salviz.errors import MethodError

    classifier = build()
    size = classifier.preprocessing.input_size
    with pytest.raises(MethodError, match=sentence):
        engine.explain(classifier, images(1, size), method=method, digests=["a"])


class CrashingHead(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls_left = 10**6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise RuntimeError("the head is broken")
        return self.inner(x)


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_a_crashing_head_leaves_the_blocks_as_found(method: str, calls: int) -> None:
    classifier = small_vit()
    classifier.module.head = head = CrashingHead(classifier.module.head)
    x = images(1, 32)
    before = explain(classifier, x, method)
    head.calls_left = calls
    if calls == 0 or method == "legrad":  # its second call is the head's pass over all blocks
        with pytest.raises(RuntimeError, match="the head is broken"):
            explain(classifier, x, method)
    head.calls_left = 10**6
    for part in classifier.module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert "forward" not in vars(part)
    assert torch.equal(explain(classifier, x, method), before)


def test_methods_of_a_set_share_the_pass_with_gradients() -> None:
    ticks = []
    classifier, x = small_vit(), images(3, 32)
    chosen = dict.fromkeys(METHODS)
    found = engine.explain_set(
        classifier, x, methods=chosen, digests=list("abc"), progress=lambda done, total: ticks.append((done, total))
    )
    # Rollout 1, the two with gradients 2 together, LeGrad 2.
    assert engine.passes(chosen, (32, 32)) == 5
    assert ticks[-1] == (15, 15)
    for method in METHODS:
        alone = engine.explain(classifier, x, method=method, digests=list("abc"))
        torch.testing.assert_close(found[method].maps, alone.maps)
