//! The reports of one migration, by shape: bounded, and stored so that a restart keeps them.

use std::collections::HashMap;

use bson::{RawDocumentBuf, doc, rawdoc};
use parking_lot::Mutex;

use super::reading::Read;
use super::report::{Ended, Look, ShapeReport, cut};
use super::view::{ShadowView, ShapeDiff};
use crate::clock::Clock;
use crate::state::record::{DATABASE, SCHEMA};
use crate::state::records::{RecordError, Records};

const DIFFS: &str = "shadow_diffs";
/// Shapes that are told apart; all further ones make one.
pub(super) const MOST_SHAPES: usize = 200;
/// What the further ones are known by.
const OTHERS: &str = "others";
const MOST_RACES: u32 = 10;
const DUPLICATE_KEY: i32 = 11000;

/// What one shape came to.
#[derive(Debug, Default)]
struct Known {
    /// By what is stored.
    stored: ShapeReport,
    /// Its version; `None` where nothing is stored.
    version: Option<i64>,
    /// What is being stored: it counts meanwhile, and is part of `stored` afterwards.
    storing: ShapeReport,
    /// Since then.
    since: ShapeReport,
}

impl Known {
    fn all(&self) -> ShapeReport {
        let mut all = self.stored.clone();
        for part in [&self.storing, &self.since] {
            if part.runs > 0 {
                all.merge(part);
            }
        }
        all
    }

    /// What is to be stored now, if anything is.
    fn take(&mut self) -> Option<ShapeReport> {
        // Of a time that was cut short: it may count twice, and is not lost.
        self.give_back();
        self.storing = std::mem::take(&mut self.since);
        (self.storing.runs > 0).then(|| self.storing.clone())
    }

    /// It could not be stored: it is new as before.
    fn give_back(&mut self) {
        let mut older = std::mem::take(&mut self.storing);
        if older.runs == 0 {
            return;
        }
        if self.since.runs > 0 {
            older.merge(&self.since);
        }
        self.since = older;
    }
}

#[derive(Debug, Default)]
struct State {
    shapes: HashMap<String, Known>,
    is_read: bool,
    settings: ShadowView,
    tally: Tally,
}

/// How reads ended in this process, ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// They were compared to an end.
    pub compared: u64,
    /// They were not answered, or never settled.
    pub uncompared: u64,
}

impl Tally {
    fn note(&mut self, ended: &Ended) {
        match ended {
            Ended::Equal | Ended::Permuted | Ended::Transient | Ended::Different(..) => self.compared += 1,
            Ended::Unsettled | Ended::Failed => self.uncompared += 1,
            Ended::Nondeterministic => {}
        }
    }
}

/// The reports of one migration.
#[derive(Debug)]
pub struct Reports {
    migration: String,
    state: Mutex<State>,
    /// One change of what is stored at a time.
    storing: tokio::sync::Mutex<()>,
}

fn malformed(error: impl std::fmt::Display) -> RecordError {
    RecordError::Malformed(error.to_string())
}

