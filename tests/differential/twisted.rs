//! Commands of the corpus with other fields and values than they should have, by a seed: whatever is wrong with them,
//! the answer is a server's. `RESHARD_SEED` gives another seed.

use anyhow::{Result, ensure};
use bson::{Bson, Document, RawDocumentBuf};
use reshard_testbed::ReplicaSet;

use super::case::{Case, read};
use super::mutate::{Dice, twist_document};
use super::support::{Operator, proxy, two_sets, until_equal};
use super::{Line, NOT_NOW, make, mask};

const COMMANDS: usize = 5000;

fn corpus() -> Result<Vec<Case>> {
    let mut all = read("writes", include_str!("corpus/writes.jsonl"))?;
    all.extend(read("types", include_str!("corpus/types.jsonl"))?);
    all.extend(read("reads", include_str!("corpus/reads.jsonl"))?);
    Ok(all)
}

/// Always the same one unless another is given: servers may rightly differ in what nobody has thought of yet.
fn seed() -> Result<u64> {
    let seed = std::env::var("RESHARD_SEED").map_or(Ok(1), |seed| seed.parse())?;
    println!("RESHARD_SEED={seed}");
    Ok(seed)
}

/// What servers give, each its own: times and ids, wherever they stand.
fn without_given(value: &mut Bson) {
    match value {
        Bson::ObjectId(_) | Bson::Timestamp(_) | Bson::DateTime(_) => *value = "given".into(),
        Bson::Document(inside) => inside.iter_mut().for_each(|(_, value)| without_given(value)),
        Bson::Array(inside) => inside.iter_mut().for_each(without_given),
        _ => {}
    }
}

/// What is not compared. Plans tell how long they took, and a limit of time may be met on one side. Times of clusters
/// and tokens of transactions do not pass the proxy; it hears of every write, and knows itself which cursors there are,
/// before a server could look at the rest of a command. For a secondary, which these sets have not got, it waits.
fn is_left_out(command: &Document) -> bool {
    let name = command.keys().next().map_or("", String::as_str);
    let fields = ["$clusterTime", "recoveryToken", "maxTimeMS", "explain"];
    let concern = command.get_document("writeConcern").ok().and_then(|concern| concern.get("w"));
    let is_silent = matches!(concern, Some(Bson::Int32(0) | Bson::Int64(0)));
    let preference =
        command.get_document("$readPreference").and_then(|preference| preference.get_str("mode"));
    is_silent
        || preference.is_ok_and(|mode| mode == "secondary")
        || fields.into_iter().any(|field| command.contains_key(field))
        || ["getMore", "killCursors"].contains(&name)
}

/// Without a `$sort`, which may have been taken away, groups come in any order.
fn in_order(reply: &mut Document) {
    for list in ["results", "values"] {
        if let Ok(list) = reply.get_array_mut(list) {
            list.sort_by_key(ToString::to_string);
        }
    }
    let batch = reply.get_document_mut("cursor").and_then(|cursor| cursor.get_array_mut("firstBatch"));
    if let Ok(batch) = batch {
        batch.sort_by_key(ToString::to_string);
    }
}

/// Of two faults each may tell another one: the proxy sends the fields of a write in another order.
fn are_refused(one: &Document, other: &Document) -> bool {
    [one, other].into_iter().all(|reply| reply.get_f64("ok").is_ok_and(|ok| ok == 0.0))
}

fn comparable(mut reply: Document) -> Document {
    mask::mask(&mut reply);
    let mut reply = Bson::Document(reply);
    without_given(&mut reply);
    match reply {
        Bson::Document(mut reply) => {
            in_order(&mut reply);
            reply
        }
        _ => Document::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_are_wrong_get_the_answers_of_a_server() -> Result<()> {
    let seed = seed()?;
    let (sets, direct) = tokio::try_join!(two_sets("twisted"), ReplicaSet::builder("direct").start())?;
    let (old, new) = sets;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let (mut to_server, mut through) =
        (Line::to(direct.node(0).address()).await?, Line::to(&proxy.address().to_string()).await?);
    for line in [&mut to_server, &mut through] {
        make(line, "twisted", false).await?;
    }
    let operator = Operator::of(&proxy, "m");
    operator.create(&["twisted.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let corpus = corpus()?;
    let mut dice = Dice(seed);
    let (mut found, mut compared) = (Vec::new(), 0);
    for _ in 0..COMMANDS {
        let case = &corpus[dice.below(corpus.len())];
        let mut command = Document::try_from(&*case.command("twisted", through.cursor)?)?;
        let mut same = Document::try_from(&*case.command("twisted", to_server.cursor)?)?;
        let mut again = Dice(dice.0);
        twist_document(&mut dice, &mut command, 4);
        twist_document(&mut again, &mut same, 4);
        if is_left_out(&command) {
            continue;
        }
        let got = through.ask(&RawDocumentBuf::try_from(&command)?).await?;
        if got.get_i32("code").is_ok_and(|code| code == NOT_NOW)
            && got.get_str("errmsg")?.starts_with("reshard: ")
        {
            continue;
        }
        let wanted = comparable(to_server.ask(&RawDocumentBuf::try_from(&same)?).await?);
        let got = comparable(got);
        compared += 1;
        if !are_refused(&wanted, &got) && bson::serialize_to_vec(&wanted)? != bson::serialize_to_vec(&got)? {
            found.push(format!("{}: {command}\n   wanted {wanted}\n   got    {got}", case.name));
        }
    }
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "twisted.c").await?;
    proxy.shutdown().await;
    ensure!(found.is_empty(), "RESHARD_SEED={seed}: {} differences:\n{}", found.len(), found.join("\n"));
    println!("{compared} were compared");
    ensure!(compared > COMMANDS / 2, "{compared} were compared");
    Ok(())
}
