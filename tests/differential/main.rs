//! A corpus of commands, run directly and through the proxy, in four states of a migration: the replies are the
//! same, byte by byte, but for a closed list (`mask.rs`) and for what is refused (`corpus`).

#[path = "../support/mod.rs"]
mod support;

mod asked;
mod case;
mod mask;
#[path = "../../fuzz/mutate.rs"]
#[allow(dead_code, reason = "damaged bytes are for another test")]
mod mutate;
mod twisted;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use reshard::migration::control::NamespaceSpec;
use reshard::policy::shard_key::ShardKey;
use reshard::wire::header::{Header, OP_MSG};
use reshard::wire::op_msg::{OpMsg, build};
use reshard_testbed::{ReplicaSet, ShardedCluster};
use support::{Operator, proxy, two_sets, until_equal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use case::{Case, Expected, names_states, read};

const NOT_NOW: i32 = 115;
const ALONE: &str = "alone";
const MIRRORED: &str = "mirrored";
const READS_DIVIDED: &str = "reads_divided";
const DIVIDED: &str = "divided";

fn corpus() -> Result<Vec<Case>> {
    let files = [
        ("writes", include_str!("corpus/writes.jsonl")),
        ("types", include_str!("corpus/types.jsonl")),
        ("reads", include_str!("corpus/reads.jsonl")),
        ("catalog", include_str!("corpus/catalog.jsonl")),
        ("server", include_str!("corpus/server.jsonl")),
    ];
    let mut all = Vec::new();
    for (file, text) in files {
        all.extend(read(file, text)?);
    }
    for case in &all {
        names_states(case, &[MIRRORED, READS_DIVIDED, DIVIDED])?;
    }
    Ok(all)
}

/// One connection, to a server or to the proxy.
struct Line {
    stream: TcpStream,
    cursor: i64,
}

impl Line {
    async fn to(address: &str) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(address).await?, cursor: 0 })
    }

    async fn ask(&mut self, body: &RawDocument) -> Result<Document> {
        self.send(&build(7, 0, 0, body.as_bytes(), None)).await
    }

    async fn send(&mut self, message: &[u8]) -> Result<Document> {
        self.stream.write_all(message).await?;
        let mut bytes = vec![0; 16];
        self.stream.read_exact(&mut bytes).await?;
        let header = Header::parse(&bytes)?.context("header")?;
        bytes.resize(header.length, 0);
        self.stream.read_exact(&mut bytes[16..]).await?;
        // What comes before the document is the same for all servers.
        let parsed = OpMsg::parse(&bytes)?;
        ensure!(header.response_to == Header::parse(message)?.context("header")?.request_id, "{header:?}");
        ensure!(header.opcode == OP_MSG && parsed.flags == 0 && parsed.sequences.is_empty(), "{header:?}");
        let reply = Document::try_from(RawDocument::from_bytes(&bytes[parsed.body])?)?;
        let cursor = reply.get_document("cursor").and_then(|cursor| cursor.get_i64("id"));
        self.cursor = cursor.ok().filter(|id| *id != 0).unwrap_or(self.cursor);
        Ok(reply)
    }

    /// `beside`: statements of a write in a section of their own, as drivers send them.
    async fn run(&mut self, case: &Case, database: &str, beside: bool) -> Result<Document> {
        let command = case.command(database, self.cursor)?;
        let apart = beside.then(|| statements_apart(&command)).flatten();
        let message = match &apart {
            None => build(7, 0, 0, command.as_bytes(), None),
            Some((body, name, statements)) => build(7, 0, 0, body.as_bytes(), Some((name, statements))),
        };
        let asked = tokio::time::timeout(Duration::from_secs(60), self.send(&message));
        asked.await?.with_context(|| format!("{}: {command:?}", case.name))
    }
}

/// A write without its statements, the name of their array, and they themselves.
fn statements_apart(command: &RawDocument) -> Option<(RawDocumentBuf, &'static str, Vec<u8>)> {
    let (verb, _) = command.iter().next()?.ok()?;
    let name = match verb.as_str() {
        "insert" => "documents",
        "update" => "updates",
        "delete" => "deletes",
        _ => return None,
    };
    let mut statements = Vec::new();
    for statement in command.get_array(name).ok()? {
        statements.extend_from_slice(statement.ok()?.as_document()?.as_bytes());
    }
    let mut body = RawDocumentBuf::new();
    for (field, value) in command.iter().flatten().filter(|(field, _)| field.as_str() != name) {
        body.append(field, value);
    }
    Some((body, name, statements))
}

