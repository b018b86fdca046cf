use super::*;
use crate::policy::fields::FieldKind;
use crate::policy::fields::tests::any_document;
use bson::{Bson, Document, doc, rawdoc};
use proptest::prelude::*;

fn documents(all: impl IntoIterator<Item = Document>) -> Answer {
    Answer::Documents(all.into_iter().map(|one| RawDocumentBuf::try_from(&one).unwrap()).collect())
}

fn sorted(sort: &RawDocument, cut: bool) -> Terms {
    let cut = cut.then(|| Cut::default().skipping(None).limited(Some(0)));
    Terms { sort: Some(Sort::of(sort).unwrap()), cut, ..Terms::default() }
}

/// A kind, the `_id`, and where.
type Told = (Kind, Option<String>, Vec<(String, FieldKind)>);

fn found(comparison: Comparison) -> Vec<Told> {
    let Comparison::Different(all) = comparison else { panic!("{comparison:?}") };
    let one = |one: Difference| {
        let fields = one.fields.into_iter().map(|field| (field.path, field.kind)).collect();
        (one.kind, one.key.map(|key| format!("{:?}", key.value())), fields)
    };
    all.into_iter().map(one).collect()
}

fn kinds(comparison: Comparison) -> Vec<Kind> {
    found(comparison).into_iter().map(|(kind, _, _)| kind).collect()
}

fn three() -> [Document; 3] {
    [doc! { "_id": 1, "a": 5 }, doc! { "_id": 2, "a": 5 }, doc! { "_id": 3, "a": 6 }]
}

#[test]
fn order_matters_only_where_the_query_sorts() {
    let [one, two, other] = three();
    let served = documents([one.clone(), two.clone(), other.clone()]);
    let shadow = documents([other.clone(), two.clone(), one.clone()]);
    assert_eq!(compare(&served, &served, &Terms::default()), Comparison::Equal);
    assert_eq!(compare(&served, &shadow, &Terms::default()), Comparison::Permuted);
    let by_a = sorted(&rawdoc! { "a": 1 }, false);
    assert_eq!(kinds(compare(&served, &shadow, &by_a)), [Kind::Order]);
    let equal_keys = documents([two.clone(), one.clone(), other.clone()]);
    assert_eq!(compare(&served, &equal_keys, &by_a), Comparison::Permuted);
    let by_both = sorted(&rawdoc! { "a": 1, "_id": 1 }, false);
    assert_eq!(kinds(compare(&served, &equal_keys, &by_both)), [Kind::Order]);
    // The served reply itself is not in the order as it is understood here.
    assert_eq!(compare(&shadow, &served, &by_a), Comparison::Permuted);
}

#[test]
fn missing_extra_and_changed_documents_are_named() {
    let [one, two, other] = three();
    let served = documents([one.clone(), two.clone(), other]);
    let shadow = documents([doc! { "_id": 2_i64, "a": "5" }, doc! { "_id": 9, "a": 5 }, one]);
    let found = found(compare(&served, &shadow, &Terms::default()));
    let id = |id: &str| Some(id.to_owned());
    let fields = vec![("_id".to_owned(), FieldKind::Type), ("a".to_owned(), FieldKind::Type)];
    assert_eq!(
        found,
        [
            (Kind::Changed, id("Int32(2)"), fields),
            (Kind::Missing, id("Int32(3)"), vec![]),
            (Kind::Extra, id("Int32(9)"), vec![]),
        ]
    );
}

#[test]
fn documents_count_as_often_as_they_are_there() {
    let [one, two, _] = three();
    let twice = documents([one.clone(), one.clone(), two.clone()]);
    let once = documents([one.clone(), two.clone()]);
    assert_eq!(kinds(compare(&twice, &once, &Terms::default())), [Kind::Missing]);
    assert_eq!(kinds(compare(&once, &twice, &Terms::default())), [Kind::Extra]);
    let other = documents([one.clone(), two.clone(), two]);
    let both = kinds(compare(&twice, &other, &Terms::default()));
    assert_eq!(both, [Kind::Missing, Kind::Extra]);
}

#[test]
fn documents_without_ids_are_compared_by_place() {
    let (served, shadow) = ([doc! { "a": 1 }, doc! { "a": 2 }], [doc! { "a": 2 }, doc! { "a": 3 }]);
    let comparison = compare(&documents(served.clone()), &documents(shadow), &Terms::default());
    assert_eq!(found(comparison), [(Kind::Changed, None, vec![("a".to_owned(), FieldKind::Value)])]);
    let fewer = compare(&documents(served), &documents([doc! { "a": 2 }]), &Terms::default());
    assert_eq!(kinds(fewer), [Kind::Missing]);
}

