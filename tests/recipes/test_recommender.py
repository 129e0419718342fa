"""The recommender: its descent against scikit-surprise's, its graph, its recipe and what is shipped."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from surprise import SVD, Dataset, Reader

from app import load
from app.errors import InvalidContent
from app.tensors import Array
from recipes.factorisation import Descent, Factorisation, factorise, independent_steps
from recipes.ranking import rate_lists, relevant_items
from recipes.ratings import Ratings, Truth, make_up, read_ratings, split, write_ratings
from recipes.recommender import main, root_mean_square_error
from recipes.recommender_card import TRUTH
from recipes.recommender_graph import to_onnx

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
GUIDE = ROOT / "docs" / "guides" / "recommender.md"
SMALL = Truth(users=40, items=30, fewest=8, most=20)
DESCENT = Descent(factors=5, epochs=8, rate=0.01, regularisation=0.02, seed=3)
SHIPPED = Descent(factors=4, epochs=60, rate=0.01, regularisation=0.02, seed=0)


@pytest.fixture(scope="module")
def shipped_split() -> tuple[Ratings, Ratings]:
    return split(make_up(TRUTH, 0).sorted(), 0.2, 0)


@pytest.fixture(scope="module")
def shipped_fit(shipped_split: tuple[Ratings, Ratings]) -> Factorisation:
    return factorise(shipped_split[0], SHIPPED)


def run(content: bytes, users: list[int]) -> tuple[Array, Array, Array]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    items, scores, known = session.run(["items", "scores", "known"], {"user": np.array(users, np.int64)})
    return items, scores, known


def surprise_of(path: Path, descent: Descent) -> SVD:
    """scikit-surprise trained on a file of ours, in the order of its lines."""
    reader = Reader(line_format="user item rating", sep="::", rating_scale=(-10, 10))
    algorithm = SVD(
        n_factors=descent.factors,
        n_epochs=descent.epochs,
        lr_all=descent.rate,
        reg_all=descent.regularisation,
        random_state=descent.seed,
    )
    return algorithm.fit(Dataset.load_from_file(str(path), reader).build_full_trainset())


def surprise_predictions(algorithm: SVD, users: list[int], items: list[int]) -> Array:
    pairs = [(user, item) for user in users for item in items]
    return np.array([algorithm.predict(str(user), str(item), clip=False).est for user, item in pairs])


def every_pair(users: list[int], items: list[int]) -> tuple[Array, Array]:
    return np.repeat(users, len(items)), np.tile(items, len(users))


@pytest.mark.parametrize("is_sorted", [True, False])
def test_predictions_equal_those_of_scikit_surprise(tmp_path: Path, is_sorted: bool) -> None:
    """For all pairs of users and items, one of each unknown; same seed, starting values and order of the ratings."""
    ratings = make_up(SMALL, 1)
    ratings = ratings.sorted() if is_sorted else ratings
    training, _ = split(ratings, 0.2, 1)
    write_ratings(tmp_path / "ratings.dat", training)
    algorithm = surprise_of(tmp_path / "ratings.dat", DESCENT)
    users, items = list(range(SMALL.users + 2)), list(range(SMALL.items + 2))
    ours = factorise(training, DESCENT).predict(*every_pair(users, items))
    theirs = surprise_predictions(algorithm, users, items)
    assert np.abs(ours - theirs).max() < 1e-10
    assert np.std(theirs) > 0.25


def test_held_out_predictions_equal_those_of_scikit_surprise(
    tmp_path: Path, shipped_split: tuple[Ratings, Ratings], shipped_fit: Factorisation
) -> None:
    """At the size of the shipped model, after all its epochs."""
    training, held_out = shipped_split
    write_ratings(tmp_path / "ratings.dat", training)
    algorithm = surprise_of(tmp_path / "ratings.dat", SHIPPED)
    pairs = zip(held_out.users.tolist(), held_out.items.tolist(), strict=True)
    theirs = np.array([algorithm.predict(str(user), str(item), clip=False).est for user, item in pairs])
    assert np.abs(shipped_fit.predict(held_out.users, held_out.items) - theirs).max() < 1e-10


def test_lists_equal_those_of_scikit_surprise(tmp_path: Path) -> None:
    """The graph in 32 bits: the same items in the same order, predicted ratings to 1e-5."""
    ratings = make_up(SMALL, 2).sorted()
    write_ratings(tmp_path / "ratings.dat", ratings)
    algorithm = surprise_of(tmp_path / "ratings.dat", DESCENT)
    users, all_items = [*range(1, SMALL.users + 1), 999], sorted(set(ratings.items.tolist()))
    items, scores, known = run(to_onnx(factorise(ratings, DESCENT), ratings, 10), users)
    for row, user in enumerate(users):
        unseen = sorted(set(all_items) - set(ratings.items[ratings.users == user].tolist()))
        theirs = surprise_predictions(algorithm, [user], unseen)
        best = np.argsort(-theirs)[:10]
        assert items[row].tolist() == np.array(unseen)[best].tolist()
        np.testing.assert_allclose(scores[row], theirs[best], atol=1e-5, rtol=0)
    assert known.tolist() == [True] * SMALL.users + [False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_steps_keep_the_order_of_what_depends(pairs: list[tuple[int, int]]) -> None:
    user, item = np.array(pairs).T
    steps = independent_steps(user, item)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(pairs)))
    step_of = {place: number for number, step in enumerate(steps) for place in step.tolist()}
    for later, (one, other) in enumerate(pairs):
        for earlier in range(later):
            if pairs[earlier][0] == one or pairs[earlier][1] == other:
                assert step_of[earlier] < step_of[later]


def test_known_factors_are_recovered() -> None:
    """What is left of the error is the noise; without noise the same seed gives what each rating would have been."""
    ratings, exact = make_up(TRUTH, 5), make_up(replace(TRUTH, noise_std=0), 5)
    assert np.array_equal(ratings.users, exact.users)
    training, held_out = split(ratings.sorted(), 0.2, 5)
    _, exact_held_out = split(exact.sorted(), 0.2, 5)
    fitted, biases = factorise(training, SHIPPED), factorise(training, SHIPPED, with_taste=False)
    assert root_mean_square_error(fitted, held_out) < 1.1 * TRUTH.noise_std
    assert root_mean_square_error(fitted, held_out) < 0.6 * root_mean_square_error(biases, held_out)
    found = fitted.predict(exact_held_out.users, exact_held_out.items)
    assert np.corrcoef(found, exact_held_out.values)[0, 1] > 0.98
    assert root_mean_square_error(fitted, exact_held_out) < 0.4 * TRUTH.noise_std


def test_descent_that_diverges_is_refused() -> None:
    with pytest.raises(InvalidContent, match=r"diverges with a rate of 0\.99; say a smaller one"):
        factorise(make_up(SMALL, 1), replace(DESCENT, rate=0.99, epochs=60))


def by_hand(user_ids: list[int], items: int) -> Factorisation:
    """Item i (id 10 i) is predicted 3 - i / 1000, and user u (place u) adds u."""
    return Factorisation(
        users=np.array(user_ids),
        items=10 * np.arange(items),
        mean=3.0,
        user_bias=np.arange(len(user_ids), dtype=np.float64),
        item_bias=-np.arange(items) / 1000,
        user_factors=np.zeros((len(user_ids), 1)),
        item_factors=np.ones((items, 1)),
    )


def test_lists_worked_out_by_hand() -> None:
    huge = 10**18 - 1
    seen = Ratings(np.array([huge, 5, 5, 5, 5]), np.array([0, 40, 0, 10, 20]), np.ones(5))
    users = [5, huge, 6, -3, 5]
    items, scores, known = run(to_onnx(by_hand([5, huge, 6], 5), seen, 3), users)
    assert items.tolist() == [[30, -1, -1], [10, 20, 30], [0, 10, 20], [0, 10, 20], [30, -1, -1]]
    none = -np.inf
    expected = [[2.997, none, none], [3.999, 3.998, 3.997], [5, 4.999, 4.998], [3, 2.999, 2.998], [2.997, none, none]]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert known.tolist() == [True, True, True, False, True]


def test_users_without_any_rating_alone() -> None:
    seen = Ratings(np.array([5]), np.array([0]), np.ones(1))
    items, _, known = run(to_onnx(by_hand([5], 3), seen, 2), [1, 2])
    assert (items.tolist(), known.tolist()) == ([[0, 10], [0, 10]], [False, False])


def test_more_items_than_two_bytes_count() -> None:
    count = 2**16 + 2
    seen = Ratings(np.full(count - 1, 5), 10 * np.arange(1, count), np.ones(count - 1))
    items, _, _ = run(to_onnx(by_hand([5], count), seen, 2), [5])
    assert items.tolist() == [[0, -1]]


def test_rows_of_a_batch_equal_the_users_alone() -> None:
    ratings = make_up(SMALL, 4)
    content = to_onnx(factorise(ratings, DESCENT), ratings, 5)
    users = [3, 99, 3, *range(40, 0, -1)]
    together, alone = run(content, users), [run(content, [user]) for user in users]
    for output in range(3):
        assert np.array_equal(together[output], np.concatenate([one[output] for one in alone]))


def test_measures_of_lists() -> None:
    """NDCG against scikit-learn's, over all items; precision and recall by counting."""
    random = np.random.default_rng(0)
    lists = np.array([random.permutation(12)[:4] for _ in range(30)])
    relevant = [set(random.choice(12, random.integers(1, 8), replace=False).tolist()) for _ in range(30)]
    found = rate_lists(lists, relevant)
    truth = np.array([[item in liked for item in range(12)] for liked in relevant], float)
    scores = np.zeros((30, 12))
    np.put_along_axis(scores, lists, [4.0, 3.0, 2.0, 1.0], axis=1)
    assert found.ndcg == pytest.approx(ndcg_score(truth, scores, k=4, ignore_ties=True))
    hits = [len(liked & set(row)) for row, liked in zip(lists.tolist(), relevant, strict=True)]
    assert found.precision == pytest.approx(np.mean(hits) / 4)
    assert found.recall == pytest.approx(np.mean([hit / len(liked) for hit, liked in zip(hits, relevant, strict=True)]))
    assert found.users == 30


