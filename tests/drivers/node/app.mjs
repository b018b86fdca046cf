// An application with the driver for Node and with mongoose. It knows no proxy, only what the phase of a migration
// refuses. The environment is that of python/app.py.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";

import {
  Binary, BSONType, Decimal128, Double, GridFSBucket, Int32, Long, MaxKey, MinKey, MongoClient, MongoServerError,
  ObjectId, ReadPreference, Timestamp, UUID,
} from "mongodb";
import mongoose from "mongoose";

const PHASES = ["plain", "dual", "reads", "half", "moved"];
const { RESHARD_URI, RESHARD_PHASE: PHASE, RESHARD_ACROSS: ACROSS, RESHARD_OLD, RESHARD_NEW } = process.env;
const MIGRATES = PHASE !== "plain";
const MIXED = PHASE === "half";
const MOVED = PHASE === "moved";
let run = "";

const client = new MongoClient(RESHARD_URI, { serverSelectionTimeoutMS: 10_000, appName: "driver-test" });
const app = client.db("app");
const [items, accounts, orders, stock, tags, feed] = ["items", "accounts", "orders", "stock", "tags", "feed"].map(
  (name) => app.collection(name),
);

const name = (suffix) => `${run}-${suffix}`;
const range = (count) => Array.from({ length: count }, (_, n) => n);

async function refused(act, ...words) {
  await assert.rejects(act, (error) => {
    assert.equal(error.code, 115, `code of ${error}`);
    for (const word of words) assert.ok(error.message.includes(word), `"${word}" is not in ${error.message}`);
    return true;
  });
}

const duplicate = (act) => assert.rejects(act, (error) => error.code === 11000 && error instanceof MongoServerError);

async function until(what, look, seconds = 20) {
  const end = Date.now() + seconds * 1000;
  while (Date.now() < end) {
    const seen = await look();
    if (seen) return seen;
    await sleep(50);
  }
  throw new Error(`waited ${seconds} s for ${what}`);
}

async function remove(collection, count) {
  const { deletedCount } = await collection.deleteMany({ run });
  if (count !== undefined) assert.equal(deletedCount, count, `documents of ${run} in ${collection.collectionName}`);
}