#[test]
fn which_of_equal_keys_a_limit_takes_is_not_said() {
    let [one, two, other] = three();
    let (served, shadow) = (documents([one.clone()]), documents([two.clone()]));
    let by_a = sorted(&rawdoc! { "a": 1 }, true);
    assert_eq!(compare(&served, &shadow, &by_a), Comparison::Permuted);
    assert_eq!(
        kinds(compare(&served, &shadow, &sorted(&rawdoc! { "a": 1 }, false))),
        [Kind::Missing, Kind::Extra]
    );
    let total = sorted(&rawdoc! { "a": 1, "_id": 1 }, true);
    assert_eq!(kinds(compare(&served, &shadow, &total)), [Kind::Missing, Kind::Extra]);
    // Another place of the order: not at the cut alone.
    let beyond = documents([other.clone()]);
    assert_eq!(kinds(compare(&served, &beyond, &by_a)), [Kind::Missing, Kind::Extra]);
    // One is lacking without another in its place.
    assert_eq!(kinds(compare(&documents([one.clone(), two.clone()]), &served, &by_a)), [Kind::Missing]);
    // A document that both took is compared all the same.
    let (left, right) =
        (documents([one, other.clone()]), documents([two, doc! { "_id": 3, "a": 6, "b": 1 }]));
    assert_eq!(kinds(compare(&left, &right, &by_a)), [Kind::Changed]);
}

/// Sorted by `sort`, the first `most` documents.
fn first(sort: &RawDocument, most: u64) -> Terms {
    Terms { cut: Some(Cut::default().limited(Some(most))), ..sorted(sort, false) }
}

#[test]
fn ties_count_only_where_the_list_was_cut() {
    let [one, two, other] = three();
    let by_a = rawdoc! { "a": 1 };
    let (served, shadow) = (documents([one.clone(), other.clone()]), documents([two.clone(), other.clone()]));
    // The first place of the order is whole where nothing is skipped.
    assert_eq!(kinds(compare(&served, &shadow, &first(&by_a, 2))), [Kind::Missing, Kind::Extra]);
    let skipping = Terms { cut: Some(Cut::default().skipping(Some(1))), ..first(&by_a, 2) };
    assert_eq!(compare(&served, &shadow, &skipping), Comparison::Permuted);
    // The list has ended by itself before the limit.
    let (served, shadow) = (documents([one.clone()]), documents([two.clone()]));
    assert_eq!(compare(&served, &shadow, &first(&by_a, 1)), Comparison::Permuted);
    assert_eq!(kinds(compare(&served, &shadow, &first(&by_a, 2))), [Kind::Missing, Kind::Extra]);
    // One more at the begin and one less at the end is no other choice.
    let [low, high] = [doc! { "_id": 8, "a": 5 }, doc! { "_id": 9, "a": 6 }];
    let served = documents([one.clone(), low, other.clone()]);
    let shadow = documents([one, high, other]);
    let both_ends = Terms { cut: Some(Cut::default().skipping(Some(1)).limited(Some(3))), ..first(&by_a, 3) };
    assert_eq!(kinds(compare(&served, &shadow, &both_ends)), [Kind::Missing, Kind::Extra]);
}

#[test]
fn ties_at_a_cut_are_those_of_the_server() {
    let decimal = Bson::Decimal128("5.0".parse().unwrap());
    let five = [Bson::Int32(5), Bson::Int64(5), Bson::Double(5.0), decimal];
    for (index, left) in five.iter().enumerate() {
        let right = &five[(index + 1) % five.len()];
        let (served, shadow) =
            (documents([doc! { "_id": 1, "a": left }]), documents([doc! { "_id": 2, "a": right }]));
        assert_eq!(compare(&served, &shadow, &first(&rawdoc! { "a": 1 }, 1)), Comparison::Permuted, "{left}");
    }
    let tied = |sort: RawDocumentBuf, left: Document, right: Document| {
        let (mut served, mut shadow) = (doc! { "_id": 1 }, doc! { "_id": 2 });
        served.extend(left);
        shadow.extend(right);
        compare(&documents([served]), &documents([shadow]), &first(&sort, 1)) == Comparison::Permuted
    };
    assert!(tied(rawdoc! { "a": 1 }, doc! { "a": Bson::Null }, doc! {}));
    assert!(tied(rawdoc! { "a": 1 }, doc! { "a": f64::NAN }, doc! { "a": -f64::NAN }));
    assert!(tied(rawdoc! { "a": -1 }, doc! { "a": [1, 7] }, doc! { "a": 7 }));
    assert!(!tied(rawdoc! { "a": 1 }, doc! { "a": [1, 7] }, doc! { "a": 7 }));
    assert!(tied(rawdoc! { "a.b": 1 }, doc! { "a": { "b": 3 } }, doc! { "a": [{ "b": 4 }, { "b": 3 }] }));
    assert!(tied(rawdoc! { "a": 1, "b": -1 }, doc! { "a": 1, "b": 2 }, doc! { "a": 1.0, "b": 2_i64 }));
    assert!(!tied(rawdoc! { "a": 1, "b": -1 }, doc! { "a": 1, "b": 2 }, doc! { "a": 1, "b": 3 }));
}

