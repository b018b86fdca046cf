//! Byte comparison of one collection on two clusters.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result};
use bson::{Document, RawBsonRef, RawDocument};
use mongodb::Collection;
use serde::Serialize;

use crate::canonical::{hash64, id_hash};
use crate::scan::{connect, scan};

const EXAMPLES: usize = 20;

/// The result of [`compare`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// `database.collection`
    pub namespace: String,
    /// Documents on side a.
    pub documents_a: u64,
    /// Documents on side b.
    pub documents_b: u64,
    /// Bytes read from both.
    pub bytes: u64,
    /// Documents that only b has.
    pub missing_in_a: u64,
    /// Documents that only a has.
    pub missing_in_b: u64,
    /// Documents that both have, with other bytes.
    pub different: u64,
    /// `_id`s that one side has more than once.
    pub duplicates: u64,
    /// The first of them.
    pub examples: Vec<String>,
    /// Time it took.
    pub seconds: f64,
}

impl Comparison {
    /// Both sides have the same documents, byte for byte.
    pub fn is_equal(&self) -> bool {
        self.missing_in_a + self.missing_in_b + self.different + self.duplicates == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_equal() { "EQUAL" } else { "DIFFERENT" };
        write!(
            out,
            "{verdict}: {}: {} and {} documents; {} missing in a, {} missing in b, {} different, {} duplicates ({:.1} s)",
            self.namespace,
            self.documents_a,
            self.documents_b,
            self.missing_in_a,
            self.missing_in_b,
            self.different,
            self.duplicates,
            self.seconds
        )?;
        self.examples.iter().try_for_each(|example| write!(out, "\n  {example}"))
    }
}

#[derive(Default)]
struct Side {
    documents: HashMap<u128, u64>,
    twice: HashSet<u128>,
    count: u64,
    bytes: u64,
}

fn id_of(document: &RawDocument) -> Result<RawBsonRef<'_>> {
    Ok(document.get("_id")?.unwrap_or(RawBsonRef::Null))
}

async fn read_side(collection: Collection<Document>) -> Result<Side> {
    let mut side = Side::default();
    scan(&collection, |document| {
        let id = id_hash(id_of(document)?);
        side.count += 1;
        side.bytes += u64::try_from(document.as_bytes().len()).unwrap_or_default();
        if side.documents.insert(id, hash64(document.as_bytes())).is_some() {
            side.twice.insert(id);
        }
        Ok(true)
    })
    .await?;
    Ok(side)
}

/// Reads a collection on two clusters with majority and compares the documents
/// by their bytes, matched by `_id` (numbers of all types that are equal are one
/// `_id`, as for the server). Keeps hashes only. Both sides must be at rest.
pub async fn compare(uri_a: &str, uri_b: &str, namespace: &str) -> Result<Comparison> {
    let start = Instant::now();
    let (database, name) = namespace.split_once('.').context("a namespace is database.collection")?;
    let open = async |uri| anyhow::Ok(connect(uri, 4).await?.database(database).collection::<Document>(name));
    let (on_a, on_b) = (open(uri_a).await?, open(uri_b).await?);
    let (task_a, task_b) = (tokio::spawn(read_side(on_a.clone())), tokio::spawn(read_side(on_b.clone())));
    let (a, b) = (task_a.await??, task_b.await??);

    let mut result = Comparison {
        namespace: namespace.into(),
        documents_a: a.count,
        documents_b: b.count,
        bytes: a.bytes + b.bytes,
        duplicates: u64::try_from(a.twice.len() + b.twice.len()).unwrap_or(u64::MAX),
        ..Comparison::default()
    };
    let (mut wanted_a, mut wanted_b) = (HashMap::new(), HashMap::new());
    for (id, hash) in &a.documents {
        match b.documents.get(id) {
            None => {
                result.missing_in_b += 1;
                want(&mut wanted_a, *id, "missing in b");
            }
            Some(other) if other != hash => {
                result.different += 1;
                want(&mut wanted_a, *id, "different");
            }
            Some(_) => {}
        }
    }
    for id in b.documents.keys().filter(|id| !a.documents.contains_key(id)) {
        result.missing_in_a += 1;
        want(&mut wanted_b, *id, "missing in a");
    }
    a.twice.iter().for_each(|id| want(&mut wanted_a, *id, "more than once in a"));
    b.twice.iter().for_each(|id| want(&mut wanted_b, *id, "more than once in b"));
    name_examples(&on_a, wanted_a, &mut result.examples).await?;
    name_examples(&on_b, wanted_b, &mut result.examples).await?;
    result.seconds = start.elapsed().as_secs_f64();
    Ok(result)
}

fn want(wanted: &mut HashMap<u128, &'static str>, id: u128, what: &'static str) {
    if wanted.len() < EXAMPLES {
        wanted.insert(id, what);
    }
}

async fn name_examples(
    collection: &Collection<Document>,
    mut wanted: HashMap<u128, &'static str>,
    examples: &mut Vec<String>,
) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    scan(collection, |document| {
        let id = id_of(document)?;
        if let Some(what) = wanted.remove(&id_hash(id)) {
            examples.push(format!("{what}: {}", bson::Bson::try_from(id)?));
        }
        Ok(!wanted.is_empty())
    })
    .await
}