const checks = {
  async oneDocument() {
    const _id = name("one");
    assert.equal((await items.insertOne({ _id, run, n: 1 })).insertedId, _id);
    const updated = await items.updateOne({ _id }, { $inc: { n: 2 }, $push: { list: { $each: [1, 5] } } });
    assert.deepEqual([updated.matchedCount, updated.modifiedCount, updated.upsertedId], [1, 1, null]);
    await items.updateOne({ _id }, { $set: { "list.$[big]": 9 } }, { arrayFilters: [{ big: { $gt: 2 } }] });
    await items.updateOne({ _id }, [{ $set: { sum: { $sum: "$list" } } }]);
    assert.deepEqual(await items.findOne({ _id }), { _id, run, n: 3, list: [1, 9], sum: 10 });
    assert.equal((await items.replaceOne({ _id }, { run, n: 7 })).modifiedCount, 1);
    assert.deepEqual(await items.findOne({ _id }, { projection: { n: 1, _id: 0 } }), { n: 7 });
    assert.equal((await items.deleteOne({ _id })).deletedCount, 1);
    assert.equal(await items.findOne({ _id }), null);
    const { insertedId } = await items.insertOne({ run });
    assert.ok(insertedId instanceof ObjectId);
    assert.equal((await items.deleteOne({ _id: insertedId })).deletedCount, 1);
  },

  async manyWithADuplicate() {
    for (const [ordered, inserted] of [[true, 2], [false, 3]]) {
      const documents = ["a", "b", "b", "c"].map((letter) => ({ _id: name(letter), run }));
      await assert.rejects(items.insertMany(documents, { ordered }), (error) => {
        assert.equal(error.name, "MongoBulkWriteError");
        assert.equal(error.code, 11000);
        assert.equal(error.result.insertedCount, inserted);
        assert.deepEqual(error.writeErrors.map(({ index, code }) => [index, code]), [[2, 11000]]);
        return true;
      });
      await remove(items, inserted);
    }
    await items.insertOne({ _id: name("d"), run });
    await duplicate(items.insertOne({ _id: name("d"), run }));
    await remove(items, 1);
  },

  async bulk() {
    await items.insertMany(range(12).map((n) => ({ _id: name(n), run, bulk: 1, n })));
    for (const ordered of [true, false]) {
      const result = await items.bulkWrite(
        [
          { insertOne: { document: { _id: name("x"), run } } },
          { updateOne: { filter: { _id: name(0) }, update: { $set: { ordered } } } },
          { replaceOne: { filter: { _id: name(1) }, replacement: { run, bulk: 1, ordered } } },
          { updateOne: { filter: { _id: name("y") }, update: { $set: { run } }, upsert: true } },
          { updateMany: { filter: { run, bulk: 1 }, update: { $set: { seen: ordered } } } },
          { deleteOne: { filter: { _id: name("x") } } },
          { deleteMany: { filter: { _id: { $in: [name("y")] } } } },
        ],
        { ordered },
      );
      assert.deepEqual(
        [result.insertedCount, result.matchedCount, result.modifiedCount, result.upsertedCount, result.deletedCount],
        [1, 14, 14, 1, 2],
      );
      assert.deepEqual(result.upsertedIds, { 3: name("y") });
    }
    assert.equal(await items.countDocuments({ run, seen: false }), 12);
    const updated = await items.updateMany({ run, n: { $gte: 2 } }, { $inc: { n: 100 } });
    assert.deepEqual([updated.matchedCount, updated.modifiedCount], [10, 10]);
    await remove(items, 12);
  },

  async findAndModify() {
    const _id = name("fam");
    const options = { upsert: true, returnDocument: "after" };
    assert.equal(await items.findOneAndUpdate({ _id }, { $set: { n: 1 } }), null);
    assert.deepEqual(await items.findOneAndUpdate({ _id }, { $set: { n: 1, run } }, options), { _id, n: 1, run });
    const whole = await items.findOneAndUpdate({ _id }, { $inc: { n: 1 } }, { includeResultMetadata: true });
    assert.deepEqual([whole.ok, whole.value.n, whole.lastErrorObject.updatedExisting], [1, 1, true]);
    assert.equal((await items.findOneAndReplace({ _id }, { run, n: 9 }, { returnDocument: "after" })).n, 9);
    assert.equal((await items.findOneAndDelete({ _id })).n, 9);
    if (MIXED) await refused(() => items.findOneAndUpdate({ run }, { $set: { n: 1 } }), "_id");
    await accounts.insertMany(range(3).map((n) => ({ _id: name(n), email: name(n), run, n })));
    const most = await accounts.findOneAndUpdate({ run }, { $inc: { n: 10 } }, { sort: { n: -1 } });
    assert.equal(most.n, 2);
    assert.equal((await accounts.updateOne({ email: name(1) }, { $set: { n: 5 } })).modifiedCount, 1);
    const upserted = await accounts.updateOne({ email: name("u"), run }, { $set: { n: 6 } }, { upsert: true });
    assert.ok(upserted.upsertedId instanceof ObjectId);
    assert.equal((await accounts.deleteOne({ email: name("u") })).deletedCount, 1);
    await remove(accounts, 3);
  },

  async cursors() {
    await items.insertMany(range(500).map((n) => ({ _id: name(String(n).padStart(3, "0")), run, n })));
    const found = items.find({ run }).sort({ n: -1 }).batchSize(17);
    assert.deepEqual((await found.toArray()).map(({ n }) => n), range(500).reverse());
    const seen = [];
    for await (const { n } of items.aggregate([{ $match: { run } }, { $sort: { n: 1 } }], { batchSize: 23 })) seen.push(n);
    assert.deepEqual(seen, range(500));
    const early = items.find({ run }, { batchSize: 5 });
    await early.next();
    await early.close();
    const streamed = [];
    const stream = items.find({ run }, { batchSize: 50 }).stream();
    stream.on("data", ({ n }) => streamed.push(n));
    await once(stream, "end");
    assert.equal(streamed.length, 500);
    assert.ok((await items.find({ run }).explain()).queryPlanner);
    const secondary = items.find({ run }, { readPreference: ReadPreference.SECONDARY_PREFERRED, batchSize: 100 });
    assert.equal((await secondary.toArray()).length, 500);
    await remove(items, 500);
  },

  async aggregates() {
    await items.insertMany(range(30).map((n) => ({ _id: name(n), run, n, tag: `t${n % 3}` })));
    await tags.insertMany(range(3).map((n) => ({ _id: `t${n}`, label: `label ${n}` })));
    const grouped = items.aggregate([
      { $match: { run } }, { $group: { _id: "$tag", count: { $sum: 1 } } }, { $sort: { _id: 1 } },
    ]);
    assert.deepEqual(await grouped.toArray(), range(3).map((n) => ({ _id: `t${n}`, count: 10 })));
    assert.deepEqual((await items.distinct("tag", { run })).sort(), ["t0", "t1", "t2"]);
    assert.equal(await items.countDocuments({ run, n: { $gte: 10 } }), 20);
    assert.ok((await items.estimatedDocumentCount()) >= 30);
    const lookup = () =>
      items.aggregate([
        { $match: { run } },
        { $lookup: { from: "tags", localField: "tag", foreignField: "_id", as: "tags" } },
        { $sort: { n: 1 } },
      ]).toArray();
    if (MIXED || MOVED) await refused(lookup, "move together");
    else assert.deepEqual((await lookup()).map((one) => one.tags[0].label), range(30).map((n) => `label ${n % 3}`));
    if (MIGRATES) await refused(() => tags.aggregate([{ $merge: { into: "items" } }]).toArray(), "migration");
    await tags.drop();
    await remove(items, 30);
  },

  async sessions() {
    await client.withSession({ causalConsistency: true }, async (session) => {
      for (const n of range(25)) {
        await items.insertOne({ _id: name(n), run }, { session });
        assert.ok(await items.findOne({ _id: name(n) }, { session }), `write ${n} was not read`);
      }
      assert.ok(session.operationTime);
      assert.equal(await items.countDocuments({ run }, { session }), 25);
    });
    await client.withSession({ causalConsistency: false }, async (session) => {
      assert.equal(await items.countDocuments({ run }, { session }), 25);
    });
    await remove(items, 25);
    // This driver asks a service behind a balancer for no version, and takes it for too old.
    if (RESHARD_URI.includes("loadBalanced")) return;
    await accounts.insertOne({ _id: name("snap"), email: name("snap"), run });
    await client.withSession({ snapshot: true }, async (session) => {
      assert.equal(await accounts.countDocuments({ run }, { session }), 1);
      await accounts.insertOne({ _id: name("snap2"), email: name("snap2"), run });
      assert.equal(await accounts.countDocuments({ run }, { session }), 1);
    });
    await remove(accounts, 2);
  },

  async brokenConnections() {
    const backends = [RESHARD_OLD, RESHARD_NEW].map((uri) => new MongoClient(uri, { directConnection: true }));
    const point = (mode, data) =>
      Promise.all(backends.map((one) => one.db("admin").command({ configureFailPoint: "failCommand", mode, ...(data && { data }) })));
    // What servers say that step down, shut down or recover, and one that goes away.
    const labelled = (errorCode) => ({ errorCode, errorLabels: ["RetryableWriteError"] });
    const ways = [{ closeConnection: true }, ...[10107, 13435, 11600, 11602, 91, 189, 6, 89].map(labelled)];
    let cleared = 0;
    const count = () => cleared++;
    client.on("connectionPoolCleared", count);
    try {
      for (const [number, how] of ways.entries()) {
        const broken = (command) => point({ times: 1 }, { failCommands: [command], namespace: "app.items", ...how });
        const _id = name(`retry-${number}`);
        await broken("insert");
        await items.insertOne({ _id, run, n: 0 });
        await broken("update");
        await items.updateOne({ _id }, { $inc: { n: 1 } });
        await broken("findAndModify");
        assert.equal((await items.findOneAndUpdate({ _id }, { $inc: { n: 1 } })).n, 1);
        await broken("find");
        assert.equal((await items.findOne({ _id })).n, 2);
        await broken("delete");
        assert.equal((await items.deleteOne({ _id })).deletedCount, 1);
        await point("off");
      }
      assert.equal(cleared, 0, "times that the driver gave up its connections");
    } finally {
      client.off("connectionPoolCleared", count);
      await point("off");
      await Promise.all(backends.map((one) => one.close()));
    }
  },

  async transactions() {
    const [a, b] = [name("a"), name("b")];
    await accounts.insertMany([{ _id: a, email: a, run, balance: 100 }, { _id: b, email: b, run, balance: 0 }]);
    await duplicate(accounts.insertOne({ run, email: a }));
    await client.withSession(async (session) => {
      const balances = await session.withTransaction(async () => {
        await accounts.updateOne({ _id: a }, { $inc: { balance: -30 } }, { session });
        await accounts.updateOne({ email: b }, { $inc: { balance: 30 } }, { session });
        await orders.insertOne({ _id: name("order"), run }, { session });
        const all = await accounts.find({ run }, { session }).sort({ _id: 1 }).toArray();
        return all.map(({ balance }) => balance);
      });
      assert.deepEqual(balances, [70, 30]);
      assert.equal((await accounts.findOne({ email: b })).balance, 30);
      await remove(orders, 1);
      session.startTransaction();
      await accounts.deleteOne({ _id: a }, { session });
      await session.abortTransaction();
      assert.equal(await accounts.countDocuments({ run }), 2);
      session.startTransaction();
      await accounts.updateOne({ _id: a }, { $inc: { balance: 1 } }, { session });
      await session.commitTransaction();
      await session.commitTransaction();
      assert.equal((await accounts.findOne({ _id: a })).balance, 71);
      for (const [first, second] of [[accounts, feed], [feed, accounts], [accounts, stock]]) {
        session.startTransaction();
        await first.insertOne({ _id: name("across"), email: name("across"), run }, { session });
        const then = () => second.insertOne({ _id: name("across"), email: name("across"), run }, { session });
        if (MOVED) {
          await refused(then, "transaction");
          await session.abortTransaction();
        } else {
          await then();
          await session.commitTransaction();
        }
        for (const collection of [first, second]) {
          const { deletedCount } = await collection.deleteMany({ _id: name("across") });
          assert.equal(deletedCount, MOVED ? 0 : 1);
        }
      }
      if (MIXED) {
        session.startTransaction();
        await refused(() => items.insertOne({ _id: name("tx"), run }, { session }), "transactions");
        await session.abortTransaction();
      }
    });
    await remove(accounts, 2);
  },

  async changeStreams() {
    for (const collection of MIXED ? [feed] : [feed, items]) {
      const key = name("watch");
      const stream = collection.watch([{ $match: { "documentKey._id": key } }], { maxAwaitTimeMS: 500 });
      assert.equal(await stream.tryNext(), null);
      await collection.insertOne({ _id: key, run });
      const event = await until("the change event", () => stream.tryNext());
      assert.deepEqual([event.operationType, event.fullDocument], ["insert", { _id: key, run }]);
      await stream.close();
      await collection.deleteOne({ _id: key });
    }
  },

  async indexes() {
    for (const collection of [items, feed]) {
      const index = await collection.createIndex({ run: 1, [name("field")]: -1 }, { name: name("index"), sparse: true });
      assert.equal(index, name("index"));
      const listed = (await collection.indexes()).find((one) => one.name === index);
      assert.deepEqual(listed.key, { run: 1, [name("field")]: -1 });
      assert.equal(listed.sparse, true);
      await collection.dropIndex(index);
      assert.equal(await collection.indexExists(index), false);
    }
  },

  async withoutAcknowledgement() {
    const quiet = app.collection("items", { writeConcern: { w: 0 } });
    assert.equal((await quiet.insertOne({ _id: name("quiet"), run })).acknowledged, false);
    await until("the quiet insert", () => items.findOne({ _id: name("quiet") }));
    await quiet.deleteOne({ _id: name("quiet") });
    await until("the quiet delete", async () => !(await items.findOne({ _id: name("quiet") })));
  },

  async gridFs() {
    const bucket = new GridFSBucket(app, { bucketName: "node" });
    const content = randomBytes(1_000_000);
    const upload = bucket.openUploadStream(name("file"));
    upload.end(content);
    await once(upload, "finish");
    const chunks = await bucket.openDownloadStream(upload.id).toArray();
    assert.ok(Buffer.concat(chunks).equals(content), "the file's content");
    await bucket.delete(upload.id);
    await bucket.drop();
  },

  async filesThatMigrate() {
    const bucket = new GridFSBucket(app, { bucketName: "media", chunkSizeBytes: 100_000 });
    for (const size of [0, 100_000, 750_000]) {
      const content = randomBytes(size);
      const upload = bucket.openUploadStream(name(`file-${size}`), { metadata: { size } });
      upload.end(content);
      await once(upload, "finish");
      const read = async (options) => Buffer.concat(await bucket.openDownloadStream(upload.id, options).toArray());
      assert.ok((await read()).equals(content), "the file's content");
      if (size > 500_000) assert.ok((await read({ start: 250_000, end: 251_000 })).equals(content.subarray(250_000, 251_000)));
      await bucket.rename(upload.id, name(`renamed-${size}`));
      assert.equal((await bucket.find({ filename: name(`renamed-${size}`) }).toArray())[0].metadata.size, size);
      // The largest stays, for the comparison at the end.
      if (size < 500_000) await bucket.delete(upload.id);
    }
  },

  async largeDocuments() {
    const big = "x".repeat(10_000_000);
    await items.insertOne({ _id: name("big"), run, big });
    assert.equal((await items.findOne({ _id: name("big") })).big.length, big.length);
    await items.insertMany(range(3).map((n) => ({ _id: name(n), run, big })));
    assert.equal((await items.find({ run }).toArray()).length, 4);
    await remove(items, 4);
  },

  async idsOfAllKinds() {
    const number = 7_000_000 * (1 + PHASES.indexOf(PHASE));
    const keys = [
      new ObjectId(), name("text"), new Int32(number), new Double(number + 0.5), Long.fromNumber(number + 2 ** 40),
      Decimal128.fromString(`${number}.25`), new UUID(), new Binary(randomBytes(9)), new Date(1.7e12 + number), { run },
      new Timestamp({ t: number, i: 2 }), true, new MinKey(), new MaxKey(), { run, n: new Int32(1) },
    ];
    for (const _id of keys) {
      await items.insertOne({ _id, run });
      assert.ok(await items.findOne({ _id }), `${_id} was not found`);
      assert.equal((await items.updateOne({ _id }, { $set: { seen: 1 } })).modifiedCount, 1, `updates of ${_id}`);
    }
    await duplicate(items.insertOne({ _id: new Double(number) }));
    await duplicate(items.insertOne({ _id: Long.fromNumber(number) }));
    assert.equal(await items.countDocuments({ run, seen: 1 }), keys.length);
    for (const _id of keys) assert.equal((await items.deleteOne({ _id })).deletedCount, 1, `deletions of ${_id}`);
    assert.equal(await items.countDocuments({ _id: { $type: BSONType.object }, run }), 0);
  },

  async collections() {
    const other = await app.createCollection(name("other"));
    await other.insertOne({ n: 1 });
    const listed = await app.listCollections({}, { nameOnly: true }).toArray();
    assert.ok(["items", "accounts", name("other")].every((one) => listed.some((seen) => seen.name === one)));
    assert.equal(await other.drop(), true);
    assert.equal((await app.command({ collStats: "accounts" })).ns, "app.accounts");
    if (MIGRATES) {
      await refused(() => items.drop(), "migration", "complete or abort");
      await refused(() => accounts.rename("elsewhere"), "migration");
      await refused(() => app.dropDatabase(), "migration");
    }
    await assert.rejects(client.db("admin").command({ noSuchCommand: 1 }), { code: 59 });
    assert.equal((await client.db("admin").command({ ping: 1 })).ok, 1);
  },

  async mongooseModels() {
    const connection = await mongoose
      .createConnection(RESHARD_URI, { dbName: "app", serverSelectionTimeoutMS: 10_000 })
      .asPromise();
    try {
      await models(connection);
    } finally {
      await connection.close();
    }
  },

  async whatWasKept() {
    for (const collection of [items, accounts]) {
      for (const past of PHASES.slice(0, PHASES.indexOf(PHASE))) {
        for (const n of range(20)) {
          const kept = await collection.findOne({ _id: `node-kept-${past}-${n}` });
          assert.equal(kept?.n, 2 * n, `${collection.collectionName} ${past} ${n}`);
        }
      }
      const keys = range(20).map((n) => `node-kept-${PHASE}-${n}`);
      await collection.insertMany(keys.map((_id, n) => ({ _id, n, email: _id })));
      for (const [n, _id] of keys.entries()) await collection.updateOne({ _id }, { $inc: { n } });
    }
  },
};

