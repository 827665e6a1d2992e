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
    found = measure(*features)
    assert found.terms == frechet_terms(*features)
    assert found.value == found.terms.mean_term + found.terms.covariance_term
    assert found.kernel == kernel_distance(*features)
    assert found.interval.low < found.value < found.interval.high
    assert found.limit.value + found.limit.bias == pytest.approx(found.value)


def test_too_few_clips_have_a_value_and_no_interval(features):
    found = measure(*(x[: NUM_GROUPS - 1] for x in features))
    assert found.value > 0
    assert found.interval is None
    assert found.limit is None


def test_json_keeps_every_field(features):
    found = measure(*features).as_json()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {"value", "interval", "mean_term", "covariance_term", "kernel_distance", "limit"}
    assert found["interval"].keys() == {"low", "high", "level"}
    assert found["limit"].keys() == {"value", "bias", "interval", "settled"}
