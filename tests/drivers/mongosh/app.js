// An operator's shell. The environment is that of python/app.py.

const assert = require("assert");
const { RESHARD_URI, RESHARD_PHASE: PHASE, RESHARD_ACROSS: ACROSS } = process.env;
const PHASES = ["plain", "dual", "reads", "half", "moved"];
const MIGRATES = PHASE !== "plain";
const MIXED = PHASE === "half";
const MOVED = PHASE === "moved";
const shell = connect(RESHARD_URI).getSiblingDB("app");
const { items, accounts, orders, stock, feed } = Object.fromEntries(
  ["items", "accounts", "orders", "stock", "feed"].map((name) => [name, shell.getCollection(name)]),
);
// What comes from the shell is made in another context, with other prototypes.
const same = (seen, wanted) => assert.strictEqual(JSON.stringify(seen), JSON.stringify(wanted));
let run = "";
const name = (suffix) => `${run}-${suffix}`;
const range = (count) => Array.from({ length: count }, (_, n) => n);

function fails(act, code, ...words) {
  let error;
  try {
    act();
  } catch (thrown) {
    error = thrown;
  }
  assert.ok(error, "it did not fail");
  assert.strictEqual(error.code, code, `code of ${error}`);
  for (const word of words) assert.ok(error.message.includes(word), `"${word}" is not in ${error.message}`);
}
const refused = (act, ...words) => fails(act, 115, ...words);

function until(what, look) {
  for (let tries = 0; tries < 200; tries++) {
    const seen = look();
    if (seen) return seen;
    sleep(100);
  }
  throw new Error(`waited for ${what}`);
}

