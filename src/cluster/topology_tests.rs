use super::*;

fn id(byte: u8) -> ObjectId {
    ObjectId::from_bytes([byte; 12])
}

fn member(role: Role, members: &[&str]) -> HelloReply {
    HelloReply {
        role: Some(role),
        set_name: Some("x".to_owned()),
        members: members.iter().map(|&member| member.to_owned()).collect(),
        max_wire_version: 17,
        session_timeout_minutes: Some(30),
        ..HelloReply::default()
    }
}

fn primary(members: &[&str], election: u8, version: i64) -> HelloReply {
    HelloReply {
        election_id: Some(id(election)),
        set_version: Some(version),
        ..member(Role::Primary, members)
    }
}

fn seeds(addresses: &[&str]) -> Vec<ServerId> {
    addresses.iter().map(|&address| address.into()).collect()
}

fn start(addresses: &[&str]) -> Topology {
    Topology::new(&seeds(addresses), None, false)
}

fn reply(topology: &Topology, address: &str, hello: &HelloReply) -> Topology {
    topology.with_reply(address, hello, Some(Duration::from_millis(1)), 0)
}

fn addresses(topology: &Topology) -> Vec<&str> {
    let mut addresses: Vec<&str> = topology.servers.iter().map(|server| &*server.address).collect();
    addresses.sort_unstable();
    addresses
}

fn role(topology: &Topology, address: &str) -> Role {
    topology.server(address).unwrap().role
}

#[test]
fn the_primary_decides_who_is_a_member() {
    let topology = reply(&start(&["a:1", "z:9"]), "a:1", &primary(&["a:1", "b:2", "c:3"], 1, 1));
    assert_eq!(topology.kind, TopologyKind::ReplicaSet { set_name: "x".to_owned() });
    assert_eq!(addresses(&topology), ["a:1", "b:2", "c:3"]);
    let topology = reply(&topology, "a:1", &primary(&["a:1", "c:3"], 1, 2));
    assert_eq!(addresses(&topology), ["a:1", "c:3"]);
    // The removed one still believes in the old set.
    let topology = reply(&topology, "b:2", &member(Role::Secondary, &["a:1", "b:2", "c:3"]));
    assert_eq!(addresses(&topology), ["a:1", "c:3"]);
}

#[test]
fn a_secondary_adds_members_while_there_is_no_primary() {
    let topology = reply(&start(&["a:1"]), "a:1", &member(Role::Secondary, &["a:1", "b:2"]));
    assert_eq!(addresses(&topology), ["a:1", "b:2"]);
    assert!(topology.primary().is_none());
}

#[test]
fn a_seed_with_another_name_gives_way_to_the_names_in_the_configuration() {
    let hello = primary(&["a:1", "b:2"], 1, 1);
    assert_eq!(addresses(&reply(&start(&["alias:1"]), "alias:1", &hello)), ["a:1", "b:2"]);
    let hello = HelloReply { me: Some("a:1".to_owned()), ..member(Role::Secondary, &["a:1", "b:2"]) };
    assert_eq!(addresses(&reply(&start(&["alias:1"]), "alias:1", &hello)), ["a:1", "b:2"]);
}

#[test]
fn a_new_primary_replaces_the_old_and_the_old_cannot_come_back() {
    let both = ["a:1", "b:2"];
    let topology = reply(&start(&both), "a:1", &primary(&both, 1, 1));
    let topology = reply(&topology, "b:2", &primary(&both, 2, 1));
    assert_eq!((role(&topology, "a:1"), role(&topology, "b:2")), (Role::Unknown, Role::Primary));
    // The old primary, cut off, still answers as one.
    let topology = reply(&topology, "a:1", &primary(&both, 1, 1));
    assert_eq!((role(&topology, "a:1"), role(&topology, "b:2")), (Role::Unknown, Role::Primary));
    // A greater configuration version of an older election does not win since 6.0 ...
    let topology = reply(&topology, "a:1", &primary(&both, 1, 5));
    assert_eq!(role(&topology, "a:1"), Role::Unknown);
    // ... and an election after a rollback of the configuration does.
    let topology = reply(&topology, "a:1", &primary(&both, 3, 0));
    assert_eq!((role(&topology, "a:1"), role(&topology, "b:2")), (Role::Primary, Role::Unknown));
}

