use super::super::hello::HelloReply;
use super::*;

struct Member(&'static str, Role, u64, i64, &'static str);

fn topology(members: &[Member]) -> Topology {
    let seeds: Vec<ServerId> = members.iter().map(|member| member.0.into()).collect();
    let names: Vec<String> = members.iter().map(|member| member.0.to_owned()).collect();
    let mut topology = Topology::new(&seeds, None, false);
    for Member(address, role, rtt, last_write, dc) in members {
        let in_set = matches!(role, Role::Primary | Role::Secondary);
        let hello = HelloReply {
            role: Some(*role),
            set_name: in_set.then(|| "x".to_owned()),
            members: if in_set { names.clone() } else { Vec::new() },
            last_write_millis: Some(*last_write),
            tags: vec![("dc".to_owned(), (*dc).to_owned())],
            ..HelloReply::default()
        };
        topology = topology.with_reply(address, &hello, Some(Duration::from_millis(*rtt)), 1_000_000);
    }
    topology
}

fn set() -> Topology {
    topology(&[
        Member("p:1", Role::Primary, 30, 1_000_000, "east"),
        Member("s:1", Role::Secondary, 1, 995_000, "east"),
        Member("s:2", Role::Secondary, 10, 800_000, "west"),
        Member("s:3", Role::Secondary, 50, 1_000_000, "west"),
    ])
}

fn chosen(topology: &Topology, selection: &Selection) -> Vec<String> {
    let mut all = Vec::new();
    for random in 0..12 {
        let tuning =
            Tuning { latency_window: Duration::from_millis(15), heartbeat: Duration::from_secs(10), random };
        all.extend(select(topology, selection, tuning).map(|server| server.address.to_string()));
    }
    all.sort();
    all.dedup();
    all
}

fn read(mode: ReadMode, tag_sets: &[&[(&str, &str)]], staleness: Option<u64>) -> Selection {
    let owned = |set: &&[(&str, &str)]| {
        set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    Selection::ReadPreference(ReadPreference {
        mode,
        tag_sets: tag_sets.iter().map(owned).collect(),
        max_staleness: staleness.map(Duration::from_secs),
    })
}

#[test]
fn modes() {
    let set = set();
    assert_eq!(chosen(&set, &Selection::Primary), ["p:1"]);
    assert_eq!(chosen(&set, &read(ReadMode::Primary, &[], None)), ["p:1"]);
    assert_eq!(chosen(&set, &read(ReadMode::PrimaryPreferred, &[], None)), ["p:1"]);
    assert_eq!(chosen(&set, &read(ReadMode::Secondary, &[], None)), ["s:1", "s:2"]);
    assert_eq!(chosen(&set, &read(ReadMode::Nearest, &[], None)), ["s:1", "s:2"]);
    let without = set.with_failure("p:1", String::new());
    assert!(chosen(&without, &Selection::Primary).is_empty());
    assert_eq!(chosen(&without, &read(ReadMode::PrimaryPreferred, &[], None)), ["s:1", "s:2"]);
    let alone = topology(&[Member("p:1", Role::Primary, 1, 0, "east")]);
    assert!(chosen(&alone, &read(ReadMode::Secondary, &[], None)).is_empty());
    assert_eq!(chosen(&alone, &read(ReadMode::SecondaryPreferred, &[], None)), ["p:1"]);
}

#[test]
fn tag_sets_are_tried_in_order() {
    let set = set();
    let west = read(ReadMode::Secondary, &[&[("dc", "mars")], &[("dc", "west")]], None);
    assert_eq!(chosen(&set, &west), ["s:2"]);
    assert_eq!(chosen(&set, &read(ReadMode::Secondary, &[&[("dc", "mars")], &[]], None)), ["s:1", "s:2"]);
    assert!(chosen(&set, &read(ReadMode::Secondary, &[&[("dc", "mars")]], None)).is_empty());
    assert_eq!(chosen(&set, &read(ReadMode::SecondaryPreferred, &[&[("dc", "mars")]], None)), ["p:1"]);
}

#[test]
fn a_stale_secondary_is_left_out() {
    assert_eq!(chosen(&set(), &read(ReadMode::Secondary, &[], Some(90))), ["s:1"]);
    let without = set().with_failure("p:1", String::new());
    assert_eq!(chosen(&without, &read(ReadMode::Secondary, &[], Some(90))), ["s:1"]);
}

#[test]
fn routers_are_all_alike() {
    let routers = topology(&[
        Member("m:1", Role::Router, 1, 0, ""),
        Member("m:2", Role::Router, 9, 0, ""),
        Member("m:3", Role::Router, 90, 0, ""),
    ]);
    for selection in [Selection::Primary, read(ReadMode::Secondary, &[&[("dc", "x")]], None)] {
        assert_eq!(chosen(&routers, &selection), ["m:1", "m:2"]);
    }
    assert_eq!(chosen(&routers, &Selection::Server("m:3".into())), ["m:3"]);
    assert!(chosen(&routers, &Selection::Server("m:4".into())).is_empty());
}