impl Reports {
    /// Those of `migration`, not read yet.
    #[must_use]
    pub fn new(migration: &str) -> Self {
        Self {
            migration: migration.to_owned(),
            state: Mutex::default(),
            storing: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn set(&self, settings: ShadowView) {
        self.state.lock().settings = settings;
    }

    pub(super) fn settings(&self) -> ShadowView {
        self.state.lock().settings
    }

    /// Takes note of how the comparison of a read ended.
    pub(super) fn note(&self, read: &Read, look: Look, ended: Ended, clock: &dyn Clock) {
        let shape = super::shape_of(read);
        let mut state = self.state.lock();
        state.tally.note(&ended);
        let (full, shows) = (state.shapes.len() >= MOST_SHAPES, state.settings.show_values);
        let (name, query) = match shape {
            (hash, _) if full && !state.shapes.contains_key(&hash) => (OTHERS.to_owned(), String::new()),
            (hash, text) => (hash, cut(&text)),
        };
        let since = &mut state.shapes.entry(name.clone()).or_default().since;
        if since.runs == 0 {
            let is_other = name == OTHERS;
            since.shape = name;
            since.query = query;
            if !is_other {
                since.namespace = read.namespace.as_str().to_owned();
                since.command.clone_from(&read.name);
            }
        }
        since.note(read, look, ended, clock.wall_millis(), shows);
    }

    /// All of them, those with most differences first.
    pub(super) fn list(&self) -> Vec<ShapeDiff> {
        let state = self.state.lock();
        let mut all: Vec<_> = state.shapes.values().map(|known| shown(known.all())).collect();
        drop(state);
        all.sort_by(|left, right| {
            let order = |shape: &ShapeDiff| (-shape.different, -shape.runs);
            order(left).cmp(&order(right)).then_with(|| left.shape.cmp(&right.shape))
        });
        all
    }

    /// The sum of all shapes.
    pub(super) fn sum(&self) -> ShapeReport {
        let state = self.state.lock();
        let mut sum = ShapeReport::default();
        state.shapes.values().for_each(|known| {
            for part in [&known.stored, &known.storing, &known.since] {
                sum.add_counts(part);
            }
        });
        sum
    }

    pub(super) fn tally(&self) -> Tally {
        self.state.lock().tally
    }

    pub(super) fn is_read(&self) -> bool {
        self.state.lock().is_read
    }

    /// Reads what is stored.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn load(&self, records: &Records) -> Result<(), RecordError> {
        let _one = self.storing.lock().await;
        let limit = i32::try_from(MOST_SHAPES).unwrap_or(i32::MAX) * 2;
        let found = records.find(DATABASE, DIFFS, rawdoc! { "migration": &*self.migration }, limit).await?;
        let mut state = self.state.lock();
        for raw in &found {
            let (stored, version) = parse(raw)?;
            let known = state.shapes.entry(stored.shape.clone()).or_default();
            (known.stored, known.version) = (stored, Some(version));
        }
        state.is_read = true;
        Ok(())
    }

    /// Stores what has been found since the last time.
    ///
    /// # Errors
    /// [`RecordError`]; what could not be stored is tried again the next time.
    pub async fn store(&self, records: &Records) -> Result<(), RecordError> {
        let _one = self.storing.lock().await;
        let news: Vec<(String, ShapeReport)> = {
            let mut state = self.state.lock();
            let news = state.shapes.iter_mut();
            news.filter_map(|(shape, known)| Some((shape.clone(), known.take()?))).collect()
        };
        let mut result = Ok(());
        for (shape, since) in news {
            // What is not stored yet stays what it is: new.
            let stored = if result.is_ok() { self.add(records, &shape, &since).await } else { Ok(None) };
            let mut state = self.state.lock();
            let known = state.shapes.entry(shape).or_default();
            match stored {
                Ok(Some((stored, version))) => {
                    (known.stored, known.version) = (stored, Some(version));
                    known.storing = ShapeReport::default();
                }
                Ok(None) => known.give_back(),
                Err(error) => {
                    known.give_back();
                    result = Err(error);
                }
            }
        }
        result
    }

    /// Adds to what is stored of a shape, in one step whatever others store meanwhile.
    async fn add(
        &self,
        records: &Records,
        shape: &str,
        since: &ShapeReport,
    ) -> Result<Option<(ShapeReport, i64)>, RecordError> {
        let id = format!("{}/{shape}", self.migration);
        let (mut all, mut version) = {
            let state = self.state.lock();
            let known = state.shapes.get(shape);
            known.map_or_else(Default::default, |known| (known.stored.clone(), known.version))
        };
        for _ in 0..MOST_RACES {
            all.merge(since);
            let next = version.unwrap_or(0) + 1;
            let mut fields = bson::serialize_to_document(&all).map_err(malformed)?;
            fields.insert("migration", &self.migration);
            fields.insert("schema", SCHEMA);
            fields.insert("version", next);
            let query = doc! { "_id": &id, "version": version };
            match records.change(DATABASE, DIFFS, query, doc! { "$set": fields }, version.is_none()).await {
                Ok(Some(_)) => return Ok(Some((all, next))),
                Ok(None) => {}
                Err(RecordError::Refused(error)) if error.code == DUPLICATE_KEY => {}
                Err(error) => return Err(error),
            }
            // Another process has changed it.
            let found = records.find(DATABASE, DIFFS, rawdoc! { "_id": &*id }, 1).await?;
            (all, version) = match found.first() {
                Some(raw) => parse(raw).map(|(stored, version)| (stored, Some(version)))?,
                None => Default::default(),
            };
        }
        Err(RecordError::Unavailable("another process changes it all the time".into()))
    }

    /// Forgets everything, also what is stored.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(super) async fn forget(&self, records: &Records) -> Result<(), RecordError> {
        let _one = self.storing.lock().await;
        records.remove(DATABASE, DIFFS, rawdoc! { "migration": &*self.migration }).await?;
        let mut state = self.state.lock();
        state.shapes.clear();
        state.is_read = true;
        Ok(())
    }
}

fn parse(raw: &RawDocumentBuf) -> Result<(ShapeReport, i64), RecordError> {
    if raw.get_i32("schema").is_ok_and(|schema| schema != SCHEMA) {
        return Err(malformed("a shadow report was stored by another version of reshard"));
    }
    let stored = bson::deserialize_from_slice(raw.as_bytes()).map_err(malformed)?;
    Ok((stored, raw.get_i64("version").map_err(malformed)?))
}

fn shown(report: ShapeReport) -> ShapeDiff {
    ShapeDiff {
        old: report.latency.old.view(),
        new: report.latency.new.view(),
        old_access: report.access.old,
        new_access: report.access.new,
        shape: report.shape,
        namespace: report.namespace,
        command: report.command,
        query: report.query,
        runs: report.runs,
        equal: report.equal,
        permuted: report.permuted,
        transient: report.transient,
        different: report.different,
        nondeterministic: report.nondeterministic,
        unsettled: report.unsettled,
        failed: report.failed,
        differences: report.differences,
        first_seen: report.first_seen,
        last_seen: report.last_seen,
        examples: report.examples,
    }
}
