//! `$readPreference` as a selection of a server.

use std::time::Duration;

use crate::cluster::{ReadMode, ReadPreference, Selection};
use crate::wire::element::{ARRAY, DOCUMENT, Element};
use crate::wire::scan::find;

/// Less than this no server takes as `maxStalenessSeconds`.
const LEAST_STALENESS: i64 = 90;

/// The server that `preference` asks for; the primary when there is none or no server takes it (the server
/// then says what is wrong with it).
#[must_use]
pub fn selection(preference: Option<Element<'_>>) -> Selection {
    let Some(preference) = preference.filter(|it| it.kind == DOCUMENT) else { return Selection::Primary };
    let mode = match find(preference, b"mode").and_then(|mode| mode.as_str()) {
        Some("primaryPreferred") => ReadMode::PrimaryPreferred,
        Some("secondary") => ReadMode::Secondary,
        Some("secondaryPreferred") => ReadMode::SecondaryPreferred,
        Some("nearest") => ReadMode::Nearest,
        _ => return Selection::Primary,
    };
    let staleness = find(preference, b"maxStalenessSeconds").and_then(|seconds| seconds.as_i64());
    // As by servers, -1 and 0 are taken for none.
    if staleness.is_some_and(|seconds| seconds < -1 || (1..LEAST_STALENESS).contains(&seconds)) {
        return Selection::Primary;
    }
    let staleness = staleness.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    Selection::ReadPreference(ReadPreference {
        mode,
        tag_sets: find(preference, b"tags").map(tag_sets).unwrap_or_default(),
        max_staleness: staleness.map(Duration::from_secs),
    })
}

fn tag_sets(tags: Element<'_>) -> Vec<Vec<(String, String)>> {
    if tags.kind != ARRAY {
        return Vec::new();
    }
    let sets = tags.children().into_iter().flatten().flatten().filter(|set| set.kind == DOCUMENT);
    sets.map(|set| set.children().into_iter().flatten().flatten().filter_map(tag).collect()).collect()
}

fn tag(tag: Element<'_>) -> Option<(String, String)> {
    Some((std::str::from_utf8(tag.key).ok()?.to_owned(), tag.as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::element::Elements;

    #[test]
    fn a_preference_is_read_with_tags_and_staleness() {
        let document = bson::rawdoc! { "$readPreference": {
            "mode": "secondary", "tags": [{ "dc": "east" }, {}], "maxStalenessSeconds": 120,
        } };
        let element = Elements::of(document.as_bytes()).unwrap().next().unwrap().unwrap();
        let expected = ReadPreference {
            mode: ReadMode::Secondary,
            tag_sets: vec![vec![("dc".to_owned(), "east".to_owned())], Vec::new()],
            max_staleness: Some(Duration::from_secs(120)),
        };
        assert_eq!(selection(Some(element)), Selection::ReadPreference(expected));
        assert_eq!(selection(None), Selection::Primary);
        let short = bson::rawdoc! { "$readPreference": { "mode": "secondary", "maxStalenessSeconds": 89 } };
        let short = Elements::of(short.as_bytes()).unwrap().next().unwrap().unwrap();
        assert_eq!(selection(Some(short)), Selection::Primary, "for a server to refuse");
    }

    #[test]
    fn one_in_an_array_is_for_a_server_to_refuse() {
        let mut bytes = bson::rawdoc! { "$readPreference": { "mode": "secondary" } }.into_bytes();
        bytes[4] = ARRAY;
        let array = Elements::of(&bytes).unwrap().next().unwrap().unwrap();
        assert_eq!(selection(Some(array)), Selection::Primary);
    }
}
