use super::*;
use crate::policy::fields::FieldKind;
use crate::policy::fields::tests::any_document;
use bson::{Bson, Document, doc, rawdoc};
use proptest::prelude::*;

fn documents(all: impl IntoIterator<Item = Document>) -> Answer {
    Answer::Documents(all.into_iter().map(|one| RawDocumentBuf::try_from(&one).unwrap()).collect())
}

fn sorted(sort: &RawDocument, cut: bool) -> Terms {
    Terms { sort: Some(Sort::of(sort).unwrap()), cut, rounds: false }
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
        ordered.sort_by(|left, right| sort.order(&sort.key(&raw(left)), &sort.key(&raw(right))));
        let mut another = ordered.clone();
        another.reverse();
        another.sort_by(|left, right| sort.order(&sort.key(&raw(left)), &sort.key(&raw(right))));
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