async function models(connection) {
  const { Schema } = mongoose;
  const itemSchema = new Schema(
    {
      _id: { type: String, required: true },
      run: { type: String, index: true },
      title: { type: String, required: true, trim: true },
      tags: [String],
      parts: [new Schema({ label: String, count: Number })],
      owner: { type: String, ref: "Account" },
    },
    { timestamps: true, collection: "items", optimisticConcurrency: true },
  );
  const accountSchema = new Schema(
    { run: String, email: { type: String, unique: true }, balance: { type: Number, min: 0 } },
    { collection: "accounts" },
  );
  const Item = connection.model("Item", itemSchema);
  const Account = connection.model("Account", accountSchema);
  // Makes collections and indexes where they are not there yet.
  await Promise.all([Item.init(), Account.init()]);
  await Item.syncIndexes({ toDrop: [] }).catch(() => Item.ensureIndexes());

  const account = await Account.create({ run, email: name("mail"), balance: 5 });
  assert.ok(account._id instanceof mongoose.Types.ObjectId);
  await assert.rejects(Account.create({ run, email: name("mail") }), { code: 11000 });
  await assert.rejects(Account.create({ run, email: name("minus"), balance: -1 }), { name: "ValidationError" });

  const item = await Item.create({ _id: name("item"), run, title: " a ", parts: [{ label: "x", count: 1 }] });
  assert.equal(item.title, "a");
  item.parts[0].count = 2;
  item.parts.push({ label: "y", count: 3 });
  item.tags.push("t");
  await item.save();
  const lean = await Item.findById(name("item")).lean();
  assert.deepEqual([lean.parts.map(({ count }) => count), lean.tags, lean.__v], [[2, 3], ["t"], 1]);
  assert.ok(lean.updatedAt >= lean.createdAt);
  const stale = await Item.findById(name("item"));
  item.title = "b";
  await item.save();
  stale.title = "c";
  await assert.rejects(stale.save(), { name: "VersionError" });
  assert.equal((await Item.findByIdAndUpdate(name("item"), { $set: { title: "d" } }, { new: true })).title, "d");
  await Item.insertMany(range(40).map((n) => ({ _id: name(n), run, title: `t${n}`, tags: [`g${n % 4}`] })));
  assert.equal(await Item.countDocuments({ run }), 41);
  let seen = 0;
  for await (const one of Item.find({ run }).cursor({ batchSize: 7 })) seen += one.run === run ? 1 : 0;
  assert.equal(seen, 41);
  const grouped = await Item.aggregate([{ $match: { run, tags: /^g/ } }, { $unwind: "$tags" }, { $sortByCount: "$tags" }]);
  assert.deepEqual(grouped.map(({ count }) => count), [10, 10, 10, 10]);
  // Populating is two finds, so it works whatever the migration does.
  await Item.updateOne({ _id: name(3) }, { owner: "nobody" });
  const PopulatedAccount = connection.model("Owner", new Schema({ _id: String, email: String, run: String }, { collection: "accounts" }));
  await PopulatedAccount.create({ _id: name("owner"), email: name("owner"), run });
  await Item.updateOne({ _id: name(3) }, { owner: name("owner") });
  const populated = await Item.findById(name(3)).populate({ path: "owner", model: "Owner" });
  assert.equal(populated.owner.email, name("owner"));
  await Item.bulkSave([Object.assign(await Item.findById(name(4)), { title: "bulk" })]);
  assert.equal((await Item.findById(name(4))).title, "bulk");
  assert.equal((await Item.updateMany({ run }, { $addToSet: { tags: "all" } })).modifiedCount, 41);
  assert.ok(await Item.exists({ _id: name(4) }));
  await connection.transaction(async (session) => {
    const own = await Account.findById(account._id).session(session);
    own.balance += 10;
    await own.save({ session });
  });
  assert.equal((await Account.findById(account._id)).balance, 15);
  assert.equal((await Item.deleteMany({ run })).deletedCount, 41);
  assert.equal((await Account.deleteMany({ run })).deletedCount, 2);
}

