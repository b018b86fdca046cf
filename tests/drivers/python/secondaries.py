"""Reads with every read preference through the face of a replica set whose cluster's primary refuses reads.

Environment: RESHARD_URI, and RESHARD_OLD, the cluster behind.
"""

import os

from pymongo import MongoClient, WriteConcern
from pymongo.errors import NotPrimaryError, OperationFailure, PyMongoError
from pymongo.read_preferences import Nearest, Primary, PrimaryPreferred, Secondary, SecondaryPreferred

options = {"serverSelectionTimeoutMS": 20_000, "heartbeatFrequencyMS": 1_000}
client = MongoClient(os.environ["RESHARD_URI"], **options)
behind = MongoClient(os.environ["RESHARD_OLD"])
data = {"failCommands": ["find", "aggregate"], "errorCode": 13, "namespace": "shop.items"}

items = client["shop"].get_collection("items", write_concern=WriteConcern(w=3))
items.insert_many([{"_id": n} for n in range(100)])
behind.admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data})
try:
    try:
        items.find_one()
        raise AssertionError("the primary does not refuse reads")
    except OperationFailure as error:
        assert error.code == 13, error
    for preference in (Secondary(max_staleness=90), Secondary(), SecondaryPreferred(max_staleness=120)):
        there = items.with_options(read_preference=preference)
        # Cursors too: getMore must find its server.
        assert len(list(there.find().batch_size(7))) == 100, preference
        assert there.count_documents({}) == 100, preference
        assert len(there.distinct("_id")) == 100, preference
    for preference in (Primary(), PrimaryPreferred()):
        try:
            items.with_options(read_preference=preference).find_one()
            raise AssertionError(f"{preference} was not answered by the primary")
        except OperationFailure as error:
            assert error.code == 13, error
finally:
    behind.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
assert items.with_options(read_preference=Nearest(max_staleness=90)).find_one() is not None
# Drivers send a pipeline that writes to a secondary too, which has the primary do it.
items.with_options(read_preference=Secondary()).aggregate([{"$match": {"_id": {"$lt": 5}}}, {"$out": "copied"}])
assert client["shop"]["copied"].count_documents({}) == 5
assert len(client.secondaries) == 1 and client.primary not in client.secondaries, client.topology_description

# Straight to the address of the secondary, as tools connect.
host, port = next(iter(client.secondaries))
direct = MongoClient(host, port, directConnection=True, **options)
assert direct["shop"]["items"].find_one() is not None
try:
    direct["shop"]["items"].insert_one({"_id": "written to a secondary"})
    raise AssertionError("a secondary took a write")
except NotPrimaryError as error:
    assert error.details["code"] == 10107, error
# And by another name than the set's.
try:
    MongoClient(host, port, replicaSet="other", serverSelectionTimeoutMS=2_000).admin.command("ping")
    raise AssertionError("a set of another name was taken")
except PyMongoError as error:
    assert "other" in str(error), error