def test_relevant_items_are_those_rated_well() -> None:
    held_out = Ratings(np.array([1, 1, 2, 1]), np.array([7, 8, 7, 9]), np.array([4.0, 5.0, 3.9, 1.0]))
    assert relevant_items(held_out, 4) == {1: {7, 8}}


FORMS = {
    "ratings.dat": "1::1193::5::978300760\n2::661::3.5::978302109\n",
    "u.data": "1\t1193\t5\t978300760\r\n2\t661\t3.5\t978302109\r\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n\n2,661,3.5,978302109\n",
    "other order": '\ufeff"timestamp","Rating","movieId","userId"\n0,5,1193,1\n0,3.5,661,2',
    "without times": "1::1193::5\n2::661::3.5",
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_movielens_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name].encode())
    ratings = read_ratings(path)
    assert (ratings.users.tolist(), ratings.items.tolist()) == ([1, 2], [1193, 661])
    assert ratings.values.tolist() == [5.0, 3.5]


BAD = {
    b"": r"holds no ratings; write one a line",
    b"userId,movieId,rating\n": r"holds no ratings",
    b"1 2 3\n": r"is not in MovieLens' format",
    b"1,2,3\n": r"line 1: a CSV file begins with the header .* lacks userid, movieid, rating",
    b"1::2::3\n\n1::3\n": r"line 3: has 2 fields separated by '::'",
    b"1::2::3\nann::2::3\n": r"line 2: 'ann' is no id; users and items are whole numbers",
    b"-1::2::3\n": r"line 1: '-1' is no id",
    b"1::9999999999999999999::3\n": r"line 1: '9999999999999999999' is no id",
    "1::²::3\n".encode(): r"line 1: '²' is no id",
    b"1::2::good\n": r"line 1: 'good' is no rating; write a number",
    b"1::2::nan\n": r"line 1: 'nan' is no rating; write a finite number",
    b"1::2::3\n2::2::3\n1::2::4\n": r"line 3: user 1 has rated item 2 in line 1 already",
    b"PK\x03\x04\xff\xfe": r"is no text file; unpack an archive first",
}


