"""An application with pymongo. It knows no proxy, only what the phase of a migration refuses.

Environment: RESHARD_URI, RESHARD_PHASE (plain, dual, reads, half, moved), RESHARD_OLD, RESHARD_NEW, and
RESHARD_ACROSS: the phase that begins in the middle of this run; it says "ready" then and reads a line.
"""

import asyncio
import datetime
import decimal
import os
import sys
import threading
import time
import traceback
import uuid

import gridfs
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from pymongo import (
    ASCENDING,
    AsyncMongoClient,
    DeleteMany,
    DeleteOne,
    InsertOne,
    MongoClient,
    ReplaceOne,
    ReturnDocument,
    UpdateMany,
    UpdateOne,
    WriteConcern,
    monitoring,
)
from pymongo.errors import BulkWriteError, CollectionInvalid, DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

PHASES = ["plain", "dual", "reads", "half", "moved"]
PHASE = os.environ["RESHARD_PHASE"]
ACROSS = os.environ.get("RESHARD_ACROSS")
MIGRATES = PHASE != "plain"
MIXED = PHASE == "half"
MOVED = PHASE == "moved"
REFUSED = 115
RUN = ""  # Of the check that runs.



class Pools(monitoring.ConnectionPoolListener):
    """Counts how often a driver gives up all its connections."""

    cleared = 0

    def pool_cleared(self, event):
        Pools.cleared += 1

    def _ignore(self, event):
        pass

    pool_created = pool_ready = pool_closed = connection_created = connection_ready = connection_closed = _ignore
    connection_check_out_started = connection_check_out_failed = connection_checked_out = connection_checked_in = _ignore


client = MongoClient(
    os.environ["RESHARD_URI"], serverSelectionTimeoutMS=10_000, appname="driver-test", event_listeners=[Pools()]
)
app = client["app"]
# `items` is always written by _id, so that its writes can be divided. `accounts` and `orders` move together and in
# one step; `stock` is written to both clusters and never moves; the others are no part of a migration.
items, accounts, orders, stock = app["items"], app["accounts"], app["orders"], app["stock"]
tags, feed = app["tags"], app["feed"]
checks = []


def check(function):
    checks.append(function)
    return function


def equal(seen, wanted, what="value"):
    assert seen == wanted, f"{what}: saw {seen!r}, wanted {wanted!r}"


def name(suffix):
    return f"{RUN}-{suffix}"


def refused(act, *words):
    """What the migration does not allow fails at once, and says why."""
    try:
        act()
    except OperationFailure as error:
        equal(error.code, REFUSED, f"code of {error}")
        for word in words:
            assert word in str(error), f"{word!r} is not in {error}"
        return
    raise AssertionError("it was not refused")


def duplicate(act):
    try:
        act()
    except DuplicateKeyError as error:
        return error
    raise AssertionError("no duplicate key error")


