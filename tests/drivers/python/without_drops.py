"""A plugin of pytest: in the suite's databases, what drops a collection empties it instead.

A collection of a running migration cannot be dropped, and the suite drops its collections before each test. It is
loaded in both columns, so both do the same.
"""

import os

from pymongo.errors import CollectionInvalid, OperationFailure
from pymongo.synchronous.collection import Collection
from pymongo.synchronous.database import Database
from pymongo.synchronous.mongo_client import MongoClient

DATABASES = os.environ["SUITE_DATABASES"].split(",")
NAMESPACE_EXISTS = 48
create, drop, drop_database = Database.create_collection, Collection.drop, MongoClient.drop_database


def emptied(collection, *words, **options):
    if collection.database.name not in DATABASES:
        return drop(collection, *words, **options)
    collection.delete_many({}, session=options.get("session"))
    try:
        collection.drop_indexes(session=options.get("session"))
    except OperationFailure as error:
        if error.code != 26:
            raise


def emptied_by_name(database, name, *words, **options):
    collection = name if isinstance(name, Collection) else database[name]
    return emptied(collection, session=options.get("session"))


def emptied_all(client, name, *words, **options):
    database = name if isinstance(name, Database) else client[name]
    if database.name not in DATABASES:
        return drop_database(client, name, *words, **options)
    for name in database.list_collection_names(filter={"type": "collection"}):
        if not name.startswith("system."):
            emptied(database[name])


def made(database, name, *words, **options):
    try:
        return create(database, name, *words, **options)
    except (CollectionInvalid, OperationFailure) as error:
        if database.name in DATABASES and (isinstance(error, CollectionInvalid) or error.code == NAMESPACE_EXISTS):
            return database[name]
        raise


Collection.drop, Database.drop_collection, MongoClient.drop_database = emptied, emptied_by_name, emptied_all
Database.create_collection = made