#[test]
fn before_6_0_the_configuration_version_counts_first() {
    let both = ["a:1", "b:2"];
    let old = |election, version| HelloReply { max_wire_version: 13, ..primary(&both, election, version) };
    let topology = reply(&start(&both), "a:1", &old(1, 2));
    let topology = reply(&topology, "b:2", &old(2, 1));
    assert_eq!((role(&topology, "a:1"), role(&topology, "b:2")), (Role::Primary, Role::Unknown));
    let topology = reply(&topology, "b:2", &old(1, 3));
    assert_eq!((role(&topology, "a:1"), role(&topology, "b:2")), (Role::Unknown, Role::Primary));
}

#[test]
fn a_server_of_another_set_is_refused_with_a_reason() {
    let topology = Topology::new(&seeds(&["a:1"]), Some("y"), false);
    let topology = reply(&topology, "a:1", &primary(&["a:1"], 1, 1));
    let server = topology.server("a:1").unwrap();
    assert_eq!(server.role, Role::Unknown);
    assert!(server.error.as_ref().unwrap().contains("the replica set x, expected the replica set y"));
}

#[test]
fn standalone_and_sharded_are_recognised() {
    let standalone = HelloReply { role: Some(Role::Standalone), ..HelloReply::default() };
    assert_eq!(reply(&start(&["a:1"]), "a:1", &standalone).kind, TopologyKind::Standalone);
    let two = reply(&start(&["a:1", "b:2"]), "a:1", &standalone);
    assert_eq!((two.kind.clone(), role(&two, "a:1")), (TopologyKind::Unknown, Role::Unknown));
    let router = HelloReply { role: Some(Role::Router), ..HelloReply::default() };
    let sharded = reply(&start(&["a:1", "b:2"]), "b:2", &router);
    assert_eq!((sharded.kind.clone(), role(&sharded, "b:2")), (TopologyKind::Sharded, Role::Router));
    assert_eq!(addresses(&sharded), ["a:1", "b:2"]);
}

#[test]
fn a_direct_connection_ignores_other_members() {
    let topology = Topology::new(&seeds(&["alias:1"]), None, true);
    let topology = reply(&topology, "alias:1", &member(Role::Secondary, &["a:1", "b:2"]));
    assert_eq!(addresses(&topology), ["alias:1"]);
    assert_eq!(role(&topology, "alias:1"), Role::Secondary);
}

#[test]
fn an_older_reply_of_the_same_process_changes_nothing() {
    let version = |counter| Some(TopologyVersion { process: id(9), counter });
    let new = HelloReply { topology_version: version(5), ..member(Role::Secondary, &["a:1"]) };
    let old = HelloReply { topology_version: version(4), ..primary(&["a:1"], 1, 1) };
    let topology = reply(&reply(&start(&["a:1"]), "a:1", &new), "a:1", &old);
    assert_eq!(role(&topology, "a:1"), Role::Secondary);
}

#[test]
fn a_failure_makes_unknown_and_keeps_the_kind() {
    let topology = reply(&start(&["a:1"]), "a:1", &primary(&["a:1"], 1, 1));
    let topology = topology.with_failure("a:1", "refused".to_owned());
    assert_eq!(topology.summary(), "a:1 Unknown (refused)");
    assert!(matches!(topology.kind, TopologyKind::ReplicaSet { .. }));
    assert_eq!(topology.wire_versions(), None);
}

#[test]
fn common_abilities_are_the_smallest() {
    let both = ["a:1", "b:2"];
    let topology = reply(&start(&both), "a:1", &primary(&both, 1, 1));
    let other = HelloReply {
        max_wire_version: 13,
        min_wire_version: 6,
        session_timeout_minutes: None,
        ..member(Role::Secondary, &both)
    };
    assert_eq!(topology.session_timeout_minutes(), Some(30));
    let topology = reply(&topology, "b:2", &other);
    assert_eq!(topology.wire_versions(), Some((6, 13)));
    assert_eq!(topology.session_timeout_minutes(), None);
    assert_eq!(topology.limits(), Some(Limits::default()));
}

#[test]
fn the_round_trip_is_smoothed() {
    let ms = Duration::from_millis;
    assert_eq!(smooth(None, Some(ms(10))), Some(ms(10)));
    assert_eq!(smooth(Some(ms(10)), Some(ms(20))), Some(ms(12)));
    assert_eq!(smooth(Some(ms(10)), None), Some(ms(10)));
}
