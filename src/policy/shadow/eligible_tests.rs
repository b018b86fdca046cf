use super::*;
use bson::raw::RawBson;

fn asked(body: &RawDocument) -> Eligible {
    let name = body.iter().next().unwrap().unwrap().0.as_str();
    decide(name, body)
}

fn terms(body: &RawDocument) -> Terms {
    match asked(body) {
        Eligible::Run(terms) => terms,
        other => panic!("{body:?}: {other:?}"),
    }
}

fn reason(body: &RawDocument) -> Reason {
    match asked(body) {
        Eligible::Nondeterministic(reason) => {
            assert!(reason.is_nondeterministic());
            reason
        }
        Eligible::Skip(reason) => {
            assert!(!reason.is_nondeterministic());
            reason
        }
        Eligible::Run(terms) => panic!("{body:?}: {terms:?}"),
    }
}

#[test]
fn finds_tell_their_order_and_whether_they_are_cut() {
    assert_eq!(terms(&rawdoc! { "find": "c", "filter": { "a": 1 } }), Terms::default());
    let by_a = Sort::of(&rawdoc! { "a": 1 });
    assert_eq!(
        terms(&rawdoc! { "find": "c", "sort": { "a": 1 } }),
        Terms { sort: by_a.clone(), ..Terms::default() }
    );
    assert_eq!(
        terms(&rawdoc! { "find": "c", "sort": { "a": 1 }, "limit": 5 }),
        Terms { sort: by_a.clone(), cut: Some(Cut::default().limited(Some(5))), ..Terms::default() }
    );
    assert_eq!(
        terms(&rawdoc! { "find": "c", "filter": { "_id": 5 }, "limit": 1, "singleBatch": true }).sort,
        None
    );
    assert_eq!(terms(&rawdoc! { "find": "c", "filter": { "_id": { "a": 1 } }, "limit": 1 }).sort, None);
    assert_eq!(terms(&rawdoc! { "find": "c", "batchSize": 5 }), Terms::default());
}

#[test]
fn what_may_differ_from_itself_is_told_apart() {
    let pipeline =
        |stage: RawDocumentBuf| reason(&rawdoc! { "aggregate": "c", "pipeline": [{ "$match": {} }, stage] });
    assert_eq!(reason(&rawdoc! { "find": "c", "limit": 5 }), Reason::LimitWithoutSort);
    assert_eq!(reason(&rawdoc! { "find": "c", "skip": 5_i64 }), Reason::LimitWithoutSort);
    assert_eq!(
        reason(&rawdoc! { "find": "c", "sort": { "$natural": 1 }, "limit": 5 }),
        Reason::LimitWithoutSort
    );
    assert_eq!(
        reason(&rawdoc! { "find": "c", "filter": { "_id": { "$gt": 5 } }, "limit": 1 }),
        Reason::LimitWithoutSort
    );
    assert_eq!(
        reason(&rawdoc! { "find": "c", "singleBatch": true, "batchSize": 3 }),
        Reason::LimitWithoutSort
    );
    assert_eq!(reason(&rawdoc! { "find": "c", "showRecordId": true }), Reason::RecordIds);
    assert_eq!(reason(&rawdoc! { "find": "c", "filter": { "$where": "true" } }), Reason::Code);
    let now = rawdoc! { "find": "c", "filter": { "$expr": { "$lt": ["$a", "$$NOW"] } } };
    assert_eq!(reason(&now), Reason::TimeOrChance);
    let chance = rawdoc! { "find": "c", "projection": { "r": { "$rand": {} } } };
    assert_eq!(reason(&chance), Reason::TimeOrChance);
    assert_eq!(reason(&rawdoc! { "count": "c" }), Reason::Estimate);
    assert_eq!(reason(&rawdoc! { "count": "c", "query": {} }), Reason::Estimate);
    assert_eq!(pipeline(rawdoc! { "$sample": { "size": 3 } }), Reason::Sample);
    assert_eq!(pipeline(rawdoc! { "$set": { "at": "$$NOW" } }), Reason::TimeOrChance);
    assert_eq!(pipeline(rawdoc! { "$match": { "$sampleRate": 0.5 } }), Reason::TimeOrChance);
    assert_eq!(pipeline(rawdoc! { "$limit": 3 }), Reason::LimitWithoutSort);
    assert_eq!(pipeline(rawdoc! { "$group": { "_id": "$a", "all": { "$push": "$b" } } }), Reason::ByOrder);
    assert_eq!(pipeline(rawdoc! { "$group": { "_id": "$a", "one": { "$first": "$b" } } }), Reason::ByOrder);
    assert_eq!(pipeline(rawdoc! { "$setWindowFields": {} }), Reason::ByOrder);
}