@pytest.mark.parametrize("content", BAD)
def test_ratings_that_are_none_name_the_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ratings.dat"
    path.write_bytes(content)
    with pytest.raises(InvalidContent, match=BAD[content]) as raised:
        read_ratings(path)
    assert str(raised.value).startswith(str(path))


def test_ratings_written_are_read(tmp_path: Path) -> None:
    ratings = make_up(SMALL, 0)
    write_ratings(tmp_path / "ratings.dat", ratings)
    again = read_ratings(tmp_path / "ratings.dat")
    assert np.array_equal(again.values, ratings.values)
    assert np.array_equal(again.users, ratings.users)
    assert np.array_equal(again.items, ratings.items)


def test_recipe_on_a_file_repeats_to_the_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratings = make_up(SMALL, 0)
    write_ratings(tmp_path / "ratings.dat", ratings)
    digests = []
    for run_of in ("first", "second"):
        arguments = (
            f"--models {tmp_path / run_of} --ratings {tmp_path / 'ratings.dat'} --name films --top-k 7 --epochs 5"
        )
        main(arguments.split())
        digests.append(hashlib.sha256((tmp_path / run_of / "films/1.0.0/model.onnx").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert re.match(r"films@1\.0\.0: RMSE 0\.\d+ on held out ratings", capsys.readouterr().out)
    model = load("films", models=tmp_path / "first")
    answer = model.predict([1, 2])
    assert isinstance(answer, dict)
    assert answer["items"].shape == (2, 7)
    card = (tmp_path / "first/films/1.0.0/README.md").read_text(encoding="utf-8")
    assert "of 30 items by 40 users: ratings.dat" in card
    assert str(tmp_path) not in card
    assert "Licence | unknown" in card


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--ratings missing.dat", r"missing\.dat: cannot be read"),
        ("--top-k 1000", r"--top-k 1000: there are 30 items"),
        ("--top-k 0", r"--top-k 0: say at least 1"),
        ("--held-out 1", r"--held-out 1\.0: is a share between 0 and 1"),
        ("--held-out 0.000001", r"are too few to hold out"),
        ("--relevant 99", r"--relevant 99\.0: no held out rating is as good"),
        ("--rate 2", r"--rate is between 0 and 1"),
        ("--rate 0.99", r"the descent diverges"),
        ("--name Films", r"--name Films, --version 1\.0\.0: write them as films and 1\.0\.0"),
        ("--name digits", r"digits@1\.0\.0 is in .* already; a version never changes"),
    ],
)
def test_recipe_that_is_refused_writes_nothing(tmp_path: Path, option: str, message: str) -> None:
    write_ratings(tmp_path / "ratings.dat", make_up(SMALL, 0))
    (tmp_path / "models/digits/1.0.0").mkdir(parents=True)
    arguments = f"--models {tmp_path / 'models'} --ratings {tmp_path / 'ratings.dat'} --name films --epochs 30 {option}"
    with pytest.raises(SystemExit, match=rf"error: .*{message}"):
        main(arguments.split())
    assert [path.name for path in tmp_path.glob("models/*/*")] == ["1.0.0"]


