"""MovieLens 100k as ranking queries: a user, what she liked before, 200 films, which she liked.

100,000 ratings of 943 users and 1,682 films. The wheel of `recbole` ships them; nothing of it is
imported, its files are read where they lie (`pip install --no-deps recbole==1.2.1`).
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

USERS, ITEMS, GENRES = 944, 1683, 19  # user 0 and item 0 are nobody and nothing
CANDIDATES, HISTORY = 200, 20
LIKED = 4  # stars, of 5
FEATURES = ("likes", "mean_stars", "year", "same_genres", "liked_together", "age")


@dataclass(frozen=True)
class Query:
    """user [1, 1], history [1, HISTORY], item [N, 1], features [N, F], label [N]: 1 is liked."""

    user: NDArray[np.int64]
    history: NDArray[np.int64]
    item: NDArray[np.int64]
    features: NDArray[np.float64]
    label: NDArray[np.int64]


def queries() -> tuple[list[Query], list[Query]]:
    """To train and to test: of each user a fifth of her time each, the last one to test."""
    ratings = _ratings()
    users = [ratings[ratings[:, 0] == user] for user in range(1, USERS)]
    return _queries(users, 0.6, 0.8, CANDIDATES // 2), _queries(users, 0.8, 1.0, CANDIDATES)


def _queries(users: list[NDArray[np.int64]], lo: float, hi: float, size: int) -> list[Query]:
    """What a user rated between two shares of her time, among films that she never rated.

    All features are of the time before.
    """
    rng = np.random.default_rng(size)
    past = _Past([own[: int(lo * len(own))] for own in users])
    found = []
    for own in users:
        asked = own[int(lo * len(own)) : int(hi * len(own))][:size]
        liked = asked[asked[:, 2] >= LIKED, 1]
        if not len(liked):
            continue
        never = np.setdiff1d(np.arange(1, ITEMS), own[:, 1])
        others = rng.choice(never, size - len(asked), replace=False)
        item = rng.permutation(np.concatenate([asked[:, 1], others]))
        user = int(own[0, 0])
        found.append(
            Query(
                np.array([[user]]), past.history[user][None], item[:, None],
                past.features(user, item), np.isin(item, liked).astype(np.int64),
            )
        )  # fmt: skip
    return found


class _Past:
    """What is known of users and films from ratings until then."""

    def __init__(self, users: list[NDArray[np.int64]]) -> None:
        self.history = np.zeros((USERS, HISTORY), np.int64)
        likes = np.zeros((USERS, ITEMS))
        for own in users:
            liked = own[own[:, 2] >= LIKED, 1]
            likes[own[:1, 0], :] = np.bincount(liked, minlength=ITEMS)
            last = liked[-HISTORY:]
            self.history[own[:1, 0], : len(last)] = last
        rated = np.concatenate(users)
        count = np.bincount(rated[:, 1], minlength=ITEMS)
        stars = np.bincount(rated[:, 1], rated[:, 2], minlength=ITEMS)
        self.likes = np.log1p(likes.sum(0))
        self.mean_stars = (stars + 3.5) / (count + 1)
        together = likes.T @ likes
        self.together = together / np.sqrt(1 + np.outer(together.diagonal(), together.diagonal()))
        self.year, self.genres = _films()
        self.age = _ages()

    def features(self, user: int, item: NDArray[np.int64]) -> NDArray[np.float64]:
        history = self.history[user]
        taste = self.genres[history].sum(0)
        columns = (
            self.likes[item], self.mean_stars[item], self.year[item],
            self.genres[item] @ taste / (1 + taste.sum()),
            self.together[np.ix_(item, history)].sum(1), np.full(len(item), self.age[user]),
        )  # fmt: skip
        return np.stack(columns, 1)


def _ratings() -> NDArray[np.int64]:
    """user, item, stars; by time."""
    rows = [[int(r[0]), int(r[1]), int(r[2]), int(r[3])] for r in _rows("inter")]
    return np.array(sorted(rows, key=lambda row: (row[3], row[0], row[1])))[:, :3]


def _films() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """year [ITEMS], genres [ITEMS, GENRES]."""
    year, genres = np.full(ITEMS, 1995.0), np.zeros((ITEMS, GENRES))
    known: dict[str, int] = {}
    for item, _, released, names in _rows("item"):
        if released.isdigit():  # of one it is not known
            year[int(item)] = float(released)
        for name in names.split():
            genres[int(item), known.setdefault(name, len(known))] = 1
    return year, genres


def _ages() -> NDArray[np.float64]:
    age = np.zeros(USERS)
    for user, years, *_ in _rows("user"):
        age[int(user)] = float(years)
    return age


def _rows(kind: str) -> Iterator[list[str]]:
    spec = importlib.util.find_spec("recbole")  # finds it, without running it
    if spec is None or spec.origin is None:
        raise SystemExit("the data are in recbole's wheel: pip install --no-deps recbole==1.2.1")
    folder = Path(spec.origin).parent / "dataset_example" / "ml-100k"
    with (folder / f"ml-100k.{kind}").open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(lines)
        yield from lines