// Cursors, sessions and change streams that are open while the phase changes, and work that goes on.
async function across() {
  const kept = app.collection("long");
  const all = [items, accounts, kept];
  for (const collection of all) {
    await collection.insertMany(range(300).map((n) => ({ _id: name(`long-${n}`), email: name(`long-${n}`), run, n })));
  }
  const cursors = all.map((collection) => collection.find({ run }, { sort: { n: 1 }, batchSize: 11 }));
  for (const cursor of cursors) for (const n of range(30)) assert.equal((await cursor.next()).n, n);
  const session = client.startSession({ causalConsistency: true });
  await items.insertOne({ _id: name("session"), run }, { session });
  const stream = feed.watch([{ $match: { "documentKey._id": name("after") } }], { maxAwaitTimeMS: 500 });
  assert.equal(await stream.tryNext(), null);
  let stop = false;
  const work = async (worker) => {
    let number = 0;
    for (; !stop; number++) {
      const _id = name(`work-${worker}-${number % 20}`);
      await items.updateOne({ _id }, { $inc: { count: 1 }, $set: { work: worker } }, { upsert: true });
      await accounts.updateOne({ _id }, { $inc: { count: 1 }, $set: { email: _id } }, { upsert: true });
      const found = await items.findOne({ _id });
      assert.equal(found?.count, Math.floor(number / 20) + 1, `${_id} after ${number}`);
    }
    return number;
  };
  const workers = Promise.all(range(3).map(work));
  workers.catch(() => {});
  console.log("ready");
  await once(process.stdin, "data");
  process.stdin.destroy();
  await sleep(500);
  stop = true;
  const counts = await workers;
  for (const [worker, count] of counts.entries()) {
    const keys = { _id: { $in: range(20).map((n) => name(`work-${worker}-${n}`)) } };
    for (const collection of [items, accounts]) {
      const stored = await collection.find(keys).toArray();
      assert.equal(stored.reduce((sum, one) => sum + one.count, 0), count, "updates");
      await collection.deleteMany(keys);
    }
  }
  for (const cursor of cursors) {
    assert.deepEqual((await cursor.toArray()).map(({ n }) => n), range(300).slice(30));
  }
  assert.ok(await items.findOne({ _id: name("session") }, { session }), "a causal session lost its write");
  await items.updateOne({ _id: name("session") }, { $set: { n: 1 } }, { session });
  assert.equal((await items.findOne({ _id: name("session") }, { session })).n, 1);
  await session.endSession();
  await feed.insertOne({ _id: name("after") });
  await until("the event of the open stream", () => stream.tryNext());
  await stream.close();
  await feed.deleteOne({ _id: name("after") });
  await remove(items, 301);
  await remove(accounts, 300);
  await kept.drop();
}

async function prepare() {
  if (PHASE !== "plain" || ACROSS) return;
  await accounts.createIndex({ email: 1 }, { unique: true });
  for (const collection of [items, orders, stock]) await collection.createIndex({ run: 1 });
}

let failed = false;
await prepare();
for (const [title, check] of Object.entries(ACROSS ? { across } : checks)) {
  run = `node-${PHASE}-${ACROSS ?? "run"}-${title}`;
  const begun = Date.now();
  try {
    await check();
    console.log(`ok ${title} ${(Date.now() - begun) / 1000} s`);
  } catch (error) {
    failed = true;
    console.log(`FAILED in phase ${PHASE}: ${title}\n${error.stack}\n`, JSON.stringify(error.errorResponse ?? ""));
  }
}
await client.close();
process.exit(failed ? 1 : 0);
