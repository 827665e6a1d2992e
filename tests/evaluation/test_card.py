import pytest
from rich.console import Console

from dit_video.evaluation.card import (
    _short,
    differing_fields,
    finished,
    make_card,
    read_card,
    small_sample_note,
    table,
    write_card,
)
from dit_video.evaluation.distance import Distance
from dit_video.evaluation.frechet import FrechetTerms
from dit_video.evaluation.uncertainty import Extrapolation, Interval


def distance(value, *, bias=3.0, settled=True):
    limit = Extrapolation(value=value - bias, bias=bias, interval=Interval(value - 9, value - 1), settled=settled)
    return Distance(
        terms=FrechetTerms(value - 10, 10.0), kernel=0.25, interval=Interval(value - 4, value + 4), limit=limit
    )


def card(value=30.0, *, metric="FVD", subject=None, yardstick=12.0, training="t", **protocol):
    made = make_card(
        metric=metric,
        distance=distance(value),
        protocol={"num_clips": 4096, "num_frames": 16, "size": (64, 64), "weights": "af5c50f0" * 8, **protocol},
        subject=subject or {"step": 100},
        references={"set": "toys", "training clips": training},
    )
    made["yardsticks"]["training clips"] = distance(yardstick).as_json()
    made["companions"]["samples, frames shuffled"] = distance(value + 5).as_json()
    made["measures"]["novelty"] = 0.75
    return finished(made)


def printed(cards):
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table(cards))
    return capture.get()


def test_a_card_comes_back_from_its_file_equal(tmp_path):
    made = card()
    write_card(tmp_path / "new" / "card.json", made)
    assert read_card(tmp_path / "new" / "card.json") == made
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["card.json"]
    assert made["value"] == made["mean_term"] + made["covariance_term"] == 30.0
    assert made["interval"] == {"low": 26.0, "high": 34.0, "level": 0.95}
    assert made["limit"]["value"] == 27.0
    assert made["yardsticks"]["training clips"]["value"] == 12.0
    assert made["companions"]["samples, frames shuffled"]["value"] == 35.0
    assert made["measures"] == {"novelty": 0.75}


def test_a_failed_write_leaves_the_card_that_was_there(tmp_path):
    write_card(tmp_path / "card.json", card())
    with pytest.raises(TypeError):
        write_card(tmp_path / "card.json", {"value": object()})
    assert read_card(tmp_path / "card.json") == card()


def test_only_finite_json_values_get_on_a_card():
    with pytest.raises(ValueError, match="not JSON compliant"):
        card(float("nan"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        card(codec=object())


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON .*; it is not a card"), ('{"value": 1}', "no metric, protocol")]
)
def test_what_is_not_a_card_is_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_card(tmp_path / "x.json")


def test_differing_fields_are_named_also_nested_and_one_sided():
    a = {"num_frames": 16, "source": {"digest": "x", "split": "held_out"}, "crop": None}
    assert differing_fields(a, dict(a)) == []
    b = {"num_frames": 17, "source": {"digest": "y", "split": "held_out"}}
    assert differing_fields(a, b) == differing_fields(b, a) == ["crop", "num_frames", "source.digest"]


def test_equal_protocols_share_a_table_headed_by_what_differs_in_the_subjects():
    text = printed([card(30.0, subject={"step": 100, "seed": 0}), card(20.0, subject={"step": 200, "seed": 0})])
    heading = next(line for line in text.splitlines() if "step=100" in line)
    assert "step=200" in heading
    assert "seed" not in text
    assert any("30.00" in line and "20.00" in line for line in text.splitlines())
    assert "not comparable" not in text
    assert "af5c50f0," not in text.replace("weights=af5c50f0,", "")


@pytest.mark.parametrize(
    ("other", "field"),
    [({"num_frames": 17}, "num_frames"), ({"metric": "KVD"}, "metric"), ({"resize": "tf1"}, "resize")],
)
def test_two_protocols_never_share_a_column_or_a_line(other, field):
    text = printed([card(30.0), card(20.0, **other)])
    assert not any("30.00" in line and "20.00" in line for line in text.splitlines())
    assert f"not comparable with the first table: {field}" in text
    assert text.count("┏") == 2  # Two tables, each with a heading of its own.


def test_a_table_shows_value_interval_and_what_stands_beside_it():
    text = printed([card(30.0)])
    for line in ("30.00 [26.00, 34.00]", "27.00 [21.00, 29.00]", "0.2500", "12.00 [8.00, 16.00]", "35.00", "0.750"):
        assert line in text, line


@pytest.mark.parametrize(
    ("settled", "phrase"), [(True, "biased upwards by about 3,"), (False, "biased upwards by about at least 3,")]
)
def test_small_samples_are_called_smoke_and_their_bias_is_named(settled, phrase):
    assert small_sample_note("FVD", 2048, distance(30.0)) is None
    note = small_sample_note("FVD", 32, distance(30.0, settled=settled))
    assert "smoke value: FVD at N=32" in note
    assert phrase in note
    few = card(num_clips=32)
    assert few["notes"] == [small_sample_note("FVD", 32, distance(30.0))]
    assert "smoke value: FVD at N=32 is biased upwards by about 3" in printed([few])


def test_so_few_clips_that_nothing_can_be_said_of_the_bias_are_smoke_too():
    distance = Distance(terms=FrechetTerms(20.0, 10.0), kernel=0.25, interval=None, limit=None)
    assert "mostly bias" in small_sample_note("FVD", 8, distance)


def test_what_could_not_be_extrapolated_is_a_bound_in_the_table():
    made = card()
    made["limit"]["settled"] = False
    assert "below 29.00" in printed([made])


def test_columns_are_headed_by_their_names():
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table([card(), card()], ["a.json", "b.json"]))
    heading = next(line for line in capture.get().splitlines() if "a.json" in line)
    assert "b.json" in heading


