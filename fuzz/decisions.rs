//! Targets of what is decided from bodies: from those of clients' commands, and from those of servers' answers.

use bson::raw::{RawDocumentBuf, cstr};
use bson::{Document, RawDocument, rawdoc};
use reshard::cluster::scram::Hash;
use reshard::cluster::{ReadPreference, Selection};
use reshard::listener::sasl::{self, Start};
use reshard::listener::scram::{Exchange, First, Stored};
use reshard::model::side::{PerSide, Side};
use reshard::policy::bulk::BulkPart;
use reshard::policy::bulk_reply::BulkReply;
use reshard::policy::fail_command::{Asked, FailCommand, labels_of};
use reshard::policy::fail_write::FailWrite;
use reshard::policy::failover::Kind;
use reshard::policy::shadow::answer;
use reshard::policy::shadow::eligible::{Eligible, again, decide, whole_answer};
use reshard::policy::writes::Verb;
use reshard::policy::{listing, shape};
use reshard::router::preference;
use reshard::wire::element::{DOCUMENT, Elements};
use reshard::wire::op_msg::OpMsg;

/// The body of a message, or bytes that may be one.
fn body(bytes: &[u8]) -> Option<&RawDocument> {
    let bytes = OpMsg::parse(bytes).map_or(bytes, |parts| &bytes[parts.body]);
    RawDocument::from_bytes(bytes).ok()
}

fn documents(body: &RawDocument) -> impl Iterator<Item = &RawDocument> {
    body.iter().flatten().filter_map(|(_, value)| value.as_document())
}

/// `configureFailPoint`, of either fail point, and what the commands after it meet.
pub(crate) fn fail_point(bytes: &[u8]) {
    let Some(body) = body(bytes) else { return };
    let mut inside = RawDocumentBuf::new();
    inside.append(cstr!("mode"), "alwaysOn");
    inside.append(cstr!("data"), body);
    for command in [body, &inside] {
        if let Ok(mut point) = FailCommand::default().configured(command) {
            meet(&mut point);
            let again = point.configured(command).expect("what was taken once is taken again");
            assert_eq!(again.entered(), point.entered());
        }
        let Ok(mut point) = FailWrite::default().configured(command) else { continue };
        for statements in [0, 1, 1000] {
            _ = (point.before(statements), point.closes(statements));
        }
        assert!(point.entered() <= 6);
    }
}

fn meet(point: &mut FailCommand) {
    let names = ["insert", "find", "configureFailPoint", "hello"];
    for (name, kind) in names.into_iter().zip([Kind::RetryableWrite, Kind::Read, Kind::Once, Kind::Once]) {
        let asked = Asked { name, database: "app", collection: Some("items"), application: Some("x"), kind };
        let before = point.entered();
        let met = [point.before(&asked).is_some(), point.after(&asked).is_some()];
        let count: i64 = met.into_iter().map(i64::from).sum();
        assert_eq!(point.entered(), before + count);
        // Else nobody could unset it.
        assert!(name != "configureFailPoint" || count == 0);
        assert!(count == 0 || point.is_on() || point.entered() > 0);
        _ = labels_of(91, kind, count > 0);
    }
}

/// `$readPreference`: that of a command, and whatever documents there are in it.
pub(crate) fn read_preference(bytes: &[u8]) {
    let bytes = OpMsg::parse(bytes).map_or(bytes, |parts| &bytes[parts.body]);
    let Ok(elements) = Elements::of(bytes) else { return };
    for element in elements {
        let Ok(element) = element else { return };
        let selection = preference::selection(Some(element));
        let Selection::ReadPreference(ReadPreference { max_staleness, .. }) = selection else { continue };
        assert_eq!(element.kind, DOCUMENT);
        assert!(max_staleness.is_none_or(|most| most.as_secs() >= 90));
    }
}

