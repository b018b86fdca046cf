"""The same as elections.py with the asynchronous client: tasks of one thread, and clients that come and go.

Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it says "ready" once it works, and
goes on until a line comes: then each write that was acknowledged counts once, and nobody has seen an error.
"""

import asyncio
import os
import sys

from pymongo import AsyncMongoClient

URI = os.environ["RESHARD_URI"]
WORKERS = 4
# So many more, each, once both clusters have their new primaries.
AFTERWARDS = 20


async def make():
    async with AsyncMongoClient(URI) as client:
        for name in ("items", "accounts", "orders", "stock"):
            await client["app"][name].insert_one({"_id": "seed"})


class Run:
    def __init__(self, client):
        self.items = client["app"]["items"]
        self.go = asyncio.Event()
        self.failures = []
        self.written = [0] * WORKERS
        self.met = 0

    async def until_the_end(self, turn, *arguments):
        """Calls `turn` until long enough after the word; the first error ends it."""
        left = AFTERWARDS
        while left > 0 and not self.failures:
            left -= self.go.is_set()
            # This client may go through a whole turn without letting another task run.
            await asyncio.sleep(0)
            try:
                await turn(*arguments)
            except Exception as error:  # Whatever it is, an application would have seen it.
                self.failures.append(f"{turn.__name__}: {error!r}")

    async def write(self, number):
        await self.items.update_one({"_id": f"count-{number}"}, {"$inc": {"n": 1}}, upsert=True)
        self.written[number] += 1
        inserted = (await self.items.insert_one({"by": number})).inserted_id
        assert await self.items.find_one({"_id": inserted}) is not None

    async def meet(self):
        """A client that does one thing, and goes."""
        async with AsyncMongoClient(URI) as visitor:
            assert await visitor["app"]["items"].find_one({"_id": "seed"}) is not None
        self.met += 1

    async def each_counts_once(self):
        for number, count in enumerate(self.written):
            found = (await self.items.find_one({"_id": f"count-{number}"}))["n"]
            if found != count:
                self.failures.append(f"worker {number}: {count} were acknowledged, {found} count")
            inserted = await self.items.count_documents({"by": number})
            if inserted != count:
                self.failures.append(f"worker {number}: {inserted} documents of {count}")


async def main():
    async with AsyncMongoClient(URI) as client:
        run = Run(client)
        turns = [run.until_the_end(run.write, number) for number in range(WORKERS)]
        tasks = asyncio.gather(*turns, run.until_the_end(run.meet), run.until_the_end(run.meet))
        while min(run.written) < 5 and not run.failures:
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        run.go.set()
        await tasks
        if not run.failures:
            await run.each_counts_once()
        print(f"{sum(run.written)} rounds, {run.met} visits")
        for failure in run.failures:
            print("FAILED", failure)
        return bool(run.failures)


sys.exit(asyncio.run(main() if "RESHARD_ACROSS" in os.environ else make()))