#[test]
fn what_is_no_plain_read_is_left_alone() {
    assert_eq!(reason(&rawdoc! { "listIndexes": "c" }), Reason::Command);
    assert_eq!(reason(&rawdoc! { "findAndModify": "c", "query": {} }), Reason::Command);
    assert_eq!(reason(&rawdoc! { "find": "c", "tailable": true }), Reason::Tailable);
    assert_eq!(
        reason(&rawdoc! { "aggregate": "c", "pipeline": [{ "$changeStream": {} }] }),
        Reason::Tailable
    );
    assert_eq!(reason(&rawdoc! { "aggregate": "c", "pipeline": [], "explain": true }), Reason::Explain);
    assert_eq!(reason(&rawdoc! { "aggregate": "c", "pipeline": [{ "$lookup": {} }] }), Reason::Joins);
    assert_eq!(reason(&rawdoc! { "aggregate": "c", "pipeline": [{ "$out": "x" }] }), Reason::Writes);
    assert_eq!(reason(&rawdoc! { "aggregate": "c", "pipeline": [{ "$merge": "x" }] }), Reason::Writes);
    assert_eq!(
        reason(&rawdoc! { "aggregate": "c", "pipeline": [{ "$collStats": {} }] }),
        Reason::ServerState
    );
    assert_eq!(reason(&rawdoc! { "aggregate": "c", "pipeline": [5] }), Reason::NotUnderstood);
}

#[test]
fn pipelines_tell_the_order_of_their_result() {
    let of = |pipeline: bson::raw::RawArrayBuf| asked(&rawdoc! { "aggregate": "c", "pipeline": pipeline });
    let stages = |all: &[RawDocumentBuf]| all.iter().cloned().map(RawBson::Document).collect();
    let (by_a, by_id) = (rawdoc! { "$sort": { "a": 1 } }, rawdoc! { "$sort": { "a": 1, "_id": 1 } });
    let (limit, set) = (rawdoc! { "$limit": 5 }, rawdoc! { "$set": { "x": 1 } });
    let group = rawdoc! { "$group": { "_id": "$a", "n": { "$sum": 1 } } };
    let first = rawdoc! { "$group": { "_id": "$a", "n": { "$first": "$b" } } };
    let sorted =
        |sort: RawDocumentBuf, cut| Eligible::Run(Terms { sort: Sort::of(&sort), cut, ..Terms::default() });
    let five = Some(Cut::default().limited(Some(5)));
    let adding = || Eligible::Run(Terms { rounds: true, ..Terms::default() });
    assert_eq!(of(stages(&[])), Eligible::Run(Terms::default()));
    assert_eq!(of(stages(&[by_a.clone(), limit.clone()])), sorted(rawdoc! { "a": 1 }, five));
    assert_eq!(of(stages(&[by_a.clone(), group.clone()])), adding());
    assert_eq!(of(stages(&[by_id.clone(), first.clone()])), Eligible::Run(Terms::default()));
    assert_eq!(of(stages(&[by_id.clone(), limit.clone(), group.clone()])), adding());
    assert_eq!(of(stages(&[by_id.clone(), limit.clone(), by_a.clone()])), sorted(rawdoc! { "a": 1 }, None));
    let summed = Terms { sort: Sort::of(&rawdoc! { "a": 1 }), rounds: true, ..Terms::default() };
    assert_eq!(of(stages(&[group.clone(), by_a.clone()])), Eligible::Run(summed));
    assert_eq!(of(stages(&[by_a.clone(), set.clone()])), Eligible::Run(Terms::default()));
    for ties in [
        [by_a.clone(), limit.clone(), set],
        [by_a.clone(), limit.clone(), group],
        [by_a.clone(), limit, by_a.clone()],
    ] {
        assert_eq!(of(stages(&ties)), Eligible::Nondeterministic(Reason::LimitWithTies));
    }
    assert_eq!(of(stages(&[by_a, first])), Eligible::Nondeterministic(Reason::ByOrder));
}

