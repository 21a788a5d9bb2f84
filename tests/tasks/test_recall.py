"""Sequences to remember: what the generators promise, in every sequence and in law."""

import jax
import numpy as np
import pytest

from attnjax import tasks
from attnjax.tasks import IGNORED


def test_multi_query_recall_is_what_it_says(getkey):
    """Every sequence: pairs in front, as many questions as pairs, each answered by the value of its key."""
    pairs, length, vocabulary = 8, 64, 256
    for passes in (1, 2):
        task = tasks.multi_query_recall(
            getkey(), batch=50, length=length, pairs=pairs, vocabulary=vocabulary, passes=passes, random_fillers=False
        )
        for tokens, targets in zip(*map(np.asarray, task), strict=True):
            context = 2 * pairs * passes
            keys, values = tokens[:context:2], tokens[1:context:2]
            assert (keys.reshape(passes, -1) == keys[:pairs]).all()
            assert len(set(keys)) == len(set(values)) == pairs
            assert ((keys >= 1) & (keys < vocabulary // 2)).all()
            assert ((values >= vocabulary // 2) & (values < vocabulary)).all()
            (asked,) = np.nonzero(targets != IGNORED)
            assert len(asked) == pairs
            assert (asked >= context).all()
            assert (asked % 2 == 0).all()
            answer = dict(zip(keys, values, strict=True))
            assert [answer[t] for t in tokens[asked]] == list(targets[asked])
            rest = np.setdiff1d(np.arange(context, length), asked)
            assert (tokens[rest] == 0).all()


def test_where_recall_is_asked(getkey):
    """In law: the first slot is used, and pair 1 is asked before pair 4, as often as by draws without replacement."""
    assert float(tasks.slot_probabilities(28)[0]) == pytest.approx(0.2511, abs=1e-4)
    assert float(tasks.slot_probabilities(56)[0]) == pytest.approx(0.2131, abs=1e-4)
    assert float(tasks.slot_probabilities(24)[0]) == pytest.approx(0.2613, abs=1e-4)
    count = 20_000
    task = tasks.multi_query_recall(getkey(), batch=count, length=64, pairs=4, vocabulary=128, random_fillers=False)
    tokens, targets = map(np.asarray, task)
    keys = tokens[:, 0:8:2]
    slots = np.stack(
        [np.argmax((tokens[:, 8:] == keys[:, j, None]) & (targets[:, 8:] != IGNORED), 1) // 2 for j in range(4)], 1
    )
    first = np.mean((slots == 0).any(1))
    means = slots.mean(0) + 1
    rng = np.random.default_rng(0)
    p = np.arange(1, 29) ** (0.01 - 1.0)
    drawn = np.array([rng.choice(28, 4, replace=False, p=p / p.sum()) for _ in range(count)])
    print(first, means, np.mean((drawn == 0).any(1)), drawn.mean(0) + 1)
    assert abs(first - np.mean((drawn == 0).any(1))) < 5 * np.sqrt(2 * 0.25 / count)
    assert np.all(np.abs(means - drawn.mean(0) - 1) < 5 * 7 * np.sqrt(2 / count))
    assert means[0] < means[3] - 1


def test_random_fillers_are_uniform(getkey):
    task = tasks.multi_query_recall(getkey(), batch=2000, length=64, pairs=4, vocabulary=100)
    tokens, targets = map(np.asarray, task)
    fillers = tokens[:, 9::2].ravel()  # odd places after the pairs are never asked
    counts = np.bincount(fillers, minlength=100)
    assert np.all(np.abs(counts - counts.mean()) < 6 * np.sqrt(counts.mean()))
    assert (targets[:, 9::2] == IGNORED).all()


@pytest.mark.parametrize("selective", [False, True])
def test_copying_asks_for_the_symbols_in_their_order(getkey, selective):
    task = tasks.copying(getkey(), batch=200, symbols=5, blanks=12, vocabulary=8, selective=selective)
    tokens, targets = map(np.asarray, task)
    assert tokens.shape == (200, 22)
    assert (tokens[:, 17] == 1).all()
    assert (tokens[:, 18:] == 0).all()
    assert (targets[:, :17] == IGNORED).all()
    for row, asked in zip(tokens, targets[:, 17:], strict=True):
        assert list(row[:17][row[:17] > 1]) == list(asked)
    places = np.mean(tokens[:, :17] > 1, axis=0)
    if selective:
        assert np.all(np.abs(places - 5 / 17) < 6 * np.sqrt(0.25 / 200))
    else:
        assert (places == (np.arange(17) < 5)).all()


def test_a_read_bit_is_the_last_one_written(getkey):
    task = tasks.flip_flop(getkey(), batch=500, length=64, ignore=0.6)
    tokens, targets = map(np.asarray, task)
    shares = np.bincount(tokens[:, 2:-2:2].ravel(), minlength=3) / tokens[:, 2:-2:2].size
    assert np.all(np.abs(shares - [0.2, 0.2, 0.6]) < 0.02)
    for row, asked in zip(tokens, targets, strict=True):
        written = None
        for place in range(0, 64, 2):
            if row[place] == 0:
                written = row[place + 1]
            assert asked[place] == (written if row[place] == 1 else IGNORED)
            assert row[place] != 1 or row[place + 1] == written
            assert asked[place + 1] == IGNORED
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, -2] == 1).all()


@pytest.mark.parametrize(
    ("function", "knobs", "words"),
    [
        ("multi_query_recall", {"length": 63}, "even number"),
        ("multi_query_recall", {"length": 12}, "= 16"),
        ("multi_query_recall", {"vocabulary": 64}, "more than length=64"),
        ("copying", {"symbols": 0}, "positive sizes"),
        ("flip_flop", {"length": 7}, "even length"),
        ("flip_flop", {"ignore": 1.5}, "want a probability"),
    ],
)
def test_messages(function, knobs, words):
    sizes = {
        "multi_query_recall": {"batch": 1, "length": 64, "pairs": 4, "vocabulary": 128},
        "copying": {"batch": 1, "symbols": 2, "blanks": 3, "vocabulary": 4},
        "flip_flop": {"batch": 1, "length": 8},
    }[function]
    with pytest.raises(ValueError, match=words):
        getattr(tasks, function)(jax.random.key(0), **(sizes | knobs))
