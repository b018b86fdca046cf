"""Retryable reads and writes, and clients that come and go, while the primaries of both clusters step down.

Environment: RESHARD_URI, RESHARD_OLD. Without RESHARD_ACROSS it only makes what is to move. Else it says "ready" once it
works, and goes on until a line comes: then each write that was acknowledged counts once, and nobody has seen an error.
"""

import os
import sys
import threading

from pymongo import MongoClient

URI = os.environ["RESHARD_URI"]
WORKERS = 4
# So many more, each, once both clusters have their new primaries.
AFTERWARDS = 20

client = MongoClient(URI)
items = client["app"]["items"]
if "RESHARD_ACROSS" not in os.environ:
    for name in ("items", "accounts", "orders", "stock"):
        client["app"][name].insert_one({"_id": "seed"})
    sys.exit(0)

go = threading.Event()
failures = []
written = [0] * WORKERS
met = [0]


def until_the_end(turn):
    """Calls `turn` until long enough after the word; the first error ends it."""

    def run():
        left = AFTERWARDS
        while left > 0 and not failures:
            left -= go.is_set()
            try:
                turn()
            except Exception as error:  # Whatever it is, an application would have seen it.
                failures.append(f"{turn.__name__}: {error!r}")

    return run


def worker(number):
    def write():
        items.update_one({"_id": f"count-{number}"}, {"$inc": {"n": 1}}, upsert=True)
        written[number] += 1
        inserted = items.insert_one({"by": number}).inserted_id
        assert items.find_one({"_id": inserted}) is not None

    return write


def meet():
    """A client that does one thing, and goes."""
    with MongoClient(URI) as visitor:
        assert visitor["app"]["items"].find_one({"_id": "seed"}) is not None
    met[0] += 1


turns = [worker(number) for number in range(WORKERS)] + [meet, meet]
threads = [threading.Thread(target=until_the_end(turn)) for turn in turns]
for thread in threads:
    thread.start()
while min(written) < 5 and not failures:
    threading.Event().wait(0.01)
print("ready", flush=True)
sys.stdin.readline()
go.set()
for thread in threads:
    thread.join()
for number, count in enumerate(written):
    found = items.find_one({"_id": f"count-{number}"})["n"]
    if found != count:
        failures.append(f"worker {number}: {count} were acknowledged, {found} count")
    inserted = items.count_documents({"by": number})
    if inserted != count:
        failures.append(f"worker {number}: {inserted} documents of {count}")
print(f"{sum(written)} rounds, {met[0]} visits")
for failure in failures:
    print("FAILED", failure)
sys.exit(bool(failures))