#[test]
fn the_ends_of_a_part_are_known() {
    let cut = |find: RawDocumentBuf| terms(&find).cut;
    let part = |skips, most| Some(Cut { skips, most });
    let by_a = || rawdoc! { "a": 1 };
    assert_eq!(cut(rawdoc! { "find": "c", "sort": by_a() }), None);
    assert_eq!(cut(rawdoc! { "find": "c", "sort": by_a(), "skip": 3 }), part(true, None));
    assert_eq!(cut(rawdoc! { "find": "c", "sort": by_a(), "skip": 3, "limit": 5_i64 }), part(true, Some(5)));
    // There is nothing behind a single batch, whatever its size.
    let single =
        |size| rawdoc! { "find": "c", "sort": by_a(), "singleBatch": true, "batchSize": size, "limit": 9 };
    assert_eq!([cut(single(3)), cut(single(0))], [part(false, Some(3)), part(false, Some(9))]);
    assert_eq!(cut(rawdoc! { "find": "c", "sort": by_a(), "singleBatch": true }), part(false, Some(101)));
    assert_eq!(reason(&rawdoc! { "find": "c", "singleBatch": true }), Reason::LimitWithoutSort);
    let of = |stages: &[RawDocumentBuf]| {
        let mut pipeline = bson::raw::RawArrayBuf::new();
        pipeline.push(rawdoc! { "$sort": { "a": 1 } });
        stages.iter().for_each(|stage| pipeline.push(stage.clone()));
        cut(rawdoc! { "aggregate": "c", "pipeline": pipeline })
    };
    let (skip, limit) = (rawdoc! { "$skip": 2 }, rawdoc! { "$limit": 5_i64 });
    assert_eq!(of(&[skip.clone(), limit.clone()]), part(true, Some(5)));
    assert_eq!(of(&[limit.clone(), skip]), part(true, Some(3)));
    assert_eq!(of(&[limit, rawdoc! { "$limit": 2.0 }]), part(false, Some(2)));
}

#[test]
fn ties_that_cannot_be_seen_are_told_apart() {
    let hidden = |projection: RawDocumentBuf| {
        terms(&rawdoc! { "find": "c", "sort": { "a": 1 }, "limit": 5, "projection": projection }).hidden
    };
    assert!(hidden(rawdoc! { "b": 1 }) && !hidden(rawdoc! { "a": 1 }));
    let of = |stages: &[RawDocumentBuf]| {
        let pipeline: bson::raw::RawArrayBuf = stages.iter().cloned().map(RawBson::Document).collect();
        asked(&rawdoc! { "aggregate": "c", "pipeline": pipeline })
    };
    let (by_a, by_id) = (rawdoc! { "$sort": { "a": 1 } }, rawdoc! { "$sort": { "a": 1, "_id": 1 } });
    let (limit, matching) = (rawdoc! { "$limit": 5 }, rawdoc! { "$match": { "b": 1 } });
    // Where the list was cut is not seen where something was taken out of it.
    let ties = of(&[by_a, limit.clone(), matching.clone()]);
    assert_eq!(ties, Eligible::Nondeterministic(Reason::LimitWithTies));
    assert!(matches!(of(&[by_id.clone(), limit.clone(), matching]), Eligible::Run(_)));
    let is_total = |stage: RawDocumentBuf| match of(&[stage, by_id.clone(), limit.clone()]) {
        Eligible::Run(terms) => terms.sort.unwrap().is_total(),
        other => panic!("{other:?}"),
    };
    for keeps in
        [rawdoc! { "$set": { "x": 1 } }, rawdoc! { "$project": { "_id": 1 } }, rawdoc! { "$unset": "x" }]
    {
        assert!(is_total(keeps.clone()), "{keeps:?}");
    }
    for repeats in [
        rawdoc! { "$unwind": "$x" },
        rawdoc! { "$set": { "_id": "$x" } },
        rawdoc! { "$project": { "_id": 0 } },
        rawdoc! { "$unset": ["x", "_id"] },
        rawdoc! { "$replaceWith": "$x" },
    ] {
        assert!(!is_total(repeats.clone()), "{repeats:?}");
    }
}