def until(what, look, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen = look()
        if seen:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


@check
def one_document():
    key = name("one")
    equal(items.insert_one({"_id": key, "run": RUN, "n": 1}).inserted_id, key)
    equal(items.find_one({"_id": key})["n"], 1)
    result = items.update_one({"_id": key}, {"$inc": {"n": 2}, "$push": {"list": {"$each": [1, 2, 3]}}})
    equal((result.matched_count, result.modified_count, result.upserted_id), (1, 1, None))
    result = items.update_one({"_id": key}, {"$set": {"list.$[big]": 9}}, array_filters=[{"big": {"$gt": 1}}])
    equal(result.modified_count, 1)
    result = items.update_one({"_id": key}, [{"$set": {"sum": {"$sum": "$list"}}}])
    equal(result.modified_count, 1)
    equal(items.find_one({"_id": key}), {"_id": key, "run": RUN, "n": 3, "list": [1, 9, 9], "sum": 19})
    equal(items.replace_one({"_id": key}, {"run": RUN, "n": 7}).modified_count, 1)
    equal(items.find_one({"_id": key}, {"n": 1, "_id": 0}), {"n": 7})
    equal(items.delete_one({"_id": key}).deleted_count, 1)
    equal(items.find_one({"_id": key}), None)
    made = items.insert_one({"run": RUN}).inserted_id
    assert isinstance(made, ObjectId)
    equal(items.delete_one({"_id": made}).deleted_count, 1)


@check
def many_with_a_duplicate():
    a, b, c, d = (name(f"dup-{letter}") for letter in "abcd")
    documents = [{"_id": key, "run": RUN} for key in (a, b, b, c)]
    for ordered, inserted in ((True, 2), (False, 3)):
        try:
            items.insert_many([dict(one) for one in documents], ordered=ordered)
            raise AssertionError("no error")
        except BulkWriteError as error:
            equal(error.details["nInserted"], inserted, "nInserted")
            errors = error.details["writeErrors"]
            equal([(one["index"], one["code"]) for one in errors], [(2, 11000)], "writeErrors")
            equal(errors[0]["keyValue"], {"_id": b})
        equal(items.count_documents({"_id": {"$in": [a, b, c]}}), inserted, "stored")
        equal(items.delete_many({"_id": {"$in": [a, b, c, d]}}).deleted_count, inserted)
    equal(duplicate(lambda: [items.insert_one({"_id": a, "run": RUN}) for _ in range(2)]).code, 11000)
    equal(items.delete_one({"_id": a}).deleted_count, 1)


@check
def bulk():
    keys = [name(f"bulk-{n}") for n in range(12)]
    items.insert_many({"_id": key, "run": RUN, "bulk": 1, "n": n} for n, key in enumerate(keys))
    for ordered in (True, False):
        result = items.bulk_write(
            [
                InsertOne({"_id": name("bulk-x"), "run": RUN}),
                UpdateOne({"_id": keys[0]}, {"$set": {"ordered": ordered}}),
                UpdateOne({"_id": keys[1]}, {"$set": {"ordered": ordered}}),
                ReplaceOne({"_id": keys[2]}, {"run": RUN, "bulk": 1, "ordered": ordered}),
                UpdateOne({"_id": name("bulk-y")}, {"$set": {"run": RUN}}, upsert=True),
                UpdateOne({"_id": name("bulk-z")}, {"$set": {"run": RUN}}, upsert=True),
                UpdateMany({"run": RUN, "bulk": 1}, {"$set": {"seen": ordered}}),
                DeleteOne({"_id": name("bulk-x")}),
                DeleteMany({"_id": {"$in": [name("bulk-y"), name("bulk-z")]}}),
            ],
            ordered=ordered,
        )
        equal(result.inserted_count, 1)
        equal(result.matched_count, 3 + 12)
        equal(result.modified_count, 3 + 12)
        equal(result.upserted_ids, {4: name("bulk-y"), 5: name("bulk-z")})
        equal(result.deleted_count, 3)
    equal(items.count_documents({"run": RUN, "seen": False}), 12)
    items.delete_many({"run": RUN})
    equal(items.count_documents({"run": RUN}), 0)


@check
def many_by_filter():
    items.insert_many({"_id": name(f"many-{n}"), "run": RUN, "n": n} for n in range(60))
    result = items.update_many({"run": RUN, "n": {"$lt": 40}}, {"$inc": {"n": 1000}})
    equal((result.matched_count, result.modified_count), (40, 40))
    result = items.update_many({"run": RUN}, {"$set": {"n": 1}}, upsert=False)
    equal(result.matched_count, 60)
    equal(items.update_many({"run": "nobody"}, {"$set": {"n": 1}}).matched_count, 0)
    equal(items.delete_many({"run": RUN, "n": 1}).deleted_count, 60)


@check
def find_and_modify():
    key = name("fam")
    by_key = {"_id": key}
    equal(items.find_one_and_update(by_key, {"$set": {"n": 1}}), None)
    made = items.find_one_and_update(
        by_key, {"$set": {"n": 1, "run": RUN}}, upsert=True, return_document=ReturnDocument.AFTER
    )
    equal(made, {"_id": key, "n": 1, "run": RUN})
    equal(items.find_one_and_update(by_key, {"$inc": {"n": 1}}, {"n": 1, "_id": 0}), {"n": 1})
    replaced = items.find_one_and_replace(by_key, {"run": RUN, "n": 9}, return_document=ReturnDocument.AFTER)
    equal(replaced["n"], 9)
    if MIXED:
        refused(lambda: items.find_one_and_delete({"run": RUN, "n": 9}, sort=[("n", 1)]), "_id")
    equal(items.find_one_and_delete(by_key)["n"], 9)
    equal(items.find_one(by_key), None)
    accounts.insert_many({"_id": name(f"fam-{n}"), "run": RUN, "email": name(f"fam-{n}"), "n": n} for n in range(3))
    equal(accounts.find_one_and_update({"run": RUN}, {"$inc": {"n": 10}}, sort=[("n", -1)])["n"], 2)
    equal(accounts.find_one_and_delete({"run": RUN}, sort=[("n", -1)], projection={"_id": 0, "n": 1}), {"n": 12})
    equal(accounts.find_one_and_delete({"run": "nobody"}), None)
    equal(accounts.delete_many({"run": RUN}).deleted_count, 2)


@check
def upserts():
    key = name("upsert")
    result = items.update_one({"_id": key}, {"$set": {"run": RUN}, "$setOnInsert": {"made": 1}}, upsert=True)
    equal((result.matched_count, result.upserted_id), (0, key))
    result = items.replace_one({"_id": key}, {"run": RUN, "made": 2}, upsert=True)
    equal((result.matched_count, result.modified_count, result.upserted_id), (1, 1, None))
    if MIXED:
        refused(lambda: items.update_one({"run": RUN, "word": "x"}, {"$set": {"n": 1}}, upsert=True), "_id")
    unkeyed = lambda: accounts.update_one({"run": RUN, "email": key}, {"$set": {"n": 1}}, upsert=True)
    assert isinstance(unkeyed().upserted_id, ObjectId)
    equal(unkeyed().matched_count, 1)
    for collection in (accounts, items):
        many = lambda: collection.update_many({"run": RUN, "email": name("y")}, {"$set": {"n": 1}}, upsert=True)
        made = many().upserted_id
        assert isinstance(made, ObjectId)
        equal(many().matched_count, 1)
        equal(collection.find_one({"_id": made})["email"], name("y"))
    equal(accounts.delete_one({"run": RUN, "n": 1}).deleted_count, 1)
    equal(accounts.delete_many({"run": RUN}).deleted_count, 1)
    items.delete_many({"run": RUN})


@check
def cursors():
    items.insert_many({"_id": name(f"cursor-{n:03}"), "run": RUN, "n": n} for n in range(500))
    found = items.find({"run": RUN}).sort("n", -1).batch_size(17)
    equal([one["n"] for one in found], list(range(499, -1, -1)), "find")
    piped = items.aggregate([{"$match": {"run": RUN}}, {"$sort": {"n": 1}}], batchSize=23)
    equal([one["n"] for one in piped], list(range(500)), "aggregate")
    page = items.find({"run": RUN}).sort("n", ASCENDING).skip(100).limit(40).batch_size(7)
    equal([one["n"] for one in page], list(range(100, 140)), "a page")
    early = items.find({"run": RUN}).batch_size(5)
    next(early)
    early.close()
    # Several at once, each read in turn.
    many = [iter(items.find({"run": RUN, "n": {"$mod": [5, n]}}).sort("n", 1).batch_size(3)) for n in range(5)]
    seen = [[next(cursor)["n"] for cursor in many] for _ in range(100)]
    equal(seen, [[5 * row + n for n in range(5)] for row in range(100)])
    equal(len(list(items.find_raw_batches({"run": RUN}, batch_size=250))), 2)
    explained = items.find({"run": RUN}).explain()
    assert "queryPlanner" in explained and explained["ok"] == 1, explained
    equal(items.delete_many({"run": RUN}).deleted_count, 500)


@check
def aggregates():
    items.insert_many({"_id": name(f"agg-{n}"), "run": RUN, "n": n, "tag": f"t{n % 3}"} for n in range(30))
    tags.insert_many({"_id": f"t{n}", "label": f"label {n}"} for n in range(3))
    grouped = items.aggregate(
        [
            {"$match": {"run": RUN}},
            {"$group": {"_id": "$tag", "count": {"$sum": 1}, "most": {"$max": "$n"}}},
            {"$sort": {"_id": 1}},
        ]
    )
    equal([(one["_id"], one["count"], one["most"]) for one in grouped], [("t0", 10, 27), ("t1", 10, 28), ("t2", 10, 29)])
    equal(sorted(items.distinct("tag", {"run": RUN})), ["t0", "t1", "t2"])
    equal(items.count_documents({"run": RUN, "n": {"$gte": 10}}), 20)
    equal(items.count_documents({"run": RUN}, skip=5, limit=10), 10)
    assert items.estimated_document_count() >= 30
    equal(items.distinct("n", {"_id": name("agg-7")}), [7])

    def joined(source, stages):
        return list(source.aggregate(stages))

    lookup = [
        {"$match": {"run": RUN}},
        {"$lookup": {"from": "tags", "localField": "tag", "foreignField": "_id", "as": "tags"}},
        {"$sort": {"n": 1}},
    ]
    back = [
        {"$lookup": {"from": "items", "localField": "_id", "foreignField": "tag", "as": "items"}},
        {"$match": {"items.run": RUN}},
    ]
    nested = [
        {"$limit": 1},
        {"$lookup": {"from": "feed", "as": "x", "pipeline": [{"$unionWith": {"coll": "items"}}]}},
    ]
    if MIXED or MOVED:
        # Both collections would have to be on one cluster.
        refused(lambda: joined(items, lookup))
        refused(lambda: joined(tags, back))
        refused(lambda: joined(tags, nested))
    else:
        equal([one["tags"][0]["label"] for one in joined(items, lookup)], [f"label {n % 3}" for n in range(30)])
        equal([len([i for i in one["items"] if i["run"] == RUN]) for one in joined(tags, back)], [10, 10, 10])
        assert joined(tags, nested)[0]["x"]
    own = [
        {"$match": {"_id": name("agg-4")}},
        {"$lookup": {"from": "items", "localField": "tag", "foreignField": "tag", "as": "same"}},
    ]
    if MIXED:
        refused(lambda: joined(items, own))
    else:
        equal(len([one for one in joined(items, own)[0]["same"] if one["run"] == RUN]), 10)
    out = [{"$match": {"run": RUN}}, {"$out": "out"}]
    into = [{"$merge": {"into": "items"}}]
    if MIGRATES:
        # Into a collection that moves: past the proxy's eyes.
        refused(lambda: joined(tags, into), "migration")
        refused(lambda: joined(tags, [{"$out": "items"}]), "migration")
        refused(lambda: joined(accounts, [{"$merge": "accounts"}]), "migration")
    if MIXED or MOVED:
        refused(lambda: joined(items, out))
    else:
        equal(joined(items, out), [])
        equal(app["out"].count_documents({}), 30)
        app["out"].drop()
    collated = items.find({"run": RUN.upper(), "tag": "T1"}, collation={"locale": "en", "strength": 2})
    equal(len(list(collated)), 10, "by collation")
    tags.drop()
    items.delete_many({"run": RUN})


@check
def causal_sessions():
    with client.start_session(causal_consistency=True) as session:
        for n in range(25):
            key = name(f"causal-{n}")
            items.insert_one({"_id": key, "run": RUN}, session=session)
            assert items.find_one({"_id": key}, session=session), f"write {n} was not read"
            other = items.find_one({"_id": name(f"causal-{(n * 7) % (n + 1)}")}, session=session)
            assert other, f"an earlier write was not read after {n}"
        assert session.operation_time is not None
        equal(items.count_documents({"run": RUN}, session=session), 25)
        secondary = items.with_options(read_preference=ReadPreference.SECONDARY_PREFERRED)
        assert secondary.find_one({"_id": name("causal-3")}, session=session)
    majority = items.with_options(
        read_concern=ReadConcern("majority"), write_concern=WriteConcern(w="majority", j=True, wtimeout=10_000)
    )
    equal(majority.delete_many({"run": RUN}).deleted_count, 25)


def broken(command, namespace, how=None):
    """The next such command on each cluster fails: it loses its connection before it runs, unless `how` says otherwise."""
    for side in ("RESHARD_OLD", "RESHARD_NEW"):
        with MongoClient(os.environ[side], directConnection=True) as backend:
            data = {"failCommands": [command], "namespace": namespace, **(how or {"closeConnection": True})}
            backend.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)