/// What is asked, without its values, and whether a read may also run on the other cluster.
pub(crate) fn read(bytes: &[u8]) {
    let Some(body) = body(bytes) else { return };
    let first = documents(body).next();
    for statements in [None, Some(("updates", first, 3)), Some(("documents", None, 1))] {
        let asked = shape::Asked { namespace: "d.c", body, statements };
        let text = asked.text();
        assert_eq!(asked.hash(), asked.hash());
        // Each token is bounded, and so is their number.
        assert!(text.len() < 1 << 20, "{} bytes", text.len());
    }
    for name in ["find", "aggregate", "count", "distinct"] {
        match decide(name, body) {
            Eligible::Run(_) => {}
            Eligible::Nondeterministic(reason) => assert!(reason.is_nondeterministic()),
            Eligible::Skip(reason) => assert!(!reason.is_nondeterministic()),
        }
    }
    let again = again(body, &rawdoc! { "level": "majority" }, 7, "c");
    let limits = again.iter().flatten().filter(|(name, _)| *name == "maxTimeMS");
    assert_eq!(limits.map(|(_, value)| value.as_i64()).collect::<Vec<_>>(), [Some(7)]);
}

/// Answers of servers that are made into others: of the parts of a `bulkWrite`, of lists, of reads that run twice.
pub(crate) fn answer(bytes: &[u8]) {
    let Some(reply) = body(bytes) else { return };
    for errors_only in [false, true] {
        bulk(reply, errors_only);
    }
    let listed = |_| vec![reply.to_owned()];
    let shown = listing::collections(PerSide::from_fn(listed), |_| Some(Side::New));
    assert!(shown.len() <= 2);
    _ = listing::asked(reply);
    if let Ok(reply) = Document::try_from(reply) {
        let mut databases = bson::doc! { "databases": [reply.clone()], "totalSize": 1_i64 };
        for (name, value) in reply {
            databases.insert(name, value);
        }
        let both = PerSide { old: databases.clone(), new: databases };
        let shown = listing::databases(&both, |_| true);
        assert!(shown.get_array("databases").is_ok());
    }
    if let Some(answer) = whole_answer(reply) {
        _ = answer::compare(&answer, &answer, &answer::Terms::default());
    }
}

fn bulk(reply: &RawDocument, errors_only: bool) {
    let verbs = [Verb::Insert, Verb::Update, Verb::Delete];
    let mut all = BulkReply::new(errors_only);
    for (number, verb) in verbs.into_iter().enumerate() {
        let indexes = if number == 0 { vec![0, 2, 5] } else { vec![5 + number] };
        let part = BulkPart { indexes, verb, body: rawdoc! { "ordered": false }, documents: Vec::new() };
        all.take(&part, reply);
        // An answer that is none of a write.
        all.refuse(&part, false, reply);
    }
    let whole = all.finish();
    let cursor = whole.get_document("cursor").expect("a cursor");
    let batch = cursor.get_array("firstBatch").expect("a batch");
    let mut errors = 0;
    let mut places = Vec::new();
    for result in batch {
        let result = result.ok().and_then(|result| result.as_document()).expect("a result");
        places.push(result.get_i32("idx").expect("a place"));
        let failed = result.get_f64("ok").expect("ok") == 0.0;
        errors += i32::from(failed);
        assert!(failed || !errors_only);
    }
    assert!(places.is_sorted() && places.iter().all(|place| (0..8).contains(place)));
    assert_eq!(whole.get_i32("nErrors").ok(), Some(errors));
}

/// The bodies of a login.
pub(crate) fn login(bytes: &[u8]) {
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let Some(body) = body(bytes) else { return };
    let (salt, iterations) = (vec![7; 16], 4096);
    let mut bodies = vec![body.to_owned()];
    // Those in a greeting that logs in at once.
    bodies.extend(documents(body).map(RawDocument::to_owned));
    for body in &bodies {
        let payload = sasl::payload(body);
        let stored = |hash: Hash| {
            let key = hash.digest(b"client");
            Stored { hash, salt: salt.clone(), iterations, stored_key: key.clone(), server_key: key }
        };
        _ = sasl::continues(body);
        let begun = Exchange::begin(
            First::parse(b"n,,n=u,r=abc").expect("a first message"),
            NONCE,
            &stored(Hash::Sha256),
        );
        if let Ok(payload) = payload {
            assert!(
                begun.prove(payload, &stored(Hash::Sha256)).is_err(),
                "whoever knows no key is not let in"
            );
        }
        let Ok(start) = Start::parse(body) else { continue };
        assert_eq!(payload.ok(), Some(start.payload));
        let Ok(first) = First::parse(start.payload) else { continue };
        assert!(!first.user.is_empty());
        _ = Exchange::begin(first, NONCE, &stored(start.hash));
    }
}
