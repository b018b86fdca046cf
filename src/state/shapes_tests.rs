use super::*;
use bson::rawdoc;

const MS: Duration = Duration::from_millis(1);

fn note(
    shapes: &Shapes,
    field: &str,
    side: Side,
    took: Duration,
    failed: bool,
    now: Duration,
) -> Arc<Watched> {
    let mut filter = bson::RawDocumentBuf::new();
    filter.append(bson::raw::CString::try_from(field).unwrap(), 1);
    let body = rawdoc! { "find": "c", "filter": filter };
    let asked = Asked { namespace: "d.c", body: &body, statements: None };
    shapes.record(&asked, side, took, failed, now);
    shapes.of(&asked)
}

#[test]
fn each_side_is_measured_by_itself_and_windows_slide() {
    let shapes = Shapes::default();
    let at = Duration::from_secs;
    let watched = note(&shapes, "a", Side::Old, 10 * MS, false, at(100));
    note(&shapes, "a", Side::New, 40 * MS, false, at(100));
    note(&shapes, "a", Side::New, 40 * MS, true, at(115));
    let window = |side, now, span| watched.window(side, at(now), at(span));
    assert_eq!(window(Side::Old, 115, 60).samples(), 1);
    assert_eq!(window(Side::New, 115, 60).error_rate(), Some(0.5));
    // Whenever one looks: what happened within the last ten seconds is seen, and not for long after.
    assert_eq!(window(Side::New, 120, 10).error_rate(), Some(1.0));
    assert_eq!(window(Side::New, 125, 10).error_rate(), Some(1.0));
    assert_eq!(window(Side::New, 130, 10), Measured::default());
    for (now, span) in [(120, 10), (125, 10), (130, 10), (130, 30), (150, 30), (400, 300)] {
        let found = window(Side::New, now, span).errors > 0;
        assert_eq!(is_in_window(at(115), at(now), at(span)), found, "{span} s before {now}");
    }
    assert!(window(Side::New, 115, 60).quantile_ms(0.5).unwrap() > 30.0);
    assert_eq!(window(Side::New, 100 + 400, 300), Measured::default());
    // The same slot of the ring, five minutes later.
    note(&shapes, "a", Side::Old, MS, false, at(400));
    assert_eq!(window(Side::Old, 400, 300).samples(), 1);
    assert_eq!(watched.total(Side::Old), (2, 0));
    assert_eq!(watched.total(Side::New), (2, 1));
}

#[test]
fn a_full_table_takes_the_rest_together() {
    let shapes = Shapes::default();
    for index in 0..MOST_SHAPES + 10 {
        note(&shapes, &format!("f{index}"), Side::Old, MS, false, MS);
    }
    assert_eq!(shapes.all().len(), MOST_SHAPES + 1);
    assert_eq!(shapes.not_told_apart(), 10);
    assert_eq!(shapes.all().last().map(|other| other.hash), Some(OTHER));
}

#[test]
fn baselines_survive_a_restart() {
    let (before, after) = (Shapes::default(), Shapes::default());
    let watched = note(&before, "a", Side::Old, 10 * MS, false, MS);
    assert_eq!(watched.baseline(), None);
    before.note_baselines(MS);
    let kept = watched.baseline().unwrap();
    assert_eq!(kept.samples, 1);
    after.learn(&before.baselines());
    let found = note(&after, "a", Side::Old, 500 * MS, false, MS);
    assert_eq!(found.baseline(), Some(kept));
    assert_eq!(after.all().len(), 1);
}

/// With all reads on new old answers none of an application's any more, but those that are shadowed.
#[test]
fn what_old_does_for_shadow_reads_is_a_baseline_where_there_is_none() {
    let (shapes, shadowed) = (Shapes::default(), Shapes::default());
    let watched = note(&shapes, "a", Side::New, 10 * MS, false, MS);
    shapes.note_missing_baselines(&shadowed, MS, 2);
    assert_eq!(watched.baseline(), None, "nothing is known of old");
    note(&shadowed, "b", Side::Old, 90 * MS, false, MS);
    for took in [20, 30] {
        note(&shadowed, "a", Side::Old, took * MS, false, MS);
    }
    shapes.note_missing_baselines(&shadowed, MS, 2);
    let kept = watched.baseline().unwrap();
    assert!(kept.samples == 2 && (30.0..36.0).contains(&kept.p99_ms), "{kept:?}");
    // Enough is known: it stays.
    (0..9).for_each(|_| drop(note(&shadowed, "a", Side::Old, 500 * MS, false, MS)));
    shapes.note_missing_baselines(&shadowed, MS, 2);
    assert_eq!(watched.baseline(), Some(kept));
    // What applications waited for goes before.
    let beside = note(&shapes, "b", Side::Old, 10 * MS, false, MS);
    note(&shadowed, "b", Side::Old, 90 * MS, false, MS);
    shapes.note_missing_baselines(&shadowed, MS, 1);
    assert_eq!(beside.baseline().map(|baseline| baseline.samples), Some(1));
}

/// A step, or a move by hand, stores what is known by then: shapes that came later too, and it takes nothing back.
#[test]
fn what_is_stored_of_baselines_grows() {
    let before = Shapes::default();
    let known = note(&before, "a", Side::Old, 10 * MS, false, MS);
    before.note_baselines(MS);
    let first = before.baselines_after(&[]);
    assert_eq!(first.iter().map(|one| one.baseline).collect::<Vec<_>>(), [known.baseline().unwrap()]);
    // Another process, that has not looked at what is stored yet.
    let after = Shapes::default();
    note(&after, "b", Side::Old, 20 * MS, false, MS);
    after.note_missing_baselines(&Shapes::default(), MS, 1);
    let then = after.baselines_after(&first);
    assert!(then.len() == 2 && then.contains(&first[0]), "{then:?}");
    // Where no place is left in its table either.
    let full = Shapes::default();
    for index in 0..MOST_SHAPES {
        note(&full, &format!("f{index}"), Side::New, MS, false, MS);
    }
    assert_eq!(full.baselines_after(&then), then);
}
