//! Commands that set the time to live of documents while it is suspended: what they ask for, and what clusters
//! are asked instead.

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf, cstr};
use bson::{Document, RawDocument};

use super::catalog::{Index, MADE_WITH, SUSPENDED};
use super::nesting::unpacked;

const SECONDS: &str = "expireAfterSeconds";

/// The index that a command means.
#[derive(Debug, Clone, PartialEq)]
pub enum Which {
    /// By its name.
    Name(String),
    /// By its key.
    Key(Document),
}

/// Where in a command seconds stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In this one of `createIndexes`' indexes.
    Created(usize),
    /// In `collMod`'s `index`.
    Modified,
}

/// A time to live that a command sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Of which index.
    pub which: Which,
    /// In which place.
    pub place: Place,
    /// How long documents are to live.
    pub seconds: i64,
    /// The index as it is to be made, where it is.
    pub made: Option<Index>,
}

/// What becomes of a [`Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Clusters get it as it is, and refuse it by themselves.
    AsItIs,
    /// It is there already, the same: they are not asked. Servers before 5.0 would not take its seconds.
    AlreadyThere,
    /// It seems to be there already: they get these seconds, which it has while expiry is suspended, and say.
    Compare(i64),
    /// Its seconds are saved, and they get these.
    Save(i64),
}

/// The times to live that a command sets.
///
/// # Errors
/// In words, what cannot be set while expiry is suspended.
pub fn changes(command: &str, body: &RawDocument) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    match command {
        "createIndexes" => {
            let indexes = body.get_array("indexes").into_iter().flatten().flatten();
            for (number, index) in indexes.enumerate() {
                let Some(index) = index.as_document() else { continue };
                // Without a name a server refuses it.
                let (Some(seconds), Ok(name)) = (seconds(index)?, index.get_str("name")) else { continue };
                let which = Which::Name(name.to_owned());
                let made = unpacked(index).map(|spec| Index { spec, building: false });
                changes.push(Change { which, place: Place::Created(number), seconds, made });
            }
        }
        "collMod" => {
            if body.get(SECONDS).ok().flatten().is_some_and(|value| value.as_str() != Some("off")) {
                return Err(
                    "the time to live of a whole collection cannot be set while a migration moves it; \
                            wait until that is complete, or abort it"
                        .into(),
                );
            }
            let Ok(index) = body.get_document("index") else { return Ok(changes) };
            let key = || index.get_document("keyPattern").ok().and_then(unpacked);
            let name = index.get_str("name").ok().map(|name| Which::Name(name.to_owned()));
            if let (Some(seconds), Some(which)) = (seconds(index)?, name.or_else(|| key().map(Which::Key))) {
                changes.push(Change { which, place: Place::Modified, seconds, made: None });
            }
        }
        _ => {}
    }
    Ok(changes)
}

fn seconds(index: &RawDocument) -> Result<Option<i64>, String> {
    let seconds = match index.get(SECONDS).ok().flatten() {
        None => return Ok(None),
        Some(RawBsonRef::Int32(seconds)) => Some(i64::from(seconds)),
        Some(RawBsonRef::Int64(seconds)) => Some(seconds),
        #[expect(clippy::cast_possible_truncation, reason = "as servers do it; saturates")]
        Some(RawBsonRef::Double(seconds)) if seconds.is_finite() => Some(seconds as i64),
        Some(_) => None,
    };
    match seconds.filter(|seconds| (0..=SUSPENDED).contains(seconds)) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(format!("{SECONDS} must be a number from 0 to {SUSPENDED}")),
    }
}