const checks = {
  oneDocument() {
    const _id = name("one");
    assert.ok(items.insertOne({ _id, run, n: 1 }).acknowledged);
    assert.strictEqual(items.updateOne({ _id }, { $inc: { n: 2 } }).modifiedCount, 1);
    assert.strictEqual(items.findOne({ _id }).n, 3);
    assert.strictEqual(items.replaceOne({ _id }, { run, n: 7 }).modifiedCount, 1);
    assert.strictEqual(items.findOneAndUpdate({ _id }, { $inc: { n: 1 } }).n, 7);
    assert.strictEqual(items.findAndModify({ query: { _id }, update: { $inc: { n: 1 } }, new: true }).n, 9);
    assert.strictEqual(items.updateOne({ _id: name("up") }, { $set: { run } }, { upsert: true }).insertedId, name("up"));
    assert.strictEqual(items.deleteMany({ run }).deletedCount, 2);
    fails(() => range(2).map(() => items.insertOne({ _id, run })), 11000);
    assert.strictEqual(items.deleteOne({ _id }).deletedCount, 1);
  },

  batches() {
    const documents = ["a", "b", "b", "c"].map((letter) => ({ _id: name(letter), run }));
    for (const [ordered, inserted] of [[true, 2], [false, 3]]) {
      fails(() => items.insertMany(documents, { ordered }), 11000);
      assert.strictEqual(items.deleteMany({ run }).deletedCount, inserted);
    }
    const result = items.bulkWrite([
      { insertOne: { document: { _id: name("x"), run } } },
      { updateOne: { filter: { _id: name("y") }, update: { $set: { run } }, upsert: true } },
      { updateMany: { filter: { run }, update: { $set: { n: 1 } } } },
      { deleteOne: { filter: { _id: name("x") } } },
    ]);
    same(
      [result.insertedCount, result.upsertedCount, result.modifiedCount, result.deletedCount], [1, 1, 2, 1],
    );
    items.deleteMany({ run });
  },

  cursors() {
    items.insertMany(range(500).map((n) => ({ _id: name(n), run, n, tag: n % 3 })));
    same(items.find({ run }).sort({ n: 1 }).batchSize(17).toArray().map(({ n }) => n), range(500));
    assert.strictEqual(items.aggregate([{ $match: { run } }], { batchSize: 50 }).toArray().length, 500);
    const grouped = items.aggregate([{ $match: { run } }, { $group: { _id: "$tag", n: { $sum: 1 } } }, { $sort: { _id: 1 } }]);
    same(grouped.toArray().map(({ n }) => n), [167, 167, 166]);
    assert.strictEqual(items.countDocuments({ run }), 500);
    assert.ok(items.estimatedDocumentCount() >= 500);
    assert.strictEqual(items.distinct("tag", { run }).length, 3);
    assert.ok(items.find({ run }).explain("executionStats").executionStats);
    assert.ok(items.explain().aggregate([{ $match: { run } }]));
    const joined = () => items.aggregate([{ $match: { run } }, { $lookup: { from: "feed", localField: "n", foreignField: "_id", as: "x" } }]).toArray();
    if (MIXED || MOVED) refused(joined, "move together");
    else assert.strictEqual(joined().length, 500);
    if (MIGRATES) refused(() => feed.aggregate([{ $merge: "items" }]), "migration");
    assert.strictEqual(items.updateMany({ run }, { $inc: { n: 1 } }).modifiedCount, 500);
    assert.strictEqual(items.deleteMany({ run }).deletedCount, 500);
  },

  transactions() {
    const session = shell.getMongo().startSession();
    const inside = session.getDatabase("app");
    session.withTransaction(() => {
      inside.accounts.insertOne({ _id: name("a"), email: name("a"), run });
      inside.orders.insertOne({ _id: name("a"), run });
    });
    assert.strictEqual(accounts.countDocuments({ run }), 1);
    fails(() => accounts.insertOne({ email: name("a") }), 11000);
    session.startTransaction();
    inside.accounts.deleteOne({ _id: name("a") });
    session.abortTransaction();
    assert.strictEqual(accounts.countDocuments({ run }), 1);
    session.startTransaction();
    inside.accounts.updateOne({ _id: name("a") }, { $set: { n: 1 } });
    if (MOVED) {
      refused(() => inside.feed.insertOne({ _id: name("a") }), "transaction");
      session.abortTransaction();
    } else {
      inside.feed.insertOne({ _id: name("a") });
      session.commitTransaction();
    }
    assert.strictEqual(feed.deleteMany({ _id: name("a") }).deletedCount, MOVED ? 0 : 1);
    session.endSession();
    assert.strictEqual(accounts.deleteMany({ run }).deletedCount, 1);
    assert.strictEqual(orders.deleteMany({ run }).deletedCount, 1);
  },

  failuresAreRetried() {
    const { RESHARD_OLD, RESHARD_NEW } = process.env;
    const clusters = [RESHARD_OLD, RESHARD_NEW].map((uri) => connect(uri).getSiblingDB("admin"));
    const failPoint = (more) => {
      for (const admin of clusters) assert.ok(admin.runCommand({ configureFailPoint: "failCommand", ...more }).ok);
    };
    const errorLabels = ["RetryableWriteError"];
    const ways = [{ closeConnection: true }, ...[10107, 91, 11602, 89].map((errorCode) => ({ errorCode, errorLabels }))];
    try {
      ways.forEach((how, n) => {
        const _id = name(n);
        // The next such command on each cluster fails so.
        const fail = (command) =>
          failPoint({ mode: { times: 1 }, data: { failCommands: [command], namespace: "app.items", ...how } });
        fail("insert");
        items.insertOne({ _id, n: 0 });
        fail("update");
        assert.strictEqual(items.updateOne({ _id }, { $inc: { n: 1 } }).modifiedCount, 1);
        fail("findAndModify");
        assert.strictEqual(items.findOneAndUpdate({ _id }, { $inc: { n: 1 } }).n, 1);
        fail("find");
        assert.strictEqual(items.findOne({ _id }).n, 2);
        fail("delete");
        assert.strictEqual(items.deleteOne({ _id }).deletedCount, 1);
        failPoint({ mode: "off" });
      });
    } finally {
      failPoint({ mode: "off" });
    }
  },

  changeStreams() {
    for (const collection of MIXED ? [feed] : [feed, items]) {
      const stream = collection.watch([{ $match: { "documentKey._id": name("watch") } }], { maxAwaitTimeMS: 500 });
      assert.strictEqual(stream.tryNext(), null);
      collection.insertOne({ _id: name("watch") });
      assert.strictEqual(until("the change event", () => stream.tryNext()).operationType, "insert");
      stream.close();
      collection.deleteOne({ _id: name("watch") });
    }
  },

  indexes() {
    const field = name("field");
    for (const collection of [items, feed]) {
      assert.strictEqual(collection.createIndex({ [field]: 1 }), `${field}_1`);
      assert.ok(collection.getIndexes().some((index) => index.name === `${field}_1`));
      assert.strictEqual(collection.dropIndex(`${field}_1`).ok, 1);
    }
  },

  withoutAcknowledgement() {
    items.insertOne({ _id: name("quiet") }, { writeConcern: { w: 0 } });
    until("the quiet insert", () => items.findOne({ _id: name("quiet") }));
    items.deleteOne({ _id: name("quiet") });
  },

  largeDocuments() {
    const big = "x".repeat(10_000_000);
    items.insertOne({ _id: name("big"), big });
    assert.strictEqual(items.findOne({ _id: name("big") }).big.length, big.length);
    items.deleteOne({ _id: name("big") });
  },

  idsOfAllKinds() {
    const number = 3_000_000 + PHASES.indexOf(PHASE);
    const keys = [
      ObjectId(), name("text"), Int32(number), Long("90000000000"), Double(0.25), NumberDecimal("1.75"), UUID(),
      new Date(number), { run }, Timestamp({ t: number, i: 1 }), false, MinKey(), MaxKey(),
    ];
    for (const _id of keys) {
      items.insertOne({ _id, run });
      assert.ok(items.findOne({ _id }), `${_id} was not found`);
    }
    fails(() => items.insertOne({ _id: NumberDecimal(String(number)) }), 11000);
    for (const _id of keys) assert.strictEqual(items.deleteOne({ _id }).deletedCount, 1, `deletions of ${_id}`);
  },

  whatAnOperatorLooksAt() {
    assert.strictEqual(shell.adminCommand({ ping: 1 }).ok, 1);
    assert.ok(shell.version() && shell.hello().isWritablePrimary);
    assert.ok(shell.getCollectionNames().includes("items"));
    assert.ok(shell.getCollectionInfos({ name: "accounts" })[0].info.uuid);
    assert.ok(items.stats().ok && shell.stats().ok && shell.serverStatus().ok && accounts.dataSize() >= 0);
    assert.ok(shell.getMongo().getDBNames().includes("app"));
    assert.ok(shell.currentOp().inprog);
    assert.ok(items.validate().valid);
    assert.ok(shell.getSiblingDB("admin").aggregate([{ $currentOp: {} }]).toArray().length > 0);
    fails(() => shell.runCommand({ noSuchCommand: 1 }), 59);
    shell.createCollection(name("other"));
    assert.ok(shell.getCollection(name("other")).drop());
    if (MIGRATES) {
      refused(() => items.drop(), "migration", "complete or abort");
      refused(() => accounts.renameCollection("elsewhere"), "migration");
      refused(() => shell.dropDatabase(), "migration");
    }
    if (MIXED) refused(() => items.updateOne({ run }, { $set: { n: 1 } }), "_id");
  },

  whatWasKept() {
    for (const collection of [items, accounts]) {
      for (const past of PHASES.slice(0, PHASES.indexOf(PHASE))) {
        for (const n of range(20)) assert.strictEqual(collection.findOne({ _id: `sh-kept-${past}-${n}` })?.n, 2 * n);
      }
      const keys = range(20).map((n) => `sh-kept-${PHASE}-${n}`);
      collection.insertMany(keys.map((_id, n) => ({ _id, n, email: _id })));
      keys.forEach((_id, n) => collection.updateOne({ _id }, { $inc: { n } }));
    }
  },
};

