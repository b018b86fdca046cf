//! Commands of the corpus with other fields and values than they should have, by a seed: whatever is wrong with them,
//! the answer is a server's. `RESHARD_SEED` gives another seed.

use anyhow::{Result, ensure};
use bson::{Document, RawDocumentBuf};
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

fn comparable(mut reply: Document) -> Document {
    mask::mask_of_twisted(&mut reply);
    reply
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
        if mask::is_left_out(&command) {
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
        if !mask::are_refused(&wanted, &got)
            && bson::serialize_to_vec(&wanted)? != bson::serialize_to_vec(&got)?
        {
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
