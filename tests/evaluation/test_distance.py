import json

import numpy as np
import pytest

from dit_video.evaluation.distance import measure
from dit_video.evaluation.frechet import frechet_terms, kernel_distance
from dit_video.evaluation.uncertainty import NUM_GROUPS


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(0).normal(size=(2, 64, 6))
    return x + 0.5, y


def test_every_number_is_of_the_same_two_sets(features):
    distance = measure(*features)
    assert distance.terms == frechet_terms(*features)
    assert distance.value == distance.terms.mean_term + distance.terms.covariance_term
    assert distance.kernel == kernel_distance(*features)
    assert distance.interval.low < distance.value < distance.interval.high
    assert distance.limit.value + distance.limit.bias == pytest.approx(distance.value)


def test_too_few_clips_have_a_value_and_no_interval(features):
    distance = measure(*(x[: NUM_GROUPS - 1] for x in features))
    assert distance.value > 0
    assert distance.interval is None
    assert distance.limit is None


def test_json_keeps_every_field(features):
    distance = measure(*features).as_json()
    assert json.loads(json.dumps(distance)) == distance
    assert distance.keys() == {"value", "interval", "mean_term", "covariance_term", "kernel_distance", "limit"}
    assert distance["interval"].keys() == {"low", "high", "level"}
    assert distance["limit"].keys() == {"value", "bias", "interval", "settled"}
