"""Random numbers belong to (seed, image, purpose), whatever else is computed beside them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from salviz.seeds import generators, seed_of


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert seed_of(0, "abc", "smoothgrad") == 33163842002237278
    assert seed_of(7, "", "random") == 315623773860327660


@given(st.integers(0, 2**31), st.text(max_size=8), st.sampled_from(["random", "smoothgrad"]))
def test_a_seed_fits_a_signed_64_bit_integer(seed: int, digest: str, purpose: str) -> None:
    assert 0 <= seed_of(seed, digest, purpose) < 2**63


def test_every_part_matters() -> None:
    seeds = {seed_of(*parts) for parts in [(0, "a", "p"), (1, "a", "p"), (0, "b", "p"), (0, "a", "q")]}
    assert len(seeds) == 4


def test_streams_depend_on_the_image_and_not_on_its_place() -> None:
    def draws(digests: list[str]) -> dict[str, list[float]]:
        streams = generators(3, digests, "noise")
        return {d: torch.randn(4, generator=g).tolist() for d, g in zip(digests, streams, strict=True)}

    assert draws(["a", "b", "c"]) == draws(["c", "a", "b"])
    assert len({tuple(values) for values in draws(["a", "b", "c"]).values()}) == 3
    assert draws(["a"]) == {"a": draws(["b", "a"])["a"]}


def test_the_global_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    torch.randn(3, generator=generators(0, ["a"], "noise")[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_meta_device_gets_generators_whose_numbers_nobody_reads() -> None:
    assert generators(0, ["a"], "noise", "meta")[0].device.type == "cpu"
