import pytest
from timm.data import ImageNetInfo
from torchvision.models import ResNet50_Weights

from salviz.classifiers.labels import Labels


@pytest.fixture(scope="module")
def imagenet() -> Labels:
    labels = Labels.imagenet()
    assert labels is not None
    return labels


def test_known_classes(imagenet: Labels) -> None:
    assert len(imagenet) == 1000
    assert imagenet.names[281] == "tabby, tabby cat"
    assert imagenet.short(281) == "tabby"
    assert imagenet.index_of_wordnet("n02123045") == 281
    assert imagenet.index_of_wordnet("n99999999") is None


def test_short_names_are_unique_and_say_what_namesakes_are(imagenet: Labels) -> None:
    shorts = [imagenet.short(index).casefold() for index in range(1000)]
    assert len(set(shorts)) == 1000
    assert imagenet.short(134) == "crane (large long-necked wading bird)"
    assert imagenet.short(517) == "crane (lifts and moves heavy objects)"
    assert imagenet.short(264) == "Cardigan (Cardigan Welsh corgi)"
    assert (imagenet.short(638), imagenet.short(639)) == ("maillot", "maillot (tank suit)")


def test_namesakes_without_anything_else_get_their_number() -> None:
    labels = Labels(("cat", "dog", "cat"))
    assert [labels.short(index) for index in range(3)] == ["cat (class 0)", "dog", "cat (class 2)"]


def test_find_puts_the_best_first() -> None:
    labels = Labels(("wildcat", "alley cat, tom", "catfish", "cat, feline", "dog", "scatter rug"))
    assert labels.find("cat") == [3, 2, 1, 0, 5]  # exact, prefix, word, then anywhere (shorter first)
    assert labels.find("  FELINE ") == [3]
    assert labels.find("tom") == [1]
    assert labels.find("4") == [4]
    assert labels.find("9") == []
    assert labels.find("") == []
    assert labels.find("(") == []


def test_find_in_imagenet(imagenet: Labels) -> None:
    assert imagenet.find("tabby cat")[0] == 281
    assert imagenet.find("281")[0] == 281
    assert imagenet.find("N02123045") == [281]
    assert set(imagenet.find("crane")[:2]) == {134, 517}


@pytest.mark.parametrize("count", [1000, 11221, 11821, 21841, 21843])
def test_every_subset_that_timm_knows_has_labels(count: int) -> None:
    labels = Labels.imagenet(count)
    assert labels is not None
    assert len(labels) == count
    assert labels.wordnet_ids is not None
    cat = labels.index_of_wordnet("n02123045")
    assert cat is not None
    assert labels.names[cat] == "tabby, tabby cat"
    assert len({labels.short(index) for index in range(count)}) == count


def test_torchvisions_categories_are_recognised_as_imagenet(imagenet: Labels) -> None:
    categories = ResNet50_Weights.DEFAULT.meta["categories"]
    assert Labels.from_categories(categories) == imagenet
    # The order matters, not only the set.
    assert Labels.from_categories(categories[::-1]).wordnet_ids is None
    assert Labels.from_categories(["a", "b"]).names == ("a", "b")


def test_timm_configurations(imagenet: Labels) -> None:
    assert Labels.from_timm({}, 1000) == imagenet
    assert Labels.from_timm({}, 3).names == ("class 0", "class 1", "class 2")
    assert Labels.from_timm({"label_names": ["ant", "bee"]}, 2).names == ("ant", "bee")
    described = {"label_names": ["ant", "bee"], "label_descriptions": {"bee": "a bee"}}
    assert Labels.from_timm(described, 2).names == ("ant", "a bee")
    ids = ImageNetInfo().label_names()
    assert Labels.from_timm({"label_names": ids}, 1000) == imagenet
    own = Labels.from_timm({"label_names": ids[5:7], "label_descriptions": {ids[5]: "five"}}, 2)
    assert own.names == ("five", ids[6])
    assert own.wordnet_ids == tuple(ids[5:7])
    # Names that do not fit the number of classes are not trusted.
    assert Labels.from_timm({"label_names": ["ant", "bee"]}, 3).names[0] == "class 0"
    # A thousand classes of one's own are not ImageNet's.
    assert Labels.from_timm({"label_names": [f"bird {n}" for n in range(1000)]}, 1000).wordnet_ids is None


def test_extras_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 entries for 2 classes"):
        Labels(("a", "b"), wordnet_ids=("n00000001",))