/// What is compared of a reply.
fn comparable(case: &Case, mut reply: Document) -> Result<Document> {
    if let Some(part) = &case.only
        && reply.get_f64("ok").is_ok_and(|ok| ok == 1.0)
    {
        return mask::part(part, &reply);
    }
    mask::mask(&mut reply);
    if case.sorted {
        mask::in_order(&mut reply);
    }
    Ok(reply)
}

/// Runs the corpus in one state; returns every difference, in words.
async fn differences(
    corpus: &[Case],
    state: &str,
    direct: &mut Line,
    through: &mut Line,
    shards: bool,
) -> Result<Vec<String>> {
    let database = format!("diff_{state}");
    let mut found = Vec::new();
    let comparable = |case, reply| {
        let reply = comparable(case, reply)?;
        anyhow::Ok(if shards { mask::by_name(reply) } else { reply })
    };
    // Each in one form here, and in the other in the next state.
    let turn =
        [ALONE, MIRRORED, READS_DIVIDED, DIVIDED].iter().position(|one| *one == state).context("a state")?;
    for (number, case) in corpus.iter().enumerate().filter(|(_, case)| case.sharded || !shards) {
        let beside = (number + turn) % 2 == 0;
        let got = through.run(case, &database, beside).await?;
        let code = got.get_i32("code").ok();
        let wrong = match case.expected(state)? {
            Expected::Refused => (code != Some(NOT_NOW)).then(|| "a refusal".to_owned()),
            Expected::AnError => code.is_none().then(|| "an error".to_owned()),
            Expected::Same => {
                let wanted = comparable(case, direct.run(case, &database, beside).await?)?;
                let same = bson::serialize_to_vec(&wanted)?
                    == bson::serialize_to_vec(&comparable(case, got.clone())?)?;
                (!same).then(|| wanted.to_string())
            }
        };
        if let Some(wanted) = wrong {
            found.push(format!(
                "{state}: {}\n   wanted {wanted}\n   got    {}",
                case.name,
                comparable(case, got)?
            ));
        }
    }
    Ok(found)
}

/// How the collection that migrates comes to be, before anything is compared.
async fn make(line: &mut Line, database: &str, shard: bool) -> Result<()> {
    let mut commands = vec![rawdoc! { "create": "c", "$db": database }];
    if shard {
        let namespace = format!("{database}.c");
        commands.push(rawdoc! { "enableSharding": database, "$db": "admin" });
        commands.push(rawdoc! { "shardCollection": namespace, "key": { "_id": "hashed" }, "$db": "admin" });
    }
    for command in commands {
        let made = line.ask(&command).await?;
        ensure!(made.get_f64("ok")? == 1.0, "{made}");
    }
    Ok(())
}

/// Runs the corpus in all states, on `direct` and between `old` and `new`.
async fn replies_are_equal(direct: &str, old: &str, new: &str, shard: bool) -> Result<()> {
    let proxy = proxy(old, Some(new)).await?;
    let corpus = corpus()?;
    let mut to_server = Line::to(direct).await?;
    let mut found = Vec::new();
    for state in [ALONE, MIRRORED, READS_DIVIDED, DIVIDED] {
        let mut through = Line::to(&proxy.address().to_string()).await?;
        let database = format!("diff_{state}");
        for line in [&mut to_server, &mut through] {
            make(line, &database, shard).await?;
        }
        let operator = Operator::of(&proxy, state);
        let namespace = format!("{database}.c");
        if state != ALONE {
            let shard_key = shard.then(|| ShardKey::parse(&doc! { "_id": "hashed" }));
            let shard_key = shard_key.transpose().map_err(anyhow::Error::msg)?;
            operator
                .create_as(vec![NamespaceSpec { shard_key, ..NamespaceSpec::plain(&*namespace) }])
                .await?;
            operator.start().await?;
            operator.until_synced().await?;
        }
        if state == READS_DIVIDED || state == DIVIDED {
            operator.reads(50).await?;
        }
        if state == DIVIDED {
            operator.writes(50).await?;
        }
        found.extend(differences(&corpus, state, &mut to_server, &mut through, shard).await?);
        if state != ALONE {
            operator.until_level().await?;
            until_equal(old, new, &namespace).await?;
        }
    }
    proxy.shutdown().await;
    ensure!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_are_those_of_a_replica_set() -> Result<()> {
    let (sets, direct) = tokio::try_join!(two_sets("differential"), ReplicaSet::builder("direct").start())?;
    let (old, new) = sets;
    replies_are_equal(direct.node(0).address(), &old.uri(), &new.uri(), false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_are_those_of_a_sharded_cluster() -> Result<()> {
    let cluster = || ShardedCluster::builder().shards(2).start();
    let (direct, old, new) = tokio::try_join!(cluster(), cluster(), cluster())?;
    replies_are_equal(direct.router().address(), &old.uri(), &new.uri(), true).await
}
