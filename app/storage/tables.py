"""The tables as the newest revision of the schema leaves them. Times are milliseconds since 1970 in UTC."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

metadata = MetaData()

# `nonce` is the random part of a prediction id: that it is the primary key is what makes a second feedback a double.
# `top` is a JSON array of the class indices predicted, best first; `actual` is a class index.
feedback = Table(
    "feedback",
    metadata,
    Column("nonce", LargeBinary, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("alias", Text),
    Column("predicted_ms", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("top", Text),
    Column("confidence", Double),
    Column("actual", BigInteger),
    Column("predicted_value", Double),
    Column("actual_value", Double),
    Column("rating", SmallInteger),
    CheckConstraint("length(nonce) = 10", name="feedback_nonce_length"),
    CheckConstraint("rating BETWEEN 1 AND 5", name="feedback_rating_range"),
    # The newest of a model, of a version, of a version under an alias; the last one also holds all that groups need.
    Index("feedback_by_model", "model", "received_ms"),
    Index("feedback_by_version", "model", "version", "received_ms"),
    Index("feedback_by_alias", "model", "version", "alias", "received_ms"),
    Index("feedback_by_time", "received_ms"),
)

# What one process (`writer`) counted of a version in a minute, or, once they are merged, all of them in an hour:
# `span_ms` is 60,000 or 3,600,000, and `minute_ms` where it begins. `parts` says of how many rows of minutes it is the
# sum; `counts` is JSON, by feature an array of counts.
request_counts = Table(
    "request_counts",
    metadata,
    Column("model", Text, primary_key=True),
    Column("minute_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("version", Text, primary_key=True),
    # "" where the caller named it, or a version.
    Column("alias", Text, primary_key=True),
    Column("span_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("writer", Text, primary_key=True),
    Column("parts", BigInteger, nullable=False),
    Column("counts", Text, nullable=False),
    # The oldest that are not merged, and the oldest that are.
    Index("request_counts_by_time", "span_ms", "minute_ms"),
)

bin_counts = Table(
    "bin_counts",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("minute_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("span_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("writer", Text, primary_key=True),
    Column("parts", BigInteger, nullable=False),
    Column("counts", Text, nullable=False),
    Index("bin_counts_by_time", "span_ms", "minute_ms"),
)

# Who does what only one process of all is to do, and until when.
leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)
