"""A factorisation as one ONNX graph: from ids of users to the ids and predicted ratings of the items that they have not
rated, best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.tensors import Array
from recipes.factorisation import Factorisation
from recipes.ratings import Ratings

USER, ITEMS, SCORES, KNOWN = "user", "items", "scores", "known"
NO_ITEM = -1
OPSET, ML_OPSET, IR_VERSION = 21, 4, 10


def to_onnx(fitted: Factorisation, seen: Ratings, top_k: int) -> bytes:
    """`user` INT64 [n] to `items` INT64 [n, top_k], `scores` FP32 [n, top_k] and `known` BOOL [n].

    The items of a user in `seen` are not given. Where fewer than `top_k` others are left, the last items are NO_ITEM
    with a score of minus infinity. A user without ratings, who is not `known`, gets the items by μ + b_i.
    """
    constants = {**_weights(fitted), **_seen(fitted, seen), **_numbers(len(fitted.users), top_k)}
    graph = helper.make_graph(
        [*_predict(fitted.users), *_list_seen(), *_rank()],
        "recommender",
        [helper.make_tensor_value_info(USER, TensorProto.INT64, ["batch"])],
        [
            helper.make_tensor_value_info(ITEMS, TensorProto.INT64, ["batch", top_k]),
            helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", top_k]),
            helper.make_tensor_value_info(KNOWN, TensorProto.BOOL, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _weights(fitted: Factorisation) -> dict[str, Array]:
    """One row more for the users who are not known: of no bias, no taste."""
    nobody = np.zeros((1, fitted.user_factors.shape[1]))
    return {
        "mean_and_user_bias": (fitted.mean + np.append(fitted.user_bias, 0.0)).astype(np.float32),
        "item_bias": fitted.item_bias.astype(np.float32),
        "user_factors": np.vstack([fitted.user_factors, nobody]).astype(np.float32),
        "item_factors": fitted.item_factors.astype(np.float32),
        "item_ids": np.append(fitted.items, NO_ITEM),
    }


def _seen(fitted: Factorisation, seen: Ratings) -> dict[str, Array]:
    """The places of the items that each user has rated, one user after the other, and where each user's begin: 2 bytes
    a rating, while a table of users × items grows with both."""
    user_of = {user: place for place, user in enumerate(fitted.users.tolist())}
    item_of = {item: place for place, item in enumerate(fitted.items.tolist())}
    user = np.array([user_of[one] for one in seen.users.tolist()], np.int64)
    item = np.array([item_of[one] for one in seen.items.tolist()], np.int64)
    counts = np.bincount(user, minlength=len(fitted.users) + 1)
    return {
        "seen": item[np.lexsort((item, user))].astype(np.uint16 if len(fitted.items) <= 2**16 else np.int32),
        "seen_count": counts.astype(np.int64),
        "seen_start": (np.cumsum(counts) - counts).astype(np.int64),
    }


def _numbers(users: int, top_k: int) -> dict[str, Array]:
    return {
        "nobody": np.array(users, np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "first": np.array([0], np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "last": np.array([-1], np.int64),
        "top_k": np.array([top_k], np.int64),
        "worst": np.array([-np.inf], np.float32),
    }


def _predict(users: Array) -> list[onnx.NodeProto]:
    """r̂ of each item, [n, items]. One product for each user, not one of all: so the sums do not depend on who else is
    in the batch."""
    places = helper.make_node(
        "LabelEncoder",
        [USER],
        ["row"],
        name="row",
        domain="ai.onnx.ml",
        keys_int64s=users.tolist(),
        values_int64s=list(range(len(users))),
        default_int64=len(users),
    )
    return [
        places,
        _node("Gather", ["mean_and_user_bias", "row"], "user_part"),
        _node("Unsqueeze", ["user_part", "axis_1"], "user_column"),
        _node("Add", ["user_column", "item_bias"], "biases"),
        _node("Gather", ["user_factors", "row"], "p"),
        _node("Unsqueeze", ["p", "axis_2"], "p_column"),
        _node("MatMul", ["item_factors", "p_column"], "taste_column"),
        _node("Squeeze", ["taste_column", "axis_2"], "taste"),
        _node("Add", ["biases", "taste"], "predicted"),
    ]


def _list_seen() -> list[onnx.NodeProto]:
    """(row, item) of all that the users have rated, [ratings, 2].

    The users' lists are put one after the other: a 1 at the place where each ends makes of a running sum the row of
    each place, and the place in `seen` is that of the row's list plus how far into it.
    """
    return [
        _node("Gather", ["seen_count", "row"], "count"),
        _node("Gather", ["seen_start", "row"], "start"),
        _node("CumSum", ["count", "zero"], "end"),
        _node("ReduceSum", ["count"], "total", keepdims=0),
        _node("Range", ["zero", "total", "one"], "place"),
        _node("Add", ["total", "axis_1"], "places"),
        _zeros("places", "no_ends"),
        _node("Shape", [USER], "rows"),
        _node("Expand", ["axis_1", "rows"], "one_each"),
        _node("ScatterElements", ["no_ends", "end", "one_each"], "ends", axis=0, reduction="add"),
        _node("CumSum", ["ends", "zero"], "rows_and_end"),
        _node("Slice", ["rows_and_end", "first", "last"], "row_of"),
        _node("Sub", ["end", "count"], "begin"),
        _node("Sub", ["start", "begin"], "shift"),
        _node("Gather", ["shift", "row_of"], "shift_of"),
        _node("Add", ["place", "shift_of"], "place_in_seen"),
        _node("Gather", ["seen", "place_in_seen"], "seen_small"),
        _node("Cast", ["seen_small"], "item_of", to=TensorProto.INT64),
        _node("Unsqueeze", ["row_of", "axis_1"], "row_column"),
        _node("Unsqueeze", ["item_of", "axis_1"], "item_column"),
        _node("Concat", ["row_column", "item_column"], "pairs", axis=1),
    ]


def _rank() -> list[onnx.NodeProto]:
    """The seen ones made worst, the best `top_k` of the others taken, and their ids looked up."""
    return [
        _node("Shape", ["place"], "pair_count"),
        _node("Expand", ["worst", "pair_count"], "worst_each"),
        _node("ScatterND", ["predicted", "pairs", "worst_each"], "unseen"),
        _node("TopK", ["unseen", "top_k"], [SCORES, "best"], axis=1, largest=1, sorted=1),
        _node("IsInf", [SCORES], "is_none"),
        _node("Where", ["is_none", "last", "best"], "place_or_last"),
        _node("Gather", ["item_ids", "place_or_last"], ITEMS),
        _node("Equal", ["row", "nobody"], "is_nobody"),
        _node("Not", ["is_nobody"], KNOWN),
    ]


def _zeros(shape: str, output: str) -> onnx.NodeProto:
    value = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    return helper.make_node("ConstantOfShape", [shape], [output], name=output, value=value)


def _node(kind: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> onnx.NodeProto:
    """Named after its first output."""
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    return helper.make_node(kind, list(inputs), names, name=names[0], **attributes)