#[test]
fn spellings_that_a_collation_may_have_for_one_may_permute() {
    let collated = |cut| {
        let terms = sorted(&rawdoc! { "a": 1 }, cut);
        Terms { sort: terms.sort.map(|sort| sort.under_collation(true)), ..terms }
    };
    let [upper, lower] = [doc! { "_id": 1, "a": "A" }, doc! { "_id": 2, "a": "a" }];
    let (served, shadow) =
        (documents([upper.clone(), lower.clone()]), documents([lower.clone(), upper.clone()]));
    assert_eq!(compare(&served, &shadow, &collated(false)), Comparison::Permuted);
    assert_eq!(kinds(compare(&served, &shadow, &sorted(&rawdoc! { "a": 1 }, false))), [Kind::Order]);
    let (served, shadow) = (documents([upper.clone()]), documents([lower]));
    assert_eq!(compare(&served, &shadow, &collated(true)), Comparison::Permuted);
    // Numbers are the same in every language.
    let number = doc! { "_id": 3, "a": 1 };
    let (served, shadow) = (documents([number.clone(), upper.clone()]), documents([upper, number]));
    assert_eq!(kinds(compare(&served, &shadow, &collated(false))), [Kind::Order]);
}

#[test]
fn what_is_sorted_by_fields_that_are_not_shown_is_not_judged_by_them() {
    let hidden = |cut| Terms { hidden: true, ..sorted(&rawdoc! { "a": 1 }, cut) };
    // Parts of arrays stand in the place of what they are sorted by.
    let [one, two] = [doc! { "_id": 1, "a": [5] }, doc! { "_id": 2, "a": [6] }];
    let (served, shadow) = (documents([one.clone(), two.clone()]), documents([two.clone(), one.clone()]));
    assert_eq!(compare(&served, &shadow, &hidden(false)), Comparison::Permuted);
    let (served, shadow) = (documents([one.clone()]), documents([two.clone()]));
    assert_eq!(compare(&served, &shadow, &hidden(true)), Comparison::Untold);
    assert_eq!(kinds(compare(&served, &shadow, &hidden(false))), [Kind::Missing, Kind::Extra]);
    // Without an _id either.
    let (served, shadow) = (documents([doc! { "b": 1 }]), documents([doc! { "b": 2 }]));
    assert_eq!(compare(&served, &shadow, &hidden(true)), Comparison::Untold);
    assert_eq!(kinds(compare(&served, &shadow, &hidden(false))), [Kind::Changed]);
    // What both took is compared all the same, and so is how many there are.
    let changed = documents([doc! { "_id": 1, "a": [7] }, two]);
    let other = documents([one.clone(), doc! { "_id": 3, "a": [6] }]);
    assert_eq!(kinds(compare(&other, &changed, &hidden(true))), [Kind::Changed]);
    assert_eq!(kinds(compare(&other, &documents([one]), &hidden(true))), [Kind::Missing]);
    // Where no two stand at one place, the query says which.
    let total = Terms { hidden: true, ..sorted(&rawdoc! { "a": 1, "_id": 1 }, true) };
    assert_eq!(kinds(compare(&served, &shadow, &total)), [Kind::Changed]);
}

#[test]
fn ties_at_a_cut_are_seen_without_ids_too() {
    let by_a = first(&rawdoc! { "a": 1 }, 2);
    let [one, two, three] = [doc! { "a": 1, "b": 1 }, doc! { "a": 2, "b": 2 }, doc! { "a": 2, "b": 3 }];
    let (served, shadow) = (documents([one.clone(), two.clone()]), documents([one.clone(), three]));
    assert_eq!(compare(&served, &shadow, &by_a), Comparison::Permuted);
    let other = documents([doc! { "a": 1, "b": 9 }, two]);
    assert_eq!(kinds(compare(&served, &other, &by_a)), [Kind::Changed]);
}

