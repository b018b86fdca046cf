use super::*;
use crate::model::namespace::Namespace;
use crate::policy::shadow::answer::{Answer, Comparison, Terms, compare};
use bson::rawdoc;

fn read(served: Side) -> Read {
    let body = rawdoc! { "find": "c", "filter": { "a": 1 } };
    Read { name: "find".into(), namespace: Namespace::new("shop", "c"), body, served }
}

fn differences() -> Vec<Difference> {
    let served = vec![rawdoc! { "_id": 1, "a": { "b": "secret" } }, rawdoc! { "_id": 2 }];
    let shadow = vec![rawdoc! { "_id": 1, "a": { "b": 5, "c": 1 } }];
    let found = compare(&Answer::Documents(served), &Answer::Documents(shadow), &Terms::default());
    let Comparison::Different(found) = found else { panic!() };
    found
}

fn noted(served: Side, shows_values: bool) -> ShapeReport {
    let mut report = ShapeReport::default();
    report.note(&read(served), Look::default(), Ended::Different(differences(), Keys::Ids), 7, shows_values);
    report
}

#[test]
fn missing_is_what_new_lacks_whoever_served() {
    let kinds = |report: &ShapeReport| report.differences.keys().cloned().collect::<Vec<_>>();
    assert_eq!(kinds(&noted(Side::Old, false)), ["field_extra", "missing", "type"]);
    let by_new = noted(Side::New, true);
    assert_eq!(kinds(&by_new), ["extra", "field_missing", "type"]);
    let field = &by_new.examples[0].fields[0];
    assert_eq!((field.path.as_str(), field.kind.as_str()), ("a.b", "type"));
    assert_eq!(field.old.as_deref(), Some(r#"{"$numberInt":"5"}"#));
    assert_eq!(field.new.as_deref(), Some(r#""secret""#));
}

#[test]
fn values_are_masked_unless_they_are_asked_for() {
    let masked = noted(Side::Old, false);
    assert!(!format!("{masked:?}").contains("secret"), "{masked:?}");
    assert_eq!(masked.examples[0].fields[0].old.as_deref(), Some("String"));
    assert!(masked.examples[0].key.is_some());
    assert!(format!("{:?}", noted(Side::Old, true)).contains("secret"));
}

#[test]
fn what_a_read_groups_by_is_a_value_and_the_code_of_an_error_is_none() {
    let key = |keys, shows_values| {
        let mut report = ShapeReport::default();
        report.note(
            &read(Side::Old),
            Look::default(),
            Ended::Different(differences(), keys),
            7,
            shows_values,
        );
        report.examples[0].key.is_some()
    };
    assert!(key(Keys::Ids, false) && key(Keys::Values, true) && !key(Keys::Values, false));
    let failed = compare(&Answer::Error(50), &Answer::Error(96), &Terms::default());
    let Comparison::Different(failed) = failed else { panic!() };
    let mut report = ShapeReport::default();
    report.note(&read(Side::Old), Look::default(), Ended::Different(failed, Keys::Ids), 7, false);
    assert_eq!(report.examples[0].fields[0].new.as_deref(), Some(r#"{"$numberInt":"96"}"#));
}

#[test]
fn reports_add_up_and_stay_small() {
    let mut all = noted(Side::Old, false);
    for at in 8..50 {
        let mut more = ShapeReport::default();
        let mut found = differences();
        found[0].key = crate::policy::canonical::key_of(bson::raw::RawBsonRef::Int64(at));
        more.note(&read(Side::Old), Look::default(), Ended::Different(found, Keys::Ids), at, false);
        more.note(&read(Side::Old), Look::default(), Ended::Equal, at, false);
        all.merge(&more);
    }
    assert_eq!((all.runs, all.different, all.equal), (85, 43, 42));
    assert_eq!((all.first_seen, all.last_seen), (Some(7), Some(49)));
    assert_eq!(all.differences["missing"], 43);
    assert_eq!(all.examples.len(), MOST_EXAMPLES);
    let stored = bson::serialize_to_document(&all).unwrap();
    assert_eq!(bson::deserialize_from_document::<ShapeReport>(stored).unwrap(), all);
}

#[test]
fn the_newest_explanation_of_each_side_stays() {
    let access = |at, scan: &str| {
        let (scan, shards) = (scan.to_owned(), "unsharded".to_owned());
        Some(AccessView { at, scan, documents_examined: 1, shards })
    };
    let explained = |old, new| {
        let look = Look { access: PerSide { old, new }, ..Look::default() };
        let mut report = ShapeReport::default();
        report.note(&read(Side::Old), look, Ended::Equal, 1, false);
        report
    };
    let mut all = explained(access(5, "index"), access(5, "index"));
    all.merge(&explained(access(4, "collection"), access(6, "collection")));
    all.merge(&explained(None, None));
    let scans = [&all.access.old, &all.access.new].map(|one| one.as_ref().map(|one| one.scan.as_str()));
    assert_eq!(scans, [Some("index"), Some("collection")]);
    let stored = bson::serialize_to_document(&all).unwrap();
    assert_eq!(bson::deserialize_from_document::<ShapeReport>(stored).unwrap(), all);
}

#[test]
fn latencies_keep_their_quantiles() {
    let mut latencies = Latencies::default();
    assert_eq!(latencies.view().p50_ms, None);
    (0..98).for_each(|_| latencies.add(Duration::from_micros(900)));
    (0..2).for_each(|_| latencies.add(Duration::from_millis(400)));
    let view = latencies.view();
    let near = |quantile: Option<f64>, expected: f64| {
        let quantile = quantile.unwrap();
        assert!(quantile >= expected && quantile <= expected * 1.5, "{quantile} {expected}");
    };
    near(view.p50_ms, 0.9);
    near(view.p95_ms, 0.9);
    near(view.p99_ms, 400.0);
    latencies.add(Duration::ZERO);
    latencies.add(Duration::from_secs(100_000));
    assert_eq!(latencies.view().samples, 102);
}