/// What becomes of `change`, given the index that is there and the seconds that are saved for it.
#[must_use]
pub fn course(change: &Change, there: Option<&Index>, saved: Option<i64>) -> Course {
    let now = there.and_then(Index::ttl);
    match (change.place, there, now) {
        (Place::Created(_), None, _) => Course::Save(MADE_WITH),
        (Place::Created(_), Some(there), Some(now)) if saved == Some(change.seconds) => {
            let is_same = change.made.as_ref().is_some_and(|made| made.same_as(there) && !there.building);
            if is_same { Course::AlreadyThere } else { Course::Compare(now) }
        }
        // Made past the proxy, and still at work.
        (Place::Created(_), Some(_), Some(now)) if saved.is_none() && now == change.seconds => {
            Course::Save(now)
        }
        (Place::Created(_), Some(_), _) | (Place::Modified, None, _) => Course::AsItIs,
        (Place::Modified, Some(_), _) => Course::Save(SUSPENDED),
    }
}

/// Whether `index` is the one meant.
#[must_use]
pub fn is_meant(which: &Which, index: &Index) -> bool {
    match which {
        Which::Name(name) => index.name() == name,
        Which::Key(key) => {
            let mut spec = Document::new();
            spec.insert("key", key.clone());
            index.same_key(&Index { spec, building: false })
        }
    }
}

/// The command with other seconds in some places, or without what stands there; `None` when it would make no
/// index at all.
///
/// # Errors
/// In words, when it does not read.
pub fn rewritten(
    body: &RawDocument,
    instead: &[(Place, Option<i64>)],
) -> Result<Option<RawDocumentBuf>, String> {
    let of = |place| instead.iter().find(|(at, _)| *at == place).map(|(_, seconds)| *seconds);
    let mut is_left = true;
    let mut out = RawDocumentBuf::new();
    for field in body {
        let (name, value) = field.map_err(|error| error.to_string())?;
        match (name.as_str(), value) {
            ("indexes", RawBsonRef::Array(indexes)) => {
                let mut array = RawArrayBuf::new();
                is_left = false;
                for (number, index) in indexes.into_iter().enumerate() {
                    match (index.map_err(|error| error.to_string())?, of(Place::Created(number))) {
                        (_, Some(None)) => continue,
                        (RawBsonRef::Document(index), Some(Some(seconds))) => {
                            array.push(with(index, seconds)?);
                        }
                        (index, _) => array.push(index),
                    }
                    is_left = true;
                }
                out.append(cstr!("indexes"), array);
            }
            ("index", RawBsonRef::Document(index)) => match of(Place::Modified).flatten() {
                Some(seconds) => out.append(cstr!("index"), with(index, seconds)?),
                None => out.append(cstr!("index"), index.to_owned()),
            },
            _ => out.append(name, value),
        }
    }
    Ok(is_left.then_some(out))
}

