// Retryable reads and writes, and clients that come and go, while the primaries of both clusters step down.
//
// Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it says "ready" once it works,
// and goes on until a line comes: then each write that was acknowledged counts once, and nobody has seen an error.

import { createInterface } from "node:readline/promises";
import { MongoClient } from "mongodb";

const { RESHARD_URI, RESHARD_ACROSS } = process.env;
const WORKERS = 4;
// So many more, each, once both clusters have their new primaries.
const AFTERWARDS = 20;

const client = new MongoClient(RESHARD_URI);
const app = client.db("app");
const items = app.collection("items");
if (!RESHARD_ACROSS) {
  for (const name of ["items", "accounts", "orders", "stock"]) {
    await app.collection(name).insertOne({ _id: "seed" });
  }
  await client.close();
  process.exit(0);
}

let go = false;
let visits = 0;
const failures = [];
const written = Array(WORKERS).fill(0);

async function untilTheEnd(name, turn) {
  let left = AFTERWARDS;
  while (left > 0 && failures.length === 0) {
    if (go) left -= 1;
    try {
      await turn();
    } catch (error) {
      // Whatever it is, an application would have seen it.
      failures.push(`${name}: ${error.stack}`);
    }
  }
}

async function write(number) {
  await items.updateOne({ _id: `count-${number}` }, { $inc: { n: 1 } }, { upsert: true });
  written[number] += 1;
  const { insertedId } = await items.insertOne({ by: number });
  if ((await items.findOne({ _id: insertedId })) === null) throw new Error("what was inserted is not there");
}

// A client that does one thing, and goes.
async function visit() {
  const visitor = new MongoClient(RESHARD_URI);
  const found = await visitor.db("app").collection("items").findOne({ _id: "seed" });
  await visitor.close();
  if (found === null) throw new Error("the seed is not there");
  visits += 1;
}

const running = written.map((_, number) => untilTheEnd(`worker ${number}`, () => write(number)));
running.push(untilTheEnd("visitor", visit), untilTheEnd("visitor", visit));
while (Math.min(...written) < 5 && failures.length === 0) await new Promise((done) => setTimeout(done, 10));
console.log("ready");
const lines = createInterface({ input: process.stdin });
await new Promise((done) => lines.once("line", done));
go = true;
await Promise.all(running);
for (const [number, count] of written.entries()) {
  const found = (await items.findOne({ _id: `count-${number}` })).n;
  if (found !== count) failures.push(`worker ${number}: ${count} were acknowledged, ${found} count`);
  const inserted = await items.countDocuments({ by: number });
  if (inserted !== count) failures.push(`worker ${number}: ${inserted} documents of ${count}`);
}
console.log(`${written.reduce((sum, count) => sum + count)} rounds, ${visits} visits`);
for (const failure of failures) console.log("FAILED", failure);
lines.close();
await client.close();
process.exit(failures.length === 0 ? 0 : 1);