def test_training_again_gives_the_shipped_answers(
    shipped_split: tuple[Ratings, Ratings], shipped_fit: Factorisation
) -> None:
    """The last bits of weights differ across CPUs, and so may the order of two items that are as good."""
    training, held_out = shipped_split
    users = list(range(1, TRUTH.users + 1))
    items, scores, _ = run(to_onnx(shipped_fit, training, 10), users)
    shipped = load("recommender@1.0.0", models=MODELS).predict(users)
    assert isinstance(shipped, dict)
    assert np.mean(shipped["items"] == items) > 0.99
    np.testing.assert_allclose(shipped["scores"], scores, atol=1e-3)
    assert root_mean_square_error(shipped_fit, held_out) < 1.1 * TRUTH.noise_std


def test_shipped_lists_hold_nothing_that_was_rated(shipped_split: tuple[Ratings, Ratings]) -> None:
    training, _ = shipped_split
    rated = set(zip(training.users.tolist(), training.items.tolist(), strict=True))
    users = list(range(1, TRUTH.users + 1))
    answer = load("recommender@1.0.0", models=MODELS).predict(users)
    assert isinstance(answer, dict)
    listed = {(user, item) for user, row in zip(users, answer["items"].tolist(), strict=True) for item in row}
    assert len(listed) == 10 * len(users)
    assert not listed & rated


