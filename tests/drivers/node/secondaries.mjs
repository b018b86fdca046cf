// Reads with every read preference through the face of a replica set whose cluster's primary refuses reads.
// Environment: RESHARD_URI, and RESHARD_OLD, the cluster behind.

import assert from "node:assert/strict";
import { MongoClient, ReadPreference } from "mongodb";

const { RESHARD_URI, RESHARD_OLD } = process.env;
const client = new MongoClient(RESHARD_URI, { serverSelectionTimeoutMS: 20_000, heartbeatFrequencyMS: 1_000 });
const behind = new MongoClient(RESHARD_OLD);
const data = { failCommands: ["find", "aggregate"], errorCode: 13, namespace: "shop.items" };

try {
  const items = client.db("shop").collection("items");
  await items.insertMany([...Array(100).keys()].map((n) => ({ _id: n })), { writeConcern: { w: 3 } });
  await behind.db("admin").command({ configureFailPoint: "failCommand", mode: "alwaysOn", data });
  try {
    await assert.rejects(items.findOne(), { code: 13 });
    const secondary = (staleness) => new ReadPreference("secondary", undefined, { maxStalenessSeconds: staleness });
    for (const readPreference of [secondary(90), "secondary", "secondaryPreferred"]) {
      // Cursors too: getMore must find its server.
      assert.equal((await items.find({}, { readPreference, batchSize: 7 }).toArray()).length, 100);
      assert.equal(await items.countDocuments({}, { readPreference }), 100);
    }
    for (const readPreference of ["primary", "primaryPreferred"]) {
      await assert.rejects(items.findOne({}, { readPreference }), { code: 13 });
    }
  } finally {
    await behind.db("admin").command({ configureFailPoint: "failCommand", mode: "off" });
  }
  assert.ok(await items.findOne({}, { readPreference: "nearest" }));
} finally {
  await client.close();
  await behind.close();
}