def repaired():
    for side in ("RESHARD_OLD", "RESHARD_NEW"):
        with MongoClient(os.environ[side], directConnection=True) as backend:
            backend.admin.command("configureFailPoint", "failCommand", mode="off")


@check
def broken_connections_are_not_seen():
    key = name("retry")
    try:
        broken("insert", "app.items")
        items.insert_one({"_id": key, "run": RUN, "n": 0})
        for _ in range(3):
            broken("update", "app.items")
            items.update_one({"_id": key}, {"$inc": {"n": 1}})
        broken("findAndModify", "app.items")
        equal(items.find_one_and_update({"_id": key}, {"$inc": {"n": 1}})["n"], 3)
        broken("find", "app.items")
        equal(items.find_one({"_id": key})["n"], 4)
        broken("aggregate", "app.items")
        equal(items.count_documents({"_id": key}), 1)
        broken("insert", "app.feed")
        feed.insert_one({"_id": key})
        broken("delete", "app.items")
        equal(items.delete_one({"_id": key}).deleted_count, 1)
    finally:
        repaired()


@check
def failures_of_servers_are_not_seen():
    """Codes of servers that step down, shut down or recover, as drivers retry them; also after a write was made."""
    labels = {"errorLabels": ["RetryableWriteError"]}
    codes = [10107, 13435, 11600, 11602, 91, 189, 6, 7, 89, 262, 9001]
    ways = [{"errorCode": code, **labels} for code in codes]
    ways += [{"writeConcernError": {"code": code, "errmsg": "x"}, **labels} for code in (91, 11600)]
    cleared = Pools.cleared
    try:
        for n, how in enumerate(ways):
            by_id = {"_id": name(f"fail-{n}")}
            broken("insert", "app.items", how)
            items.insert_one({**by_id, "run": RUN, "n": 0})
            broken("update", "app.items", how)
            items.update_one(by_id, {"$inc": {"n": 1}})
            broken("findAndModify", "app.items", how)
            equal(items.find_one_and_update(by_id, {"$inc": {"n": 1}})["n"], 1, f"{how}")
            if "errorCode" in how:
                read = {"errorCode": how["errorCode"]}
                broken("find", "app.items", read)
                equal(items.find_one(by_id)["n"], 2, f"{how}")
                broken("aggregate", "app.items", read)
                equal(items.count_documents(by_id), 1)
            broken("delete", "app.items", how)
            equal(items.delete_one(by_id).deleted_count, 1, f"{how}")
            repaired()
    finally:
        repaired()
    equal(Pools.cleared, cleared, "times that the driver gave up its connections")


