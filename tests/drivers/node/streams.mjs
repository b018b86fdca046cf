// A change stream of a collection that moves: it ends, with an error that the driver does not resume from by itself.
//
// Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it opens the stream while half of
// the collection is written on new, says "ready", and reads on when a line comes: all is on new then.

import assert from "node:assert";
import { createInterface } from "node:readline/promises";
import { MongoClient } from "mongodb";

const { RESHARD_URI, RESHARD_ACROSS } = process.env;
const FATAL = 280; // ChangeStreamFatalError
const client = new MongoClient(RESHARD_URI, { monitorCommands: true });
let opened = 0;
client.on("commandStarted", ({ commandName, command }) => {
  if (commandName === "aggregate" && command.pipeline.some((stage) => "$changeStream" in stage)) opened += 1;
});
const app = client.db("app");
const items = app.collection("items");
if (!RESHARD_ACROSS) {
  for (const name of ["items", "accounts", "orders", "stock"]) await app.collection(name).insertOne({ _id: "seed" });
  await client.close();
  process.exit(0);
}

// The keys of so many inserts, within a minute.
async function keys(stream, count) {
  const seen = [];
  for (const end = Date.now() + 60_000; seen.length < count; ) {
    const event = await stream.tryNext();
    assert.ok(event || Date.now() < end, `only ${seen}`);
    if (event?.operationType === "insert") seen.push(event.documentKey._id);
  }
  return seen;
}

const stream = items.watch([], { maxAwaitTimeMS: 200 });
// It is opened by its first look.
await stream.tryNext();
const half = Array.from({ length: 20 }, (_, n) => `half-${n}`);
await items.insertMany(half.map((_id) => ({ _id })));
// Also those that new has written appear.
assert.deepStrictEqual((await keys(stream, 20)).sort(), half.sort());
console.log("ready");
const lines = createInterface({ input: process.stdin });
await new Promise((done) => lines.once("line", done));
lines.close();
await items.insertOne({ _id: "moved" });
const failure = await (async () => {
  for (const end = Date.now() + 60_000; Date.now() < end; ) await stream.tryNext();
})().catch((error) => error);
assert.strictEqual(failure?.code, FATAL, `${failure}`);
assert.ok(failure.message.includes("startAtOperationTime"), failure.message);
assert.strictEqual(opened, 1, `opened ${opened} times`);
// A new one is the application's to open.
const anew = items.watch([], { maxAwaitTimeMS: 200 });
await anew.tryNext();
await items.insertOne({ _id: "anew" });
assert.deepStrictEqual(await keys(anew, 1), ["anew"]);
await anew.close();
await client.close();
console.log("the stream ended");
