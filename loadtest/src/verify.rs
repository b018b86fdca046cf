//! The checker: compares the collection with all that is known of the writes.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use anyhow::Result;
use bson::{Bson, Document, RawBsonRef, RawDocument};

use crate::canonical::id_hash;
use crate::docs::{Builder, DocState};
use crate::hot::{HotEntry, HotFault, check_hot};
use crate::keys::Key;
use crate::ledger::Entry;
use crate::load::Shared;
use crate::prepare::{history_count, hot_count};
use crate::report::{Findings, Report, ViolationKind as Kind};
use crate::scan::{connect, scan};

/// Which of its effects a transaction of unknown outcome shows.
#[derive(Default)]
struct Joint {
    there: bool,
    not_there: bool,
}

struct Checker {
    builder: Builder,
    allow_foreign: bool,
    documents: u32,
    keys: HashMap<u128, Key>,
    entries: HashMap<Key, Entry>,
    hot: Vec<HotEntry>,
    seen: HashSet<Key>,
    joints: HashMap<u64, Joint>,
    findings: Findings,
    report: Report,
}

pub(crate) async fn verify(shared: &Shared, uri: &str) -> Result<Report> {
    let start = Instant::now();
    let client = connect(uri, 4).await?;
    let config = &shared.config;
    let collection = client.database(&config.database).collection::<Document>(&config.collection);
    let mut checker = Checker::new(shared);
    scan(&collection, |document| checker.document(document).map(|()| true)).await?;
    checker.finish();
    let tally = *shared.tally.lock();
    let mut report = checker.report;
    report.acknowledged = tally.acknowledged;
    report.failed = tally.failed;
    report.unknown = tally.unknown;
    report.violations = checker.findings.counts;
    report.examples = checker.findings.examples;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

impl Checker {
    fn new(shared: &Shared) -> Self {
        let config = &shared.config;
        let mut entries = HashMap::new();
        for ledger in &shared.ledgers {
            entries.extend(ledger.lock().entries().map(|(key, entry)| (key, entry.clone())));
        }
        let documents = history_count(config);
        let all = (0..documents).map(Key::History).chain((0..hot_count(config)).map(Key::Hot));
        let all = all.chain(entries.keys().copied().filter(|key| matches!(key, Key::Own { .. })));
        let hash = |key| {
            bson::RawBson::try_from(shared.builder.space.id(key)).map(|id| id_hash(id.as_raw_bson_ref()))
        };
        let keys = all.filter_map(|key| Some((hash(key).ok()?, key))).collect();
        Self {
            builder: shared.builder,
            allow_foreign: config.allow_foreign,
            documents,
            keys,
            entries,
            hot: shared.hot.iter().map(|entry| entry.lock().clone()).collect(),
            seen: HashSet::new(),
            joints: HashMap::new(),
            findings: shared.findings.lock().clone(),
            report: Report::default(),
        }
    }

    fn document(&mut self, raw: &RawDocument) -> Result<()> {
        self.report.documents += 1;
        let id = raw.get("_id")?.unwrap_or(RawBsonRef::Null);
        let Some(&key) = self.keys.get(&id_hash(id)) else {
            self.foreign(raw);
            return Ok(());
        };
        if !self.seen.insert(key) {
            self.findings.add(Kind::DuplicateDocument, key, "more than one document has this _id");
        }
        match key {
            Key::Hot(n) => self.hot_document(n, raw),
            Key::History(n) if !self.entries.contains_key(&key) => {
                if self.builder.history_bytes(n).as_bytes() != raw.as_bytes() {
                    let expected = self.builder.build(key, &Builder::history(n));
                    self.different(key, &expected, &Document::try_from(raw)?);
                }
                Ok(())
            }
            Key::Own { .. } | Key::History(_) => self.own_document(key, raw),
        }
    }

    fn foreign(&mut self, raw: &RawDocument) {
        self.report.foreign_documents += 1;
        if !self.allow_foreign || raw.get_i64("lt").ok() == Some(self.builder.space.tag()) {
            let id = raw.get("_id").ok().flatten().map_or_else(|| "none".into(), |id| format!("{id:?}"));
            let key = raw.get_str("key").unwrap_or("unknown");
            self.findings.add(
                Kind::UnexpectedDocument,
                format!("_id {id}"),
                format!("nobody wrote it; key {key}"),
            );
        }
    }

    fn own_document(&mut self, key: Key, raw: &RawDocument) -> Result<()> {
        let entry = self.entries.get(&key).cloned().unwrap_or_default();
        let found = Document::try_from(raw)?;
        let is = |state: &Option<DocState>| {
            state
                .as_ref()
                .is_some_and(|state| differences(&self.builder.build(key, state), &found).is_empty())
        };
        let now = is(&entry.now);
        let later = entry.pending.as_ref().is_some_and(|pending| is(&pending.after));
        if entry.pending.is_some() && now != later {
            self.resolve(&entry, later);
        }
        if now || later {
            return Ok(());
        }
        let pending = entry.pending.as_ref().and_then(|pending| pending.after.as_ref());
        let Some(state) = entry.now.as_ref().or(pending) else {
            let (kind, detail) = if entry.deleted {
                (Kind::Resurrected, "it was deleted and is back")
            } else {
                (Kind::UnexpectedDocument, "no insert of it was acknowledged")
            };
            self.findings.add(kind, key, detail);
            return Ok(());
        };
        let expected = self.builder.build(key, state);
        self.different(key, &expected, &found);
        Ok(())
    }

    fn different(&mut self, key: Key, expected: &Document, found: &Document) {
        for (kind, detail) in differences(expected, found) {
            self.findings.add(kind, key, detail);
        }
    }

    /// Notes which of its two states a document is in.
    fn resolve(&mut self, entry: &Entry, applied: bool) {
        if applied {
            self.report.unknown_applied += 1;
        } else {
            self.report.unknown_not_applied += 1;
        }
        self.joint(entry.pending.as_ref().and_then(|pending| pending.joint), applied);
    }

    fn joint(&mut self, joint: Option<u64>, applied: bool) {
        if let Some(joint) = joint {
            let joint = self.joints.entry(joint).or_default();
            if applied { joint.there = true } else { joint.not_there = true }
        }
    }

    fn hot_document(&mut self, n: u16, raw: &RawDocument) -> Result<()> {
        let key = Key::Hot(n);
        let mut found = Document::try_from(raw)?;
        let tokens: Vec<i64> = match found.get("toks") {
            Some(Bson::Array(items)) => items.iter().filter_map(Bson::as_i64).collect(),
            _ => Vec::new(),
        };
        self.report.hot_tokens += u64::try_from(tokens.len()).unwrap_or_default();
        let number = |name: &str| found.get(name).and_then(Bson::as_i64).unwrap_or(-1);
        let entry = self.hot.get(usize::from(n)).cloned().unwrap_or_default();
        for fault in check_hot(&entry, number("n"), number("c"), &tokens) {
            let (kind, detail) = describe(&fault);
            self.findings.add(kind, key, detail);
        }
        for (token, joint) in &entry.open {
            let applied = tokens.contains(token);
            if applied {
                self.report.unknown_applied += 1;
            } else {
                self.report.unknown_not_applied += 1;
            }
            self.joint(*joint, applied);
        }
        let expected = self.builder.hot(n);
        for name in ["n", "c", "toks"] {
            found.insert(name, expected.get(name).cloned().unwrap_or(Bson::Null));
        }
        self.different(key, &expected, &found);
        Ok(())
    }

    /// What should be there and was not seen.
    fn finish(&mut self) {
        let untouched = (0..self.documents).map(Key::History).filter(|key| !self.entries.contains_key(key));
        let hot = (0..self.hot.len()).filter_map(|n| u16::try_from(n).ok()).map(Key::Hot);
        let certain: Vec<_> = untouched.chain(hot).collect();
        self.report.documents_expected = u64::try_from(certain.len()).unwrap_or_default();
        for key in certain {
            if !self.seen.contains(&key) {
                self.findings.add(
                    Kind::MissingDocument,
                    key,
                    "it was there from the start and nobody deleted it",
                );
            }
        }
        let entries: Vec<_> = self.entries.iter().map(|(key, entry)| (*key, entry.clone())).collect();
        for (key, entry) in entries {
            let may_be_absent = entry.pending.as_ref().is_some_and(|pending| pending.after.is_none());
            self.report.documents_expected += u64::from(entry.now.is_some() && !may_be_absent);
            if self.seen.contains(&key) {
                continue;
            }
            match (&entry.now, &entry.pending) {
                (None, Some(pending)) if pending.after.is_some() => self.resolve(&entry, false),
                (Some(_), Some(pending)) if pending.after.is_none() => self.resolve(&entry, true),
                (Some(_), _) => {
                    self.findings.add(
                        Kind::MissingDocument,
                        key,
                        "acknowledged, never deleted, and not there",
                    );
                }
                (None, _) => {}
            }
        }
        let torn: Vec<_> = self.joints.iter().filter(|(_, joint)| joint.there && joint.not_there).collect();
        for (number, _) in torn {
            self.findings.add(
                Kind::TornTransaction,
                format!("transaction {number}"),
                "only a part of it is there",
            );
        }
    }
}

fn describe(fault: &HotFault) -> (Kind, String) {
    match fault {
        HotFault::CounterLow { found, least } => {
            (Kind::LostWrite, format!("counter n is {found}, at least {least} $inc were acknowledged"))
        }
        HotFault::CounterHigh { found, most } => {
            (Kind::DoubleEffect, format!("counter n is {found}, at most {most} $inc can have taken effect"))
        }
        HotFault::TokenMissing(token) => {
            (Kind::LostWrite, format!("token {token} was acknowledged and is not there"))
        }
        HotFault::TokenTwice(token, times) => {
            (Kind::DoubleEffect, format!("token {token} is there {times} times"))
        }
        HotFault::TokenRefused(token) => {
            (Kind::DoubleEffect, format!("token {token} was refused and is there"))
        }
        HotFault::TokenUnknown(token) => (Kind::WrongContent, format!("token {token} was never sent")),
        HotFault::Torn { c, tokens } => {
            (Kind::WrongContent, format!("counter c is {c} with {tokens} tokens; one update changes both"))
        }
    }
}

/// How a document differs from what it should be; the order of fields does not
/// count.
pub(crate) fn differences(expected: &Document, found: &Document) -> Vec<(Kind, String)> {
    let mut out = Vec::new();
    for (name, want) in expected {
        match (found.get(name), want) {
            (Some(have), _) if have == want => {}
            (Some(Bson::Int64(have)), Bson::Int64(want)) => {
                let kind = match name.as_str() {
                    "rev" | "m" | "ver" if have < want => Kind::LostWrite,
                    "rev" | "m" => Kind::DoubleEffect,
                    _ => Kind::WrongContent,
                };
                out.push((kind, format!("{name} is {have}, expected {want}")));
            }
            (Some(Bson::Array(have)), Bson::Array(want)) => out.extend(token_differences(have, want)),
            (Some(have), _) => {
                out.push((
                    Kind::WrongContent,
                    format!("{name} is {}, expected {}", short(have), short(want)),
                ));
            }
            (None, _) => out.push((Kind::WrongContent, format!("field {name} is missing"))),
        }
    }
    let extra = found.keys().filter(|name| !expected.contains_key(*name));
    out.extend(extra.map(|name| (Kind::WrongContent, format!("field {name} should not be there"))));
    out
}

fn token_differences(have: &[Bson], want: &[Bson]) -> Vec<(Kind, String)> {
    let mut out = Vec::new();
    let times = |list: &[Bson], token: &Bson| list.iter().filter(|other| *other == token).count();
    for token in want.iter().filter(|token| !have.contains(token)) {
        out.push((Kind::LostWrite, format!("token {token} is missing")));
    }
    let mut named: Vec<&Bson> = Vec::new();
    for token in have {
        if !named.contains(&token) && times(have, token) > 1 {
            named.push(token);
            out.push((Kind::DoubleEffect, format!("token {token} is there {} times", times(have, token))));
        } else if !want.contains(token) {
            out.push((Kind::WrongContent, format!("token {token} should not be there")));
        }
    }
    if out.is_empty() {
        out.push((Kind::WrongContent, "tokens are in another order".into()));
    }
    out
}

fn short(value: &Bson) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { text.chars().take(60).chain("...".chars()).collect() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_fields::KeyFields;
    use crate::keys::KeySpace;

    fn kinds(change: impl Fn(&mut Document)) -> Vec<Kind> {
        let builder = Builder::new(KeySpace::new(1, true), 300, KeyFields::CustomerOrder);
        let state = DocState { email: 5, m: 2, rev: 3, toks: vec![7, 8], ver: 1 };
        let expected = builder.build(Key::Own { worker: 1, n: 4 }, &state);
        let mut found = expected.clone();
        change(&mut found);
        differences(&expected, &found).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn differences_are_classified() {
        assert!(kinds(|_| ()).is_empty());
        assert_eq!(kinds(|d| drop(d.insert("rev", 2_i64))), [Kind::LostWrite]);
        assert_eq!(kinds(|d| drop(d.insert("rev", 4_i64))), [Kind::DoubleEffect]);
        assert_eq!(kinds(|d| drop(d.insert("toks", vec![7_i64]))), [Kind::LostWrite]);
        assert_eq!(kinds(|d| drop(d.insert("toks", vec![7_i64, 8, 8]))), [Kind::DoubleEffect]);
        assert_eq!(kinds(|d| drop(d.insert("toks", vec![8_i64, 7]))), [Kind::WrongContent]);
        assert_eq!(kinds(|d| drop(d.insert("val", "other"))), [Kind::WrongContent]);
        assert_eq!(kinds(|d| drop(d.remove("val"))), [Kind::WrongContent]);
        assert_eq!(kinds(|d| drop(d.insert("more", 1))), [Kind::WrongContent]);
        assert_eq!(kinds(|d| drop(d.insert("rev", 3.0))), [Kind::WrongContent]);
        assert_eq!(kinds(|d| drop(d.insert("order_id", 3_i64))), [Kind::WrongContent]);
        assert_eq!(kinds(|d| drop(d.remove("customer_id"))), [Kind::WrongContent]);
    }
}