fn with(index: &RawDocument, seconds: i64) -> Result<RawDocumentBuf, String> {
    let mut out = RawDocumentBuf::new();
    for field in index {
        let (name, value) = field.map_err(|error| error.to_string())?;
        if name.as_str() == SECONDS {
            out.append(name, seconds);
        } else {
            out.append(name, value);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{doc, rawdoc};

    fn index(spec: Document) -> Index {
        Index { spec, building: false }
    }

    #[test]
    fn what_sets_a_time_to_live_is_found_and_nothing_else_is_touched() {
        let body = rawdoc! {
            "createIndexes": "c",
            "indexes": [
                { "key": { "a": 1 }, "name": "a_1" },
                { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 60.9, "sparse": true },
            ],
            "$db": "d",
        };
        let found = changes("createIndexes", &body).unwrap();
        let place = Place::Created(1);
        assert_eq!((&found[0].which, found[0].place), (&Which::Name("t_1".into()), place));
        assert_eq!((found.len(), found[0].seconds), (1, 60));
        let made = rawdoc! {
            "createIndexes": "c",
            "indexes": [
                { "key": { "a": 1 }, "name": "a_1" },
                { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": MADE_WITH, "sparse": true },
            ],
            "$db": "d",
        };
        assert_eq!(rewritten(&body, &[(place, Some(MADE_WITH))]).unwrap(), Some(made));
        assert_eq!(rewritten(&body, &[]).unwrap(), Some(body.clone()));
        let less = rewritten(&body, &[(place, None)]).unwrap().unwrap();
        assert_eq!(less.get_array("indexes").unwrap().into_iter().count(), 1);
        assert_eq!(rewritten(&body, &[(place, None), (Place::Created(0), None)]), Ok(None));

        let body = rawdoc! { "collMod": "c", "index": { "keyPattern": { "t": 1 }, "expireAfterSeconds": 5 } };
        let found = changes("collMod", &body).unwrap();
        assert_eq!((found[0].place, found[0].seconds), (Place::Modified, 5));
        assert!(is_meant(&found[0].which, &index(doc! { "key": { "t": 1.0 }, "name": "of old" })));
        assert!(!is_meant(&found[0].which, &index(doc! { "key": { "t": -1 }, "name": "t_-1" })));
        let sent = rewritten(&body, &[(Place::Modified, Some(SUSPENDED))]).unwrap().unwrap();
        assert_eq!(sent.get_document("index").unwrap().get_i64("expireAfterSeconds").unwrap(), SUSPENDED);

        let hidden = rawdoc! { "collMod": "c", "index": { "name": "a_1", "hidden": true } };
        assert_eq!(changes("collMod", &hidden), Ok(Vec::new()));
        assert_eq!(changes("dropIndexes", &rawdoc! { "dropIndexes": "c", "index": "t_1" }), Ok(Vec::new()));
    }

    #[test]
    fn what_cannot_be_suspended_is_refused() {
        let made = |seconds: bson::raw::RawBson| {
            let mut index = rawdoc! { "key": { "t": 1 }, "name": "t_1" };
            index.append(cstr!("expireAfterSeconds"), seconds);
            changes("createIndexes", &rawdoc! { "createIndexes": "c", "indexes": [index] })
        };
        for bad in [(-1).into(), f64::NAN.into(), (SUSPENDED + 1).into(), "soon".into()] {
            assert!(made(bad).unwrap_err().contains("from 0 to 2147483647"));
        }
        assert_eq!(made(0.into()).unwrap()[0].seconds, 0);
        assert!(changes("collMod", &rawdoc! { "collMod": "c", "expireAfterSeconds": 5 }).is_err());
        assert!(changes("collMod", &rawdoc! { "collMod": "c", "expireAfterSeconds": "off" }).is_ok());
    }

    #[test]
    fn seconds_are_saved_where_a_cluster_takes_the_command() {
        let suspended = index(doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": SUSPENDED });
        let at_work = index(doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 60 });
        let made = Change {
            which: Which::Name("t_1".into()),
            place: Place::Created(0),
            seconds: 60,
            made: Some(at_work.clone()),
        };
        let sparse = doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 60, "sparse": true };
        let sparse = Change { made: Some(index(sparse)), ..made.clone() };
        let other = index(doc! { "key": { "t": 1 }, "name": "t_1" });
        assert_eq!(course(&made, None, None), Course::Save(MADE_WITH));
        assert_eq!(course(&made, None, Some(60)), Course::Save(MADE_WITH));
        assert_eq!(course(&made, Some(&suspended), Some(60)), Course::AlreadyThere);
        assert_eq!(course(&sparse, Some(&suspended), Some(60)), Course::Compare(SUSPENDED));
        assert_eq!(course(&made, Some(&suspended), Some(61)), Course::AsItIs);
        assert_eq!(course(&made, Some(&at_work), None), Course::Save(60));
        assert_eq!(course(&made, Some(&other), None), Course::AsItIs);
        let changed = Change { place: Place::Modified, ..made };
        assert_eq!(course(&changed, None, None), Course::AsItIs);
        assert_eq!(course(&changed, Some(&suspended), Some(9)), Course::Save(SUSPENDED));
        assert_eq!(course(&changed, Some(&other), None), Course::Save(SUSPENDED));
    }
}