#[test]
fn strings_under_a_collation_are_told_apart() {
    let german = || rawdoc! { "locale": "de", "strength": 2 };
    let find = |collation: RawDocumentBuf| {
        let find = rawdoc! { "find": "c", "sort": { "_id": 1 }, "limit": 5, "collation": collation };
        terms(&find).sort.unwrap().is_total()
    };
    assert!(!find(german()) && find(rawdoc! { "locale": "simple" }) && find(rawdoc! {}));
    let by_name = rawdoc! { "find": "c", "filter": { "_id": "a" }, "limit": 1, "collation": german() };
    assert_eq!(reason(&by_name), Reason::LimitWithoutSort);
    // The first spelling that is met is shown.
    assert_eq!(reason(&rawdoc! { "distinct": "c", "key": "a", "collation": german() }), Reason::ByOrder);
    let group =
        rawdoc! { "aggregate": "c", "pipeline": [{ "$group": { "_id": "$a" } }], "collation": german() };
    assert_eq!(reason(&group), Reason::ByOrder);
}

#[test]
fn a_read_is_sent_again_without_what_belongs_to_its_client() {
    let body = rawdoc! {
        "aggregate": "c", "pipeline": [], "cursor": { "batchSize": 3 }, "lsid": { "id": 1 }, "$db": "shop",
        "readConcern": { "level": "local", "afterClusterTime": bson::Timestamp { time: 5, increment: 1 } },
        "$readPreference": { "mode": "secondary" }, "maxTimeMS": 1, "collation": { "locale": "de" },
    };
    let expected = rawdoc! {
        "aggregate": "c", "pipeline": [], "cursor": {}, "collation": { "locale": "de" },
        "readConcern": { "level": "majority" }, "maxTimeMS": 5000_i64, "comment": "reshard shadow",
    };
    assert_eq!(again(&body, &rawdoc! { "level": "majority" }, 5000, "reshard shadow"), expected);
    let single = rawdoc! { "find": "c", "sort": { "a": 1 }, "batchSize": 3, "singleBatch": true };
    assert_eq!(again(&single, &rawdoc! {}, 1, "").get_i32("batchSize").unwrap(), 3);
}

#[test]
fn replies_are_understood_once_they_are_whole() {
    let documents = rawdoc! { "cursor": { "firstBatch": [{ "_id": 1 }], "id": 0_i64 }, "ok": 1.0 };
    assert_eq!(whole_answer(&documents), Some(Answer::Documents(vec![rawdoc! { "_id": 1 }])));
    let more = rawdoc! { "cursor": { "firstBatch": [{ "_id": 1 }], "id": 7_i64 }, "ok": 1.0 };
    assert_eq!(whole_answer(&more), None);
    assert_eq!(whole_answer(&rawdoc! { "n": 5, "ok": 1.0 }), Some(Answer::Count(RawBson::Int32(5))));
    let values = whole_answer(&rawdoc! { "values": ["a"], "ok": 1.0 });
    assert_eq!(values, Some(Answer::Values(vec![RawBson::String("a".into())])));
    assert_eq!(whole_answer(&rawdoc! { "ok": 0.0, "code": 2 }), Some(Answer::Error(2)));
    assert_eq!(whole_answer(&rawdoc! { "ok": 1.0 }), None);
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for (index, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
    }
}
