import pytest
from rich.console import Console

from dit_video.evaluation.card import (
    differing_fields,
    make_card,
    read_card,
    small_sample_note,
    table,
    write_card,
)
from dit_video.evaluation.frechet import FrechetTerms


def card(value=30.0, *, metric="FVD", subject=None, yardstick=12.0, **protocol):
    return make_card(
        metric=metric,
        terms=FrechetTerms(value - 10, 10.0),
        protocol={"num_clips": 4096, "num_frames": 16, "size": (64, 64), "weights": "af5c50f0" * 8, **protocol},
        subject=subject or {"step": 100},
        yardsticks={"training clips": FrechetTerms(yardstick, 0.0)},
    )


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
    assert made["yardsticks"] == {"training clips": 12.0}


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


@pytest.mark.parametrize(("text", "message"), [("{", "because not JSON"), ('{"value": 1}', "no metric, protocol")])
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


def test_small_samples_are_called_smoke():
    assert small_sample_note("FVD", 2048) is None
    few = card(num_clips=32)
    assert few["notes"] == [small_sample_note("FVD", 32)]
    assert "smoke value: FVD at N=32 is dominated by bias ~ 1/N" in printed([few])