@check
def transactions():
    a, b = name("a"), name("b")
    accounts.insert_many(
        [{"_id": a, "run": RUN, "email": a, "balance": 100}, {"_id": b, "run": RUN, "email": b, "balance": 0}]
    )
    error = duplicate(lambda: accounts.insert_one({"run": RUN, "email": a}))
    equal(error.details["keyPattern"], {"email": 1})

    def transfer(session):
        accounts.update_one({"_id": a}, {"$inc": {"balance": -30}}, session=session)
        accounts.update_one({"email": b}, {"$inc": {"balance": 30}}, session=session)
        equal(accounts.find_one({"_id": a}, session=session)["balance"], 70)
        return [one["balance"] for one in accounts.find({"run": RUN}, session=session).sort("_id", 1)]

    with client.start_session() as session:
        equal(session.with_transaction(transfer), [70, 30])
        # Seen by others after the commit.
        equal(accounts.find_one({"email": b})["balance"], 30)
        session.start_transaction()
        accounts.delete_one({"_id": a}, session=session)
        equal(accounts.count_documents({"run": RUN}, session=session), 1)
        session.abort_transaction()
        equal(accounts.count_documents({"run": RUN}), 2)
        # A unique index inside a transaction ends it.
        session.start_transaction()
        duplicate(lambda: accounts.insert_one({"_id": name("c"), "run": RUN, "email": a}, session=session))
        session.abort_transaction()
        # A commit may be repeated.
        session.start_transaction()
        accounts.insert_one({"_id": name("c"), "run": RUN, "email": name("c")}, session=session)
        session.commit_transaction()
        session.commit_transaction()
        equal(accounts.find_one({"_id": name("c")})["email"], name("c"))
        # An empty one.
        session.start_transaction()
        session.commit_transaction()
        # With snapshot reads, and over several batches.
        session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=WriteConcern("majority"))
        equal(len(list(accounts.find({"run": RUN}, session=session).batch_size(2))), 3)
        session.commit_transaction()
        # A collection that moved together with one that did not.
        with session.start_transaction():
            accounts.update_one({"_id": a}, {"$inc": {"balance": 1}}, session=session)
            both = lambda: feed.insert_one({"_id": name("ledger")}, session=session)
            if MOVED:
                refused(both, "transaction")
                session.abort_transaction()
            else:
                both()
        equal(feed.count_documents({"_id": name("ledger")}), 0 if MOVED else 1)
        equal(accounts.find_one({"_id": a})["balance"], 70 if MOVED else 71)
        try:
            with session.start_transaction():
                feed.insert_one({"_id": name("ledger-2")}, session=session)
                accounts.update_one({"_id": a}, {"$inc": {"balance": 1}}, session=session)
            assert not MOVED
        except OperationFailure as error:
            assert MOVED and error.code == REFUSED, error
        equal(feed.count_documents({"_id": name("ledger-2")}), 0 if MOVED else 1)
        # Of a collection whose writes are divided.
        if MIXED:
            session.start_transaction()
            refused(lambda: items.insert_one({"_id": name("tx"), "run": RUN}, session=session), "transactions")
            session.abort_transaction()
            session.start_transaction()
            accounts.update_one({"_id": b}, {"$inc": {"balance": 1}}, session=session)
            refused(lambda: items.find_one({"_id": "nothing"}, session=session), "transaction")
            session.abort_transaction()
            equal(accounts.find_one({"_id": b})["balance"], 30)
            equal(items.find_one({"_id": name("tx")}), None)
        # Of two collections that move together.
        def order(session):
            accounts.update_one({"_id": a}, {"$inc": {"balance": -5}}, session=session)
            orders.insert_one({"_id": name("order"), "run": RUN}, session=session)
            return [one["_id"] for one in orders.find({"run": RUN}, session=session)]

        equal(session.with_transaction(order), [name("order")])
        equal(orders.delete_many({"run": RUN}).deleted_count, 1)
        # Of one that moves and one of another migration, which stays.
        for first, second in ((accounts, stock), (stock, accounts)):
            session.start_transaction()
            first.insert_one({"_id": name("across"), "email": name("across"), "run": RUN}, session=session)
            then = lambda: second.insert_one({"_id": name("across"), "email": name("across"), "run": RUN}, session=session)
            if MOVED:
                refused(then, "transaction")
                session.abort_transaction()
            else:
                then()
                session.commit_transaction()
            for collection in (first, second):
                equal(collection.delete_many({"_id": name("across")}).deleted_count, 0 if MOVED else 1)
    # Two that meet: one is told to try again, and does.
    def bump(session):
        balance = accounts.find_one({"_id": a}, session=session)["balance"]
        accounts.update_one({"_id": a}, {"$set": {"balance": balance + 1}}, session=session)

    before = accounts.find_one({"_id": a})["balance"]

    def worker():
        with client.start_session() as own:
            for _ in range(5):
                own.with_transaction(bump)

    threads = [threading.Thread(target=worker) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    equal(accounts.find_one({"_id": a})["balance"], before + 15)
    equal(accounts.delete_many({"run": RUN}).deleted_count, 3)


@check
def snapshot_sessions():
    accounts.insert_one({"_id": name("snap"), "run": RUN, "email": name("snap")})
    with client.start_session(snapshot=True) as session:
        equal(accounts.count_documents({"run": RUN}, session=session), 1)
        accounts.insert_one({"_id": name("snap-2"), "run": RUN, "email": name("snap-2")})
        equal(accounts.count_documents({"run": RUN}, session=session), 1)
    equal(accounts.delete_many({"run": RUN}).deleted_count, 2)


def watched(collection, key):
    with collection.watch([{"$match": {"documentKey._id": key}}], max_await_time_ms=500) as stream:
        assert stream.alive
        collection.insert_one({"_id": key, "run": RUN})
        event = until("the change event", stream.try_next)
        equal((event["operationType"], event["fullDocument"]["_id"]), ("insert", key))
        token = stream.resume_token
        collection.update_one({"_id": key}, {"$set": {"n": 1}})
        event = until("the second event", stream.try_next)
        equal(event["operationType"], "update")
    with collection.watch([{"$match": {"documentKey._id": key}}], resume_after=token) as stream:
        equal(until("the event again", stream.try_next)["operationType"], "update")
    collection.delete_one({"_id": key})


@check
def change_streams():
    watched(feed, name("watch"))
    if not MIXED:
        watched(items, name("watch"))


@check
def indexes():
    for collection in (items, app[name("indexed")]):
        made = collection.create_index([("run", 1), (name("field"), -1)], name=name("index"), sparse=True)
        equal(made, name("index"))
        equal(collection.create_index([("run", 1), (name("field"), -1)], name=name("index"), sparse=True), made)
        information = collection.index_information()
        equal(information[made]["key"], [("run", 1), (name("field"), -1)])
        assert information[made]["sparse"]
        assert "_id_" in [one["name"] for one in collection.list_indexes()]
        equal(len(list(collection.find({"run": RUN}).hint(made))), 0)
        collection.drop_index(made)
        assert made not in collection.index_information()
    app[name("indexed")].drop()
    assert "email_1" in accounts.index_information()


@check
def without_acknowledgement():
    quiet = items.with_options(write_concern=WriteConcern(w=0))
    assert not quiet.insert_one({"_id": name("quiet"), "run": RUN}).acknowledged
    until("the quiet insert", lambda: items.find_one({"_id": name("quiet")}))
    quiet.update_one({"_id": name("quiet")}, {"$set": {"n": 5}})
    until("the quiet update", lambda: items.find_one({"_id": name("quiet"), "n": 5}))
    quiet.bulk_write([DeleteOne({"_id": name("quiet")})])
    until("the quiet delete", lambda: not items.find_one({"_id": name("quiet")}))


@check
def grid_fs():
    files = gridfs.GridFS(app)
    content = os.urandom(1_000_000)
    stored = files.put(content, filename=name("file"))
    equal(files.get(stored).read() == content, True, "the file's content")
    equal(files.list(), [name("file")])
    files.delete(stored)
    assert not files.exists(stored)
    app["fs.files"].drop()
    app["fs.chunks"].drop()


@check
def files_that_migrate():
    """Files whose collections move, with the unique index of their chunks."""
    bucket = gridfs.GridFSBucket(app, "media", chunk_size_bytes=100_000)
    contents = [os.urandom(size) for size in (0, 1, 100_000, 750_000)]
    stored = [bucket.upload_from_stream(name(f"file-{n}"), content) for n, content in enumerate(contents)]
    for file, content in zip(stored, contents):
        assert bucket.open_download_stream(file).read() == content, "the file's content"
    part = bucket.open_download_stream(stored[3])
    part.seek(250_000)
    equal(part.read(1000) == contents[3][250_000:251_000], True, "a part of the file")
    bucket.rename(stored[1], name("renamed"))
    equal([file.filename for file in bucket.find({"_id": stored[1]})], [name("renamed")])
    with bucket.open_upload_stream(name("given-up")) as upload:
        upload.write(contents[3])
        upload.abort()
    equal(app["media.chunks"].count_documents({"files_id": upload._id}), 0)
    duplicate(lambda: app["media.chunks"].insert_one({"files_id": stored[3], "n": 0, "data": b""}))
    for file in stored[:3]:
        bucket.delete(file)
    # The last one stays, for the comparison at the end and for the phases to come.
    for past in PHASES[: PHASES.index(PHASE)]:
        kept = f"py-{past}-{ACROSS or 'run'}-{files_that_migrate.__name__}-file-3"
        equal(len(bucket.open_download_stream_by_name(kept).read()), 750_000, kept)


@check
def asynchronously():
    asyncio.run(asynchronous())


async def asynchronous():
    own = AsyncMongoClient(os.environ["RESHARD_URI"], serverSelectionTimeoutMS=10_000, maxPoolSize=5)
    theirs = own["app"]["items"]
    try:
        async def one(n):
            by_id = {"_id": name(f"async-{n:03}")}
            await theirs.insert_one({**by_id, "run": RUN, "n": n})
            equal((await theirs.update_one(by_id, {"$inc": {"n": 1000}})).modified_count, 1)
            equal((await theirs.find_one(by_id))["n"], n + 1000)

        # More at once than there are connections.
        await asyncio.gather(*(one(n) for n in range(40)))
        found = theirs.find({"run": RUN}).sort("n", 1).batch_size(7)
        equal([one["n"] async for one in found], [1000 + n for n in range(40)])
        grouped = await theirs.aggregate([{"$match": {"run": RUN}}, {"$group": {"_id": None, "sum": {"$sum": "$n"}}}])
        equal((await grouped.to_list())[0]["sum"], 40 * 1000 + 39 * 20)
        result = await theirs.bulk_write([DeleteOne({"_id": name("async-000")}), InsertOne({"_id": name("x"), "run": RUN})])
        equal((result.deleted_count, result.inserted_count), (1, 1))
        # A read that is given up closes its connection, and no other one's.
        slow = theirs.find({"_id": name("async-001"), "$where": "sleep(5000) || true"}).to_list()
        try:
            await asyncio.wait_for(slow, 0.2)
            raise AssertionError("it was not slow")
        except asyncio.TimeoutError:
            pass
        equal((await theirs.find_one({"_id": name("async-002")}))["n"], 1002)
        async with own.start_session() as session:
            async with await session.start_transaction():
                await own["app"]["accounts"].insert_one({"_id": name("a"), "email": name("a")}, session=session)
            await session.start_transaction()
            await own["app"]["accounts"].insert_one({"_id": name("b"), "email": name("b")}, session=session)
            equal((await own["app"]["accounts"].delete_one({"_id": name("a")}, session=session)).deleted_count, 1)
            await session.abort_transaction()
        equal(await own["app"]["accounts"].find_one({"_id": name("b")}), None, "what an aborted transaction wrote")
        equal((await own["app"]["accounts"].delete_one({"_id": name("a")})).deleted_count, 1)
        await failures_of_servers_are_not_seen_by(theirs)
        async with await own["app"]["feed"].watch([{"$match": {"documentKey._id": name("w")}}]) as stream:
            await own["app"]["feed"].insert_one({"_id": name("w")})
            equal((await stream.next())["operationType"], "insert")
        await own["app"]["feed"].delete_one({"_id": name("w")})
        bucket = gridfs.AsyncGridFSBucket(own["app"], "media")
        stored = await bucket.upload_from_stream(name("async-file"), b"x" * 300_000)
        equal(len(await (await bucket.open_download_stream(stored)).read()), 300_000)
        await bucket.delete(stored)
        equal((await theirs.delete_many({"run": RUN})).deleted_count, 40)
    finally:
        await own.close()


async def failures_of_servers_are_not_seen_by(theirs):
    labels = {"errorLabels": ["RetryableWriteError"]}
    ways = [{"closeConnection": True}, *({"errorCode": code, **labels} for code in (10107, 91, 11602, 89))]

    async def fail(command, how):
        await asyncio.to_thread(broken, command, "app.items", how)

    try:
        for n, how in enumerate(ways):
            by_id = {"_id": name(f"async-fail-{n}")}
            await fail("insert", how)
            await theirs.insert_one({**by_id, "n": 0})
            await fail("update", how)
            await theirs.update_one(by_id, {"$inc": {"n": 1}})
            await fail("findAndModify", how)
            equal((await theirs.find_one_and_update(by_id, {"$inc": {"n": 1}}))["n"], 1, f"{how}")
            await fail("find", how)
            equal((await theirs.find_one(by_id))["n"], 2, f"{how}")
            await fail("delete", how)
            equal((await theirs.delete_one(by_id)).deleted_count, 1, f"{how}")
            await asyncio.to_thread(repaired)
    finally:
        await asyncio.to_thread(repaired)


@check
def large_documents():
    big = "x" * 10_000_000
    items.insert_one({"_id": name("big"), "run": RUN, "big": big})
    assert items.find_one({"_id": name("big")})["big"] == big, "the large document"
    items.update_one({"_id": name("big")}, {"$set": {"more": 1}})
    equal(len(items.find_one({"_id": name("big")})["big"]), 10_000_000)
    # One message of 30 MB.
    items.insert_many([{"_id": name(f"big-{n}"), "run": RUN, "big": big} for n in range(3)])
    equal([len(one["big"]) for one in items.find({"_id": {"$gte": name("big-0"), "$lte": name("big-9")}})], [10_000_000] * 3)
    try:
        items.insert_one({"_id": name("huge"), "run": RUN, "big": big + big})
        raise AssertionError("20 MB were taken")
    except Exception as error:  # The driver refuses before it sends.
        assert type(error).__name__ in ("DocumentTooLarge", "WriteError"), error
    equal(items.delete_many({"run": RUN}).deleted_count, 4)
    # Many small ones.
    items.insert_many([{"_id": name(f"small-{n}"), "run": RUN} for n in range(2_000)])
    equal(items.count_documents({"run": RUN}), 2_000)
    equal(items.delete_many({"run": RUN}).deleted_count, 2_000)


@check
def ids_of_all_kinds():
    numbers = 1_000_000 * (1 + PHASES.index(PHASE))
    keys = [
        ObjectId(), name("text"), numbers, Int64(numbers + (1 << 40)), numbers + 0.5, Decimal128(f"{numbers}.25"),
        Binary(b"\x00" + RUN.encode()), Binary.from_uuid(uuid.uuid4()), {"run": RUN, "n": 1}, {"run": RUN, "n": Int64(2)},
        datetime.datetime(2024, 5, 1 + PHASES.index(PHASE), 12, 30), Timestamp(numbers, 3), Code("f()" + RUN), "",
        None, True, MinKey(), MaxKey(), {}, "ключ-" + RUN, float("inf"), -0.0,
    ]
    for key in keys:
        equal(items.insert_one({"_id": key, "run": RUN}).acknowledged, True)
        found = items.find_one({"_id": key})
        assert found is not None, f"_id {key!r} was not found"
        equal(items.update_one({"_id": key}, {"$set": {"seen": 1}}).modified_count, 1, f"updates of {key!r}")
    duplicate(lambda: items.insert_one({"_id": float(numbers)}))
    duplicate(lambda: items.insert_one({"_id": Decimal128(str(numbers))}))
    duplicate(lambda: items.insert_one({"_id": 0}))
    equal(items.find_one({"_id": Int64(numbers)})["seen"], 1)
    equal(items.find_one({"_id": decimal_of(numbers)})["seen"], 1)
    equal(items.count_documents({"run": RUN, "seen": 1}), len(keys))
    for key in keys:
        equal(items.delete_one({"_id": key}).deleted_count, 1, f"deletions of {key!r}")
    equal(items.count_documents({"run": RUN}), 0)
    try:
        accounts.insert_one({"_id": Regex("x")})
        raise AssertionError("a regular expression was taken as _id")
    except OperationFailure as error:
        assert error.code != REFUSED, error


def decimal_of(number):
    return Decimal128(decimal.Decimal(number))


@check
def collections():
    other = app[name("other")]
    other.insert_one({"_id": 1})
    assert name("other") in app.list_collection_names()
    other.rename(name("renamed"))
    equal(app[name("renamed")].count_documents({}), 1)
    app[name("renamed")].drop()
    capped = app.create_collection(name("capped"), capped=True, size=100_000)
    capped.insert_many([{"_id": n} for n in range(3)])
    from pymongo import CursorType

    with capped.find(cursor_type=CursorType.TAILABLE_AWAIT) as tail:
        equal([next(tail)["_id"] for _ in range(3)], [0, 1, 2])
        capped.insert_one({"_id": 3})
        equal(next(tail)["_id"], 3)
    capped.drop()
    assert name("capped") not in app.list_collection_names()
    client.drop_database("scratch")
    client["scratch"]["x"].insert_one({"_id": 1})
    assert "scratch" in client.list_database_names()
    client.drop_database("scratch")
    assert {"items", "accounts"} <= set(app.list_collection_names())
    equal(app.command("collStats", "accounts")["ns"], "app.accounts")
    assert app.command("dbStats")["ok"] == 1
    try:
        app.create_collection("accounts", check_exists=False)
        raise AssertionError("made twice")
    except (CollectionInvalid, OperationFailure) as error:
        assert getattr(error, "code", 48) in (48, None), error
    if MIGRATES:
        for act in (items.drop, accounts.drop, lambda: client.drop_database("app"), lambda: items.rename("elsewhere")):
            refused(act, "migration", "complete or abort")
        refused(lambda: app["feed"].rename("items", dropTarget=True), "migration")
        assert "items" in app.list_collection_names()


@check
def the_server():
    assert client.admin.command("ping")["ok"] == 1
    hello = client.admin.command("hello")
    assert hello["isWritablePrimary"] and hello["maxBsonObjectSize"] == 16 * 1024 * 1024, hello
    assert client.server_info()["versionArray"]
    assert client.admin.command("serverStatus")["ok"] == 1
    assert client.admin.command("connectionStatus")["ok"] == 1
    try:
        client.admin.command("noSuchCommand")
        raise AssertionError("an unknown command was taken")
    except OperationFailure as error:
        equal(error.code, 59)
    try:
        items.update_one({"_id": 1}, {"$nonsense": 1})
        raise AssertionError("nonsense was taken")
    except OperationFailure as error:
        equal(error.code, 9)
    try:
        list(items.find({"$where": "sleep(2000) || true"}).max_time_ms(100)) if items.find_one() else None
    except OperationFailure as error:
        equal(error.code, 50)


@check
def what_was_kept():
    """Documents of all earlier phases are there, and this one leaves some."""
    for collection, keep in ((items, {}), (accounts, {"email": 1})):
        for past in PHASES[: PHASES.index(PHASE)]:
            for n in range(20):
                kept = collection.find_one({"_id": f"py-kept-{past}-{n}"})
                assert kept and kept["n"] == n * 2, f"{collection.name} {past} {n}: {kept}"
        documents = [{"_id": f"py-kept-{PHASE}-{n}", "n": n} for n in range(20)]
        for document in documents:
            document.update({field: document["_id"] for field in keep})
        collection.insert_many(documents)
        for document in documents:
            collection.update_one({"_id": document["_id"]}, {"$inc": {"n": document["n"]}})


def across():
    """Cursors, sessions and change streams that are open while the phase changes."""
    kept = app["long"]
    for collection in (items, accounts, kept):
        collection.insert_many(
            {"_id": name(f"long-{n:03}"), "run": RUN, "n": n, "email": name(f"long-{n:03}")} for n in range(300)
        )
    cursors = [collection.find({"run": RUN}).sort("n", 1).batch_size(11) for collection in (items, accounts, kept)]
    cursors.append(items.aggregate([{"$match": {"run": RUN}}, {"$sort": {"n": 1}}], batchSize=13))
    for cursor in cursors:
        equal([next(cursor)["n"] for _ in range(30)], list(range(30)))
    session = client.start_session(causal_consistency=True)
    items.insert_one({"_id": name("session"), "run": RUN, "n": -1}, session=session)
    stream = feed.watch([{"$match": {"documentKey._id": name("after")}}], max_await_time_ms=500)
    equal(stream.try_next(), None)
    print("ready", flush=True)
    stop = threading.Event()
    acknowledged = []

    def work():
        # An application that does not stop for a migration: no error may reach it.
        number = 0
        while not stop.is_set():
            key = name(f"work-{number % 50}")
            items.update_one({"_id": key}, {"$inc": {"count": 1}, "$set": {"work": RUN}}, upsert=True)
            accounts.update_one({"_id": key}, {"$inc": {"count": 1}, "$set": {"email": key}}, upsert=True)
            found = items.find_one({"_id": key})
            assert found and found["count"] == number // 50 + 1, f"{key}: {found} after {number}"
            number += 1
        acknowledged.append(number)

    failures = []

    def guarded():
        try:
            work()
        except Exception:
            failures.append(traceback.format_exc())

    thread = threading.Thread(target=guarded)
    thread.start()
    sys.stdin.readline()
    time.sleep(0.5)
    stop.set()
    thread.join()
    assert not failures, failures[0]
    for collection in (items, accounts):
        keys = {"_id": {"$in": [name(f"work-{n}") for n in range(50)]}}
        equal(sum(one["count"] for one in collection.find(keys)), acknowledged[0], f"updates of {collection.name}")
        collection.delete_many(keys)
    for cursor in cursors:
        equal([one["n"] for one in cursor], list(range(30, 300)))
    assert items.find_one({"_id": name("session")}, session=session), "a causal session lost its write"
    items.update_one({"_id": name("session")}, {"$set": {"n": -2}}, session=session)
    equal(items.find_one({"_id": name("session")}, session=session)["n"], -2)
    session.end_session()
    feed.insert_one({"_id": name("after")})
    until("the event of the open stream", stream.try_next)
    stream.close()
    feed.delete_one({"_id": name("after")})
    for collection in (items, accounts):
        assert collection.delete_many({"run": RUN}).deleted_count >= 300
    kept.drop()


def prepare():
    if PHASE == "plain" and not ACROSS:
        accounts.create_index("email", unique=True)
        items.create_index("run")
        orders.create_index("run")
        stock.create_index("run")
        feed.insert_one({"_id": "first"})


def main():
    global RUN
    prepare()
    wanted = sys.argv[1:]
    failed = 0
    for function in [across] if ACROSS else checks:
        if wanted and function.__name__ not in wanted:
            continue
        RUN = f"py-{PHASE}-{ACROSS or 'run'}-{function.__name__}"
        begun = time.monotonic()
        try:
            function()
            print(f"ok {function.__name__} {time.monotonic() - begun:.2f} s", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED in phase {PHASE}: {function.__name__}\n{traceback.format_exc()}", flush=True)
    client.close()
    sys.exit(1 if failed else 0)


main()
