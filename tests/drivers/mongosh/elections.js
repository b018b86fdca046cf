// An operator's shell, and others that are opened beside it, while the primaries of both clusters step down.
//
// Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it says "ready" once it works,
// and goes on until a line comes: then each write that was acknowledged counts once, and nobody has seen an error.

const { RESHARD_URI, RESHARD_ACROSS: ACROSS } = process.env;
const items = connect(RESHARD_URI).getSiblingDB("app").getCollection("items");
// So many more once both clusters have their new primaries.
const AFTERWARDS = 20;

function turn(number) {
  const _id = ["count-even", "count-odd"][number % 2];
  items.updateOne({ _id }, { $inc: { n: 1 } }, { upsert: true });
  const { insertedId } = items.insertOne({ by: "shell", number });
  if (items.findOne({ _id: insertedId })?.number !== number) throw new Error(`${number} is not there`);
  if (items.find({ by: "shell" }).sort({ number: 1 }).limit(8).toArray().length < Math.min(8, number + 1)) {
    throw new Error(`after ${number} some are missing`);
  }
  const visitor = new Mongo(RESHARD_URI);
  if (!visitor.getDB("app").getCollection("items").findOne({ _id: "seed" })) throw new Error("the seed is not there");
  visitor.close();
}

function untilTold() {
  let told = false;
  process.stdin.once("data", () => (told = true));
  let number = 0;
  for (let left = AFTERWARDS; left > 0; number++) {
    turn(number);
    if (number === 5) require("fs").writeSync(1, "ready\n");
    if (told) left--;
  }
  const counted = ["count-even", "count-odd"].map((_id) => items.findOne({ _id }).n);
  const wanted = [Math.ceil(number / 2), Math.floor(number / 2)];
  const inserted = items.countDocuments({ by: "shell" });
  print(`turns: ${number}`);
  if (String(counted) !== String(wanted) || inserted !== number) {
    throw new Error(`${number} turns, ${counted} counted, ${inserted} inserted`);
  }
}

let failed = false;
try {
  if (ACROSS) untilTold();
  else for (const name of ["items", "accounts", "orders", "stock"]) items.getDB().getCollection(name).insertOne({ _id: "seed" });
} catch (error) {
  failed = true;
  print(`FAILED: ${error.stack ?? error}`);
}
quit(failed ? 1 : 0);