def test_cards_that_know_other_training_clips_say_so():
    assert "different training clips" in printed([card(), card(training="u")])
    assert "different training clips" not in printed([card(), card()])


def test_a_card_whose_protocol_is_no_object_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"metric": "FVD", "value": 1, "protocol": 3, "subject": {}}')
    with pytest.raises(ValueError, match="its protocol is of another kind"):
        read_card(tmp_path / "x.json")


def test_a_bias_that_these_clips_do_not_show_is_said_and_enough_clips_are_2048():
    shown = distance(30.0, bias=0.01)
    assert "biased upwards by about 0.01," in small_sample_note("FVD", 2047, shown)
    for bias in (0.0, -1.0):
        assert "by what these clips do not show" in small_sample_note("FVD", 2047, distance(30.0, bias=bias))
    assert "quote none below N=2048" in small_sample_note("FVD", 8, shown)


def test_digests_are_shortened_and_nothing_else():
    texts = {"a" * 31: "a" * 31, "a" * 32: "a" * 8, "0123456789abcdef" * 4: "01234567", "A" * 32: "A" * 32}
    assert {text: _short(text) for text in texts} == texts
    assert _short(12) == "12"


def test_what_a_card_has_not_is_blank_and_a_value_without_an_interval_stands_alone():
    made = card()
    del made["kernel_distance"], made["limit"], made["interval"], made["mean_term"]
    line = {
        text.split("│")[1].strip(): text.split("│")[2].strip() for text in printed([made]).splitlines() if "│" in text
    }
    assert line["samples"] == "30.00"
    assert line["mean term"] == line["kernel distance (unbiased)"] == line["extrapolated to N = infinity"] == ""
    assert line["covariance term"] == "10.00"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"protocol": 3}, {"subject": []}, {"value": "1"}, {"value": None}, {"value": True}, {"value": -1.0}),
        *({"metric": 3}, {"value": 10**400}, {"interval": {"low": 1}}, {"limit": {"value": 1}}, {"notes": "x"}),
        *({"references": []}, {"yardsticks": {"x": 3}}, {"measures": {"x": "y"}}, {"mean_term": []}),
    ],
)
def test_a_card_of_other_kinds_is_named_by_what_is_wrong(tmp_path, wrong):
    write_card(tmp_path / "x.json", {"metric": "FVD", "value": 1, "protocol": {}, "subject": {}} | wrong)
    with pytest.raises(ValueError, match=rf"x\.json: not a card, because its {next(iter(wrong))} is of another kind"):
        read_card(tmp_path / "x.json")


def test_a_value_that_is_no_number_is_not_ranked(tmp_path):
    (tmp_path / "x.json").write_text('{"metric": "FVD", "value": NaN, "protocol": {}, "subject": {}}')
    with pytest.raises(ValueError, match=r"x\.json: not a card, because its value is of another kind"):
        read_card(tmp_path / "x.json")
