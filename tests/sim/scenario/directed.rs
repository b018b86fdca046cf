//! What schedules found, each told as a story of its own.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawBsonRef;
use bson::{doc, rawdoc};
use reshard::migration::control::{NamespaceSpec, Phase};
use reshard::migration::stored::Stored;
use reshard::model::namespace::Namespace;
use reshard::model::side::{PerSide, Side};
use reshard::model::slots::SlotSet;
use reshard::policy::canonical::key_of;
use reshard::state::authority::Authority;
use reshard::state::lease::Lease;
use reshard::state::parking::{Parked, Parking};
use reshard::state::record::{AuthorityRecord, DATABASE, Fence, FenceState};
use reshard::state::records::Records;
use uuid::Uuid;

use crate::mongo::cluster::{Cluster, ClusterOptions};
use crate::network::Weather;
use crate::process::Process;
use crate::world::World;

/// Records of two processes on one cluster.
struct Rig {
    world: World,
    cluster: Cluster,
    processes: [Process; 2],
    records: [Arc<Records>; 2],
}

impl Rig {
    fn new() -> Self {
        let world = World::new(1, Weather::calm());
        let cluster = world.cluster("old", ClusterOptions::default());
        let processes = [world.process("one"), world.process("two")];
        let records = std::array::from_fn(|index| {
            let process = &processes[index];
            let session = Uuid::from_u128(index as u128);
            let connection = world.connect(process, &cluster);
            Arc::new(Records::new(connection, process.clock(), session, Duration::from_secs(10)))
        });
        Self { world, cluster, processes, records }
    }

    fn run<F: Future<Output = ()> + Send + 'static>(self, test: impl FnOnce(Self) -> F) {
        let world = self.world.clone();
        world.run(test(self)).unwrap();
        world.end();
    }

    fn authority(&self) -> Authority {
        let clock = self.processes[0].clock();
        let lease = Lease::new(clock.clone(), Duration::from_secs(3));
        Authority::new(Side::Old, "m", "p1", 64, Arc::clone(&self.records[0]), clock, lease)
    }
}

fn fence(to: Side, epoch: u64, state: FenceState) -> Fence {
    Fence {
        id: format!("f{epoch}"),
        slots: SlotSet::percent(50),
        to,
        epoch,
        state,
        coordinator: "p1".into(),
        drained: Vec::new(),
        marker_from: None,
        marker_to: None,
        decided_at: None,
    }
}

#[test]
fn the_fence_of_a_move_long_past_gains_nothing_again() {
    Rig::new().run(|rig| async move {
        let authority = rig.authority();
        let identities = PerSide { old: "a".to_owned(), new: "b".to_owned() };
        let mut record = AuthorityRecord::begin("m", Side::Old, identities, vec!["app.c".into()]);
        record.owned = SlotSet::EMPTY;
        authority.create(&record).await.unwrap();
        let back = fence(Side::Old, 1, FenceState::Committed);
        authority.gain(&back).await.unwrap();
        assert_eq!(authority.known().unwrap().owned, SlotSet::percent(50));
        let away = fence(Side::New, 2, FenceState::Open);
        assert!(authority.open_fence(&away).await.unwrap());
        assert!(authority.commit_fence(&away, SlotSet::EMPTY).await.unwrap());
        // A successor finds the first one, still committed, on the other cluster.
        authority.gain(&back).await.unwrap();
        assert_eq!(authority.known().unwrap().owned, SlotSet::EMPTY);
    });
}

#[test]
fn a_lease_counts_only_after_what_its_record_says_is_obeyed() {
    Rig::new().run(|rig| async move {
        let authority = rig.authority();
        let record = AuthorityRecord::begin("m", Side::Old, PerSide::default(), vec!["app.c".into()]);
        authority.create(&record).await.unwrap();
        let granted = authority.beat(|| {
            assert!(authority.known().is_some_and(|known| known.holders.contains_key("p1")));
            assert!(authority.lease.begin().is_none());
        });
        assert!(granted.await.unwrap());
        assert!(authority.lease.begin().is_some());
    });
}

#[test]
fn what_the_dead_have_sent_does_not_undo_what_is_stored() {
    Rig::new().run(|rig| async move {
        let namespaces = vec![NamespaceSpec::plain("app.c")];
        let created = Stored::new("m".into(), namespaces, 0);
        rig.world.network().hold(rig.processes[0].id, rig.cluster.index(), "findAndModify", 1);
        let (late, records) = (created.clone(), Arc::clone(&rig.records[0]));
        rig.processes[0].spawn("create", async move {
            let _never_heard = late.store(&records).await;
        });
        rig.world.sleep(Duration::from_secs(1)).await;
        rig.world.crash(&rig.processes[0]);
        let [_, records] = &rig.records;
        created.store(records).await.unwrap();
        Stored { phase: Phase::Copying, ..created }.store(records).await.unwrap();
        rig.world.network().flush();
        rig.world.sleep(Duration::from_secs(1)).await;
        let stored = Stored::load_all(records).await.unwrap();
        assert_eq!(stored[0].phase, Phase::Copying);
    });
}

#[test]
fn a_deposed_primary_does_not_tell_what_is_stored() {
    Rig::new().run(|rig| async move {
        let [one, two] = &rig.records;
        let write = async |records: &Records, value: i32| {
            let update = doc! { "$set": { "value": value } };
            records.change(DATABASE, "authority", doc! { "_id": "m" }, update, true).await.unwrap()
        };
        write(one, 1).await;
        rig.cluster.failover_with(0, Some(Duration::from_secs(3)));
        // Whoever has heard of the new primary never asks the old one.
        write(two, 2).await;
        for _ in 0..20 {
            let found = one.find(DATABASE, "authority", rawdoc! { "_id": "m" }, 1).await.unwrap();
            assert_eq!(found[0].get_i32("value").unwrap(), 2);
        }
    });
}

#[test]
fn a_key_that_was_parked_after_the_look_stays_parked() {
    Rig::new().run(|rig| async move {
        let (parking, [records, _]) = (Parking::new("m"), &rig.records);
        let namespace = Namespace::new("app", "c");
        let key = key_of(RawBsonRef::Int32(1)).unwrap();
        let keys = [key.clone()];
        let park = async || {
            let (namespace, key) = (namespace.clone(), key.clone());
            let parked = Parked { namespace, key, why: "too large".into(), since: 0, tries: 0 };
            parking.park(records, parked).await.unwrap();
        };
        let unpark = async |looked| {
            parking.unpark(records, &namespace, &looked, keys.iter()).await.unwrap();
            let again = Parking::new("m");
            again.load(records).await.unwrap();
            assert_eq!(again.len(), parking.len(), "stored as known");
            parking.len()
        };
        let nothing_yet = parking.before_look(&namespace, &keys);
        park().await;
        assert_eq!(unpark(nothing_yet).await, 1);
        let looked = parking.before_look(&namespace, &keys);
        // The stream brings it once more, and it is stuck.
        park().await;
        assert_eq!(unpark(looked).await, 1);
        assert_eq!(unpark(parking.before_look(&namespace, &keys)).await, 0);
    });
}