def test_shipped_golden_requests_are_of_known_users_and_another() -> None:
    requests = json.loads((MODELS / "recommender/1.0.0/golden/golden.json").read_bytes())["requests"]
    known = [request["outputs"]["known"] for request in requests]
    assert known == [[True]] * 5 + [[False]]
    assert all(len(request["outputs"]["items"][0]) == 10 for request in requests)


def test_shipped_version_is_small_and_says_of_whom_it_is() -> None:
    directory = MODELS / "recommender" / "1.0.0"
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 2_000_000
    assert "of no real people and no real films" in (directory / "README.md").read_text(encoding="utf-8")


def test_answers_of_the_guide_are_served(client: httpx.Client) -> None:
    """Each request of the guide gives the answer that stands below it."""
    text = GUIDE.read_text(encoding="utf-8")
    pairs = re.findall(r"curl http://127\.0\.0\.1:8000(\S+) .*?-d '(.*?)'\n```\n\n```json\n(.*?)```", text, re.DOTALL)
    assert [path for path, _, _ in pairs] == ["/predict", "/v2/models/recommender/infer"]
    for path, body, shown in pairs:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        expected, found = json.loads(shown), answer.json()
        assert {key: found[key] for key in expected if key != "outputs"} == {
            key: value for key, value in expected.items() if key != "outputs"
        }
        check_outputs(found["outputs"], expected["outputs"])


def test_recipe_of_the_guide_works(tmp_path: Path) -> None:
    (command,) = re.findall(r"^python (recipes/.*)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    write_ratings(tmp_path / "ratings.dat", make_up(SMALL, 0))
    subprocess.run([sys.executable, *command.split()], check=True, cwd=tmp_path, capture_output=True)
    assert load("films", models=tmp_path / "models").version == "1.0.0"


def check_outputs(found: object, expected: object) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert set(found) == set(expected)
        for key in expected:
            check_outputs(found[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_outputs(one, other)
    else:
        assert found == (pytest.approx(expected, abs=0.006) if isinstance(expected, float) else expected)


def test_user_that_is_no_number_is_refused(client: httpx.Client) -> None:
    for user in ("7", 7.5, None, [7]):
        answer = client.post("/predict", json={"model": "recommender", "inputs": [user]})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_tensor")


@pytest.mark.slow
def test_recipe_repeats_to_the_digest(tmp_path: Path) -> None:
    files = []
    for run_of in ("first", "second"):
        command = [sys.executable, str(ROOT / "recipes/recommender.py"), "--models", str(tmp_path / run_of)]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
        files.append((tmp_path / run_of / "recommender/1.0.0/model.onnx").read_bytes())
    assert files[0] == files[1]
