// Retryable reads and writes, and clients that come and go, while the primaries of both clusters step down.
//
// Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it says "ready" once it works,
// and goes on until a line comes: then each write that was acknowledged counts once, and nobody has seen an error.
// With the argument "mongoose" all that is done by models of mongoose.

import { createInterface } from "node:readline/promises";
import { MongoClient } from "mongodb";
import mongoose from "mongoose";

const { RESHARD_URI, RESHARD_ACROSS } = process.env;
const WORKERS = 4;
// So many more, each, once both clusters have their new primaries.
const AFTERWARDS = 20;

// What is done here, by the driver or by a model.
async function openDriver() {
  const client = await new MongoClient(RESHARD_URI).connect();
  const items = client.db("app").collection("items");
  return {
    add: (_id) => items.updateOne({ _id }, { $inc: { n: 1 } }, { upsert: true }),
    insert: async (document) => (await items.insertOne(document)).insertedId,
    find: (_id) => items.findOne({ _id }),
    count: (filter) => items.countDocuments(filter),
    close: () => client.close(),
  };
}

async function openModel() {
  const connection = await mongoose.createConnection(RESHARD_URI, { dbName: "app", autoCreate: false }).asPromise();
  const { Mixed } = mongoose.Schema.Types;
  const schema = new mongoose.Schema({ _id: Mixed, n: Number, by: Number }, { versionKey: false });
  const Item = connection.model("Item", schema, "items");
  return {
    add: (_id) => Item.updateOne({ _id }, { $inc: { n: 1 } }, { upsert: true }),
    insert: async (document) => (await new Item({ _id: new mongoose.Types.ObjectId(), ...document }).save())._id,
    find: (_id) => Item.findOne({ _id }).lean(),
    count: (filter) => Item.countDocuments(filter),
    close: () => connection.close(),
  };
}

const open = process.argv.includes("mongoose") ? openModel : openDriver;
if (!RESHARD_ACROSS) {
  const client = new MongoClient(RESHARD_URI);
  for (const name of ["items", "accounts", "orders", "stock"]) {
    await client.db("app").collection(name).insertOne({ _id: "seed" });
  }
  await client.close();
  process.exit(0);
}

const items = await open();
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
  await items.add(`count-${number}`);
  written[number] += 1;
  const _id = await items.insert({ by: number });
  if ((await items.find(_id)) === null) throw new Error("what was inserted is not there");
}

// A client that does one thing, and goes.
async function visit() {
  const visitor = await open();
  const found = await visitor.find("seed");
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
  const found = (await items.find(`count-${number}`)).n;
  if (found !== count) failures.push(`worker ${number}: ${count} were acknowledged, ${found} count`);
  const inserted = await items.count({ by: number });
  if (inserted !== count) failures.push(`worker ${number}: ${inserted} documents of ${count}`);
}
console.log(`${written.reduce((sum, count) => sum + count)} rounds, ${visits} visits`);
for (const failure of failures) console.log("FAILED", failure);
lines.close();
await items.close();
process.exit(failures.length === 0 ? 0 : 1);
