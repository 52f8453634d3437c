"""Descriptors: known values, laws, and what is said of an input that cannot be described."""

import math
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trimtab.contracts.parse import parse_contract
from trimtab.errors import TrimtabError
from trimtab.sdk.describe import (
    DescriptorError,
    Vocabulary,
    describe_audio,
    describe_embedding,
    describe_embeddings,
    describe_image,
    describe_images,
    describe_text,
    describe_texts,
    feature_lines,
)
from trimtab.sdk.describe.embedding import projection
from trimtab.sdk.describe.image import DESCRIPTORS

RATE_HZ = 16_000
PINNED = (-0.27272766441268237, -1.6892091038563004)
"""Numbers of releases to come must be these, or baselines of embeddings mean nothing any more."""


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def blurred(image):
    """The mean of each pixel and its eight neighbours."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    parts = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.mean(parts, axis=0)


# --- images ---------------------------------------------------------------------------------------


def test_an_image_of_one_colour_is_described_exactly():
    image = np.zeros((4, 8, 3), np.uint8)
    image[...] = (255, 51, 0)
    described = describe_image(image)
    assert list(described) == list(DESCRIPTORS)
    assert described == pytest.approx(
        {
            "brightness": 0.4,
            "contrast": 0,
            "sharpness": 0,
            "focus": 0,
            "saturation": 1,
            "red": 1,
            "green": 0.2,
            "blue": 0,
            "red_share": 1 / 1.2,
            "blue_share": 0,
            "width": 8,
            "height": 4,
            "aspect": 2,
        },
        abs=1e-12,
    )


def test_a_checkerboard_has_the_focus_and_contrast_of_its_formula():
    board = np.indices((10, 10)).sum(axis=0) % 2 * 1.0
    described = describe_image(board)
    assert described["contrast"] == pytest.approx(0.5)
    assert described["sharpness"] == pytest.approx(2)  # each step is 1, relative to 0.5
    assert described["focus"] == pytest.approx(16)  # the Laplacian is 4 or -4


def test_a_blurred_image_is_less_sharp():
    image = noise(32, 32, 3)
    clear, soft = describe_image(image), describe_image(blurred(image))
    assert soft["focus"] < clear["focus"] / 4
    assert soft["sharpness"] < clear["sharpness"]
    assert soft["brightness"] == pytest.approx(clear["brightness"], abs=0.02)


def test_less_light_is_less_bright_but_no_less_sharp_and_of_the_same_colours():
    image = noise(16, 16, 3)
    light, dim = describe_image(image), describe_image(image * 0.5)
    assert dim["brightness"] == pytest.approx(light["brightness"] / 2)
    for name in ("sharpness", "saturation", "red_share", "blue_share"):
        assert dim[name] == pytest.approx(light[name])


def test_a_colour_cast_shows_in_the_shares_of_the_channels():
    image = noise(16, 16, 3)
    warm = describe_image(image * [1.0, 0.9, 0.6])
    plain = describe_image(image)
    assert warm["red_share"] > plain["red_share"] + 0.03
    assert warm["blue_share"] < plain["blue_share"] - 0.03


def test_a_grey_image_is_the_colour_image_of_three_equal_channels():
    grey = noise(9, 7)
    whole = describe_image(np.repeat(grey[..., None], 3, axis=2))
    assert describe_image(grey) == pytest.approx(whole)
    assert describe_image(grey[..., None]) == describe_image(grey)
    assert whole["saturation"] == pytest.approx(0)
    assert whole["red_share"] == pytest.approx(1 / 3)


def test_an_alpha_channel_is_not_looked_at():
    image = noise(5, 6, 4)
    assert describe_image(image) == describe_image(image[..., :3])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2, 3)])
def test_the_focus_of_an_image_without_an_inside_is_nan(shape):
    described = describe_image(noise(*shape))
    assert math.isnan(described["focus"])
    assert all(math.isfinite(value) for name, value in described.items() if name != "focus")


@settings(deadline=None)
@given(
    arrays.arrays(
        np.uint8,
        st.tuples(
            st.integers(1, 3), st.integers(3, 9), st.integers(3, 9), st.sampled_from([1, 3, 4])
        ),
    )
)
def test_a_batch_of_images_is_its_images(images):
    columns = describe_images(images)
    one_by_one = [describe_image(image) for image in images]
    assert describe_images(list(images)) == {
        name: [row[name] for row in one_by_one] for name in DESCRIPTORS
    }
    for name, column in columns.items():
        assert column == pytest.approx([row[name] for row in one_by_one])
    for row in one_by_one:
        assert all(math.isfinite(value) for value in row.values())
        for name in ("brightness", "saturation", "red", "green", "blue", "red_share"):
            assert 0 <= row[name] <= 1


@settings(deadline=None)
@given(arrays.arrays(np.uint8, (6, 5, 3)))
def test_bytes_and_floats_of_an_image_are_described_alike(image):
    assert describe_image(image) == pytest.approx(describe_image(image / 255))


def test_turning_an_image_keeps_what_has_no_direction():
    image = noise(8, 12, 3)
    turned, plain = describe_image(np.rot90(image)), describe_image(image)
    for name in ("brightness", "contrast", "focus", "saturation", "red", "blue_share"):
        assert turned[name] == pytest.approx(plain[name])
    assert (turned["width"], turned["height"]) == (plain["height"], plain["width"])


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros(4), "shape"),
        (np.zeros((2, 2, 2)), "channels"),
        (np.zeros((0, 2)), "nothing to describe"),
        (np.zeros((2, 2), np.uint16), "65535"),
        (np.full((2, 2), 200.0), "uint8, or floats from 0 to 1"),
        (np.full((2, 2), -0.5), "uint8, or floats from 0 to 1"),
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), "a"), "Pixels of type"),
        (np.broadcast_to(np.uint8(0), (5_000, 5_000)), "limit"),
    ],
)
def test_an_image_that_is_none_is_refused_with_what_to_give(image, said):
    with pytest.raises(DescriptorError, match=said):
        describe_image(image)


# --- texts ----------------------------------------------------------------------------------------


def test_a_text_is_described_exactly():
    described = describe_text("Ab ab, 12é")
    assert described == pytest.approx(
        {
            "characters": 10,
            "words": 3,
            "mean_word_length": 7 / 3,
            "digit_share": 0.2,
            "punctuation_share": 0.1,
            "upper_share": 0.1,
            "non_ascii_share": 0.1,
            "type_token_ratio": 2 / 3,
            # b and the space twice, six others once
            "character_entropy_bits": 0.4 * math.log2(5) + 0.6 * math.log2(10),
        }
    )


def test_one_letter_over_and_over_has_no_entropy_and_all_letters_alike_have_the_most():
    assert describe_text("aaaa")["character_entropy_bits"] == 0
    assert describe_text("abcdefgh")["character_entropy_bits"] == pytest.approx(3)


def test_words_that_the_reference_lacks_are_unknown(tmp_path):
    vocabulary = Vocabulary.of(["The cat sat.", "A dog, the cat"])
    assert "CAT" in vocabulary
    assert describe_text("The cat ate a mouse", vocabulary)["unknown_share"] == pytest.approx(0.4)
    vocabulary.save(tmp_path / "words.json")
    assert b"cat" not in (tmp_path / "words.json").read_bytes()
    loaded = Vocabulary.load(tmp_path / "words.json")
    assert describe_text("the dog barks", loaded)["unknown_share"] == pytest.approx(1 / 3)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "words.json").read_bytes()


def test_a_vocabulary_keeps_the_words_of_most_texts():
    texts = ["b b b b", "a c", "a c", "a"]
    assert [word for word in "abc" if word in Vocabulary.of(texts, size=2)] == ["a", "c"]
    assert [word for word in "abc" if word in Vocabulary.of(texts, least_texts=3)] == ["a"]


def test_an_empty_text_has_lengths_and_no_shares():
    described = describe_text("", Vocabulary.of(["a"]))
    assert (described.pop("characters"), described.pop("words")) == (0, 0)
    assert all(math.isnan(value) for value in described.values())
    assert len(described) == 8


@given(st.text(max_size=60))
def test_every_text_has_the_same_names_and_shares_from_0_to_1(text):
    described = describe_text(text, Vocabulary.of(["a b c"]))
    assert list(described) == list(describe_text("x", Vocabulary.of(["a b c"])))
    for name, value in described.items():
        if name.endswith(("share", "ratio")) and not math.isnan(value):
            assert 0 <= value <= 1


@given(st.text(min_size=1, max_size=40), st.randoms())
def test_entropy_does_not_depend_on_the_order_of_characters(text, random):
    shuffled = "".join(random.sample(text, len(text)))
    entropy = describe_text(text)["character_entropy_bits"]
    assert describe_text(shuffled)["character_entropy_bits"] == entropy


def test_a_batch_of_texts_is_its_texts():
    assert describe_texts(["one two", "Three"], prefix="t_") == {
        name: [describe_text(text, prefix="t_")[name] for text in ("one two", "Three")]
        for name in describe_text("x", prefix="t_")
    }


@pytest.mark.parametrize("text", [b"bytes", None, 3, "x" * 1_000_001], ids=type)
def test_a_text_that_is_none_is_refused(text):
    with pytest.raises(DescriptorError):
        describe_text(text)


@pytest.mark.parametrize("content", [b"\xff", b"{}", b"[1]", b'{"format": 9, "hashes": []}'])
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content):
    file = tmp_path / "words.json"
    file.write_bytes(content)
    with pytest.raises(DescriptorError, match=r"words\.json"):
        Vocabulary.load(file)


def test_a_vocabulary_of_nothing_or_of_one_text_is_refused():
    with pytest.raises(DescriptorError, match="no words"):
        Vocabulary.of(["...", ""])
    with pytest.raises(DescriptorError, match="list"):
        Vocabulary.of("one text")
    with pytest.raises(DescriptorError, match="size"):
        Vocabulary.of(["a"], size=0)


# --- sounds ---------------------------------------------------------------------------------------


def sine(hz, seconds=1.0, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)


@pytest.mark.parametrize("hz", [200, 440, 1_000, 5_000])
def test_the_centroid_and_crossings_of_a_sine_are_its_frequency(hz):
    described = describe_audio(sine(hz), RATE_HZ)
    assert described["spectral_centroid_hz"] == pytest.approx(hz, rel=0.01)
    assert described["zero_crossing_rate"] == pytest.approx(2 * hz / RATE_HZ, rel=0.02)


def test_the_level_of_a_sine_is_its_root_mean_square():
    full, tenth = describe_audio(sine(440), RATE_HZ), describe_audio(sine(440, 1, 0.1), RATE_HZ)
    assert full["level_dbfs"] == pytest.approx(-3.0103, abs=0.01)
    assert tenth["level_dbfs"] == pytest.approx(full["level_dbfs"] - 20, abs=0.01)
    assert (full["peak"], tenth["peak"]) == pytest.approx((1, 0.1), rel=0.01)
    assert full["duration_s"] == 1
    assert full["clipped_share"] > 0 == tenth["clipped_share"]


def test_silence_is_the_share_of_frames_below_the_limit():
    sound = np.concatenate([sine(440, 0.5), np.zeros(RATE_HZ // 4), sine(440, 0.25, 0.001)])
    assert describe_audio(sound, RATE_HZ)["silence_share"] == pytest.approx(0.5)
    softer = describe_audio(sound, RATE_HZ, silence_dbfs=-80)
    assert softer["silence_share"] == pytest.approx(0.25, abs=0.02)  # frames of 20 ms


def test_silence_alone_has_a_level_and_no_centroid():
    described = describe_audio(np.zeros(RATE_HZ), RATE_HZ)
    assert described["level_dbfs"] == pytest.approx(-120)
    assert described["silence_share"] == 1
    assert math.isnan(described["spectral_centroid_hz"])


def test_integers_and_channels_are_the_sound_that_they_stand_for():
    sound = sine(440, 0.3, 0.5)
    whole = np.round(sound * 32_768).astype(np.int16)
    assert describe_audio(whole, RATE_HZ) == pytest.approx(
        describe_audio(sound, RATE_HZ), rel=1e-3, abs=1e-3
    )
    stereo = np.column_stack([sound, np.zeros_like(sound)])
    assert describe_audio(stereo, RATE_HZ)["peak"] == pytest.approx(0.25, rel=0.01)


@settings(deadline=None)
@given(arrays.arrays(np.float64, st.integers(1, 3_000), elements=st.floats(-1, 1)))
def test_every_sound_is_described_within_its_limits(sound):
    described = describe_audio(sound, RATE_HZ)
    assert -120.0001 <= described["level_dbfs"] <= 0.0001
    for name in ("silence_share", "zero_crossing_rate", "peak", "clipped_share"):
        assert 0 <= described[name] <= 1
    centroid = described["spectral_centroid_hz"]
    assert math.isnan(centroid) or 0 <= centroid <= RATE_HZ / 2


@pytest.mark.parametrize(
    ("sound", "rate_hz", "said"),
    [
        (np.zeros(0), 8_000, "shape"),
        (np.zeros((2, 2, 2)), 8_000, "shape"),
        (np.zeros((2, 8_000)), 8_000, "transpose"),
        (np.full(9, 300.0), 8_000, "int16"),
        (np.zeros(9, np.int64), 8_000, "int16"),
        (np.full(9, np.inf), 8_000, "infinity"),
        (np.zeros(9), 0, "rate_hz"),
        (np.zeros(9), math.nan, "rate_hz"),
        (np.broadcast_to(0.0, 2**25 + 1), 8_000, "limit"),
    ],
)
def test_a_sound_that_is_none_is_refused_with_what_to_give(sound, rate_hz, said):
    with pytest.raises(DescriptorError, match=said):
        describe_audio(sound, rate_hz)


# --- embeddings -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_directions_are_orthonormal_and_the_same_every_time(dimensions, numbers, seed):
    numbers = min(numbers, dimensions)
    p = projection(dimensions, numbers, seed)
    assert np.allclose(p @ p.T, np.eye(numbers), atol=1e-12)
    projection.cache_clear()
    assert np.array_equal(projection(dimensions, numbers, seed), p)


def test_the_numbers_of_an_embedding_are_pinned():
    described = describe_embedding(np.arange(6.0), numbers=2, seed=7)
    assert list(described) == ["emb_0", "emb_1", "emb_norm"]
    assert described["emb_norm"] == pytest.approx(math.sqrt(55))
    assert described["emb_0"] == pytest.approx(PINNED[0], abs=1e-12)
    assert described["emb_1"] == pytest.approx(PINNED[1], abs=1e-12)


@settings(deadline=None)
@given(arrays.arrays(np.float64, (5, 12), elements=st.floats(-1e3, 1e3)))
def test_a_batch_of_embeddings_is_its_embeddings_and_no_number_exceeds_the_norm(vectors):
    columns = describe_embeddings(vectors)
    for place, vector in enumerate(vectors):
        row = {name: column[place] for name, column in columns.items()}
        assert row == describe_embedding(vector)
        projected = np.array([value for name, value in row.items() if name != "emb_norm"])
        assert np.sqrt((projected**2).sum()) <= row["emb_norm"] * (1 + 1e-9) + 1e-9


def test_a_short_embedding_has_as_many_numbers_as_dimensions():
    assert list(describe_embedding([1.0, 2.0], prefix="e")) == ["e0", "e1", "enorm"]


@pytest.mark.parametrize(
    ("vector", "options", "said"),
    [
        (np.zeros((2, 2)), {}, "describe_embeddings"),
        (np.zeros(0), {}, "dimensions"),
        (np.zeros(20_000), {}, "dimensions"),
        ([math.nan], {}, "NaN"),
        (["a"], {}, "numbers"),
        ([1.0], {"numbers": 0}, "numbers"),
        ([1.0], {"seed": -1}, "seed"),
    ],
)
def test_an_embedding_that_is_none_is_refused_with_what_to_give(vector, options, said):
    with pytest.raises(DescriptorError, match=said):
        describe_embedding(vector, **options)


# --- contracts ------------------------------------------------------------------------------------


def test_the_lines_are_features_of_a_contract_that_are_watched_and_not_trained_on():
    described = describe_image(noise(4, 4)) | {"odd name \\ü (%)": 1.0, "a:b": 2.0}
    lines = feature_lines(described)
    contract = parse_contract(f'name = "m"\ntask = "binary"\n[features]\n{lines}', "m.toml")
    assert list(contract.features) == list(described)
    for feature in contract.features.values():
        assert (feature.kind, feature.input, feature.min) == ("number", False, None)


@pytest.mark.parametrize("name", ['a"b', "a\nb", "", "prediction", "attribution:x", "x" * 201])
def test_a_name_that_no_contract_can_declare_is_refused(name):
    with pytest.raises(DescriptorError, match="cannot be declared"):
        feature_lines({name: 1.0})


def test_what_is_constant_in_the_reference_is_declared_with_its_value_as_bounds():
    rows = [describe_image(noise(4, 6, seed=seed)) for seed in range(20)]
    table = tomllib.loads(feature_lines(rows))
    assert (table["width"]["min"], table["width"]["max"]) == (6, 6)
    assert "min" not in table["brightness"]
    assert "min" not in tomllib.loads(feature_lines(rows[:5]))["width"]


def test_there_are_no_lines_of_nothing():
    with pytest.raises(TrimtabError, match="Nothing is described"):
        feature_lines([])