#[test]
fn numbers_of_documents_and_distinct_values_are_values() {
    let count = |number: RawBson| Answer::Count(number);
    let same = compare(&count(RawBson::Int32(5)), &count(RawBson::Int64(5)), &Terms::default());
    assert_eq!(same, Comparison::Equal);
    let other = compare(&count(RawBson::Int32(5)), &count(RawBson::Int32(6)), &Terms::default());
    assert_eq!(kinds(other), [Kind::Count]);
    let values = |values: &[RawBson]| Answer::Values(values.to_vec());
    let (one, two, text) = (RawBson::Int32(1), RawBson::Double(2.0), RawBson::String("x".into()));
    let served = values(&[one.clone(), two.clone(), text.clone()]);
    assert_eq!(compare(&served, &served, &Terms::default()), Comparison::Equal);
    let another_order = values(&[text.clone(), RawBson::Int64(2), one.clone()]);
    assert_eq!(compare(&served, &another_order, &Terms::default()), Comparison::Permuted);
    let fewer = compare(&served, &values(&[one, text]), &Terms::default());
    assert_eq!(found(fewer), [(Kind::Values, Some("Double(2.0)".to_owned()), vec![])]);
}

#[test]
fn failures_are_compared_by_their_code() {
    let terms = Terms::default();
    assert_eq!(compare(&Answer::Error(2), &Answer::Error(2), &terms), Comparison::Equal);
    assert_eq!(kinds(compare(&Answer::Error(2), &Answer::Error(3), &terms)), [Kind::Error]);
    assert_eq!(kinds(compare(&Answer::Error(2), &documents([]), &terms)), [Kind::Error]);
    let values = compare(&Answer::Values(vec![]), &Answer::Error(291), &terms);
    let Comparison::Different(all) = values else { panic!() };
    assert_eq!(all[0].fields[0].shadow, Some(RawBson::Int32(291)));
}

#[test]
fn sums_may_differ_in_their_last_bits_where_a_query_adds_up() {
    let sum = |sum: f64| documents([doc! { "_id": 1, "sum": sum }]);
    let (left, right, far) = (sum(0.1 + 0.2 + 0.3), sum(0.3 + 0.2 + 0.1), sum(0.6001));
    let rounds = Terms { rounds: true, ..Terms::default() };
    assert_eq!(compare(&left, &right, &rounds), Comparison::Permuted);
    assert_eq!(kinds(compare(&left, &right, &Terms::default())), [Kind::Changed]);
    assert_eq!(kinds(compare(&left, &far, &rounds)), [Kind::Changed]);
}

fn any_reply() -> impl Strategy<Value = Vec<Document>> {
    let document = (0..6_i32, any_document()).prop_map(|(id, rest)| {
        let mut document = doc! { "_id": id };
        document.extend(rest);
        document
    });
    prop::collection::vec(document, 0..6)
}

proptest! {
    #[test]
    fn any_order_is_as_good_as_another_without_a_sort(
        (reply, shuffled) in any_reply().prop_flat_map(|reply| (Just(reply.clone()), Just(reply).prop_shuffle()))
    ) {
        let comparison = compare(&documents(reply), &documents(shuffled), &Terms::default());
        prop_assert!(matches!(comparison, Comparison::Equal | Comparison::Permuted));
    }

    #[test]
    fn what_is_in_the_order_is_never_told_to_be_out_of_it(reply in any_reply()) {
        let terms = sorted(&rawdoc! { "a": 1 }, false);
        let sort = terms.sort.clone().unwrap();
        let mut ordered = reply;
        let raw = |document: &Document| RawDocumentBuf::try_from(document).unwrap();
        ordered.sort_by(|left, right| sort.order(&sort.key(&raw(left)), &sort.key(&raw(right))).unwrap());
        let mut another = ordered.clone();
        another.reverse();
        another.sort_by(|left, right| sort.order(&sort.key(&raw(left)), &sort.key(&raw(right))).unwrap());
        let comparison = compare(&documents(ordered), &documents(another), &terms);
        prop_assert!(matches!(comparison, Comparison::Equal | Comparison::Permuted));
    }

    #[test]
    fn as_many_are_told_as_were_planted(count in 1..20_u8, planted in 0..3_u8, at in any::<prop::sample::Index>()) {
        let all: Vec<Document> = (0..count).map(|id| doc! { "_id": i32::from(id), "v": 1 }).collect();
        let mut other = all.clone();
        let at = at.index(usize::from(count));
        let kind = match planted {
            0 => { other.remove(at); Kind::Missing }
            1 => { other.insert(at, doc! { "_id": "new" }); Kind::Extra }
            _ => { other[at].insert("v", Bson::Double(1.0)); Kind::Changed }
        };
        prop_assert_eq!(kinds(compare(&documents(all), &documents(other), &Terms::default())), vec![kind]);
    }
}