// A cursor that is open while the phase changes.
function across() {
  for (const collection of [items, accounts]) {
    collection.insertMany(range(300).map((n) => ({ _id: name(n), email: name(n), run, n })));
  }
  const cursors = [items, accounts].map((collection) => collection.find({ run }).sort({ n: 1 }).batchSize(11));
  for (const cursor of cursors) for (const n of range(30)) assert.strictEqual(cursor.next().n, n);
  require("fs").writeSync(1, "ready\n");
  until("the change", () => {
    try {
      return require("fs").readSync(0, Buffer.alloc(10));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  });
  for (const cursor of cursors) same(cursor.toArray().map(({ n }) => n), range(300).slice(30));
  for (const collection of [items, accounts]) assert.strictEqual(collection.deleteMany({ run }).deletedCount, 300);
}

if (PHASE === "plain" && !ACROSS) {
  accounts.createIndex({ email: 1 }, { unique: true });
  [items, orders, stock].forEach((collection) => collection.createIndex({ run: 1 }));
}
let failed = false;
for (const [title, check] of Object.entries(ACROSS ? { across } : checks)) {
  run = `sh-${PHASE}-${ACROSS ?? "run"}-${title}`;
  const begun = Date.now();
  try {
    check();
    print(`ok ${title} ${(Date.now() - begun) / 1000} s`);
  } catch (error) {
    failed = true;
    print(`FAILED in phase ${PHASE}: ${title}\n${error.stack ?? error}`);
  }
}
quit(failed ? 1 : 0);
