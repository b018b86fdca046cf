"""A change stream of a collection that moves: it ends, with an error that the driver does not resume from by itself.

Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it opens the stream while half of the
collection is written on new, says "ready", and reads on when a line comes: all is on new then.
"""

import os
import sys
import time

from pymongo import MongoClient, monitoring
from pymongo.errors import OperationFailure

FATAL = 280  # ChangeStreamFatalError


class Opened(monitoring.CommandListener):
    """Counts how often the driver opens a change stream."""

    count = 0

    def started(self, event):
        stages = event.command.get("pipeline", []) if event.command_name == "aggregate" else []
        Opened.count += any("$changeStream" in stage for stage in stages)

    def succeeded(self, event):
        pass

    failed = succeeded


client = MongoClient(os.environ["RESHARD_URI"], event_listeners=[Opened()])
items = client["app"]["items"]
if "RESHARD_ACROSS" not in os.environ:
    for name in ("items", "accounts", "orders", "stock"):
        client["app"][name].insert_one({"_id": "seed"})
    sys.exit(0)


def keys(stream, count):
    """The keys of so many inserts, within a minute."""
    seen, end = [], time.monotonic() + 60
    while len(seen) < count:
        event = stream.try_next()
        assert event or time.monotonic() < end, f"only {seen}"
        if event and event["operationType"] == "insert":
            seen.append(event["documentKey"]["_id"])
    return seen


stream = items.watch(max_await_time_ms=200)
items.insert_many([{"_id": f"half-{n}"} for n in range(20)])
# Also those that new has written appear.
assert sorted(keys(stream, 20)) == sorted(f"half-{n}" for n in range(20))
print("ready", flush=True)
sys.stdin.readline()
items.insert_one({"_id": "moved"})
end = time.monotonic() + 60
try:
    while time.monotonic() < end:
        stream.try_next()
    sys.exit("FAILED it goes on")
except OperationFailure as error:
    assert error.code == FATAL, error
    assert "startAtOperationTime" in str(error), error
assert Opened.count == 1, f"opened {Opened.count} times"
assert not stream.alive
# A new one is the application's to open.
with items.watch(max_await_time_ms=200) as stream:
    items.insert_one({"_id": "anew"})
    assert keys(stream, 1) == ["anew"]
print("the stream ended")
