use std::time::Duration;

use futures::FutureExt;

use super::*;
use crate::clock::SystemClock;
use crate::migration::control::NamespaceSpec;
use crate::migration::engine::{Environment, Settings};
use crate::migration::plan::{State, StoredPlan};
use crate::migration::stored::Stored;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::safeguards::Safeguards;
use crate::shutdown::Tasks;
use crate::state::inflight::Inflight;
use crate::state::table::Routing;

/// An engine without clusters that knows one created migration, `m`.
async fn engine() -> Arc<Engine> {
    let (clock, routing) = (Arc::new(SystemClock), Arc::new(Routing::default()));
    let settings = Settings {
        max_pause: Duration::from_millis(500),
        mirror_timeout: Duration::from_secs(1),
        lease: Duration::from_secs(6),
        hold: Duration::from_secs(60),
        backfill_parallel: None,
        mirror_sessions: 64,
        state: Side::Old,
    };
    let engine = Engine::new(Environment {
        holder: "test".to_owned(),
        clusters: None,
        shadow: None,
        rehearsal: None,
        open: Arc::new(|_| async { Err("there is no cluster".to_owned()) }.boxed()),
        settings,
        clock: clock.clone(),
        spawn: Arc::new(Tasks::default()),
        inflight: Inflight::new(Arc::clone(&routing), clock),
        routing,
        registry: Arc::default(),
        safeguards: Safeguards::default(),
        records: PerSide::default(),
    });
    let stored = Stored::new("m".to_owned(), vec![NamespaceSpec::plain("shop.orders")], 1);
    let running = Running::new(stored, &engine.environment);
    engine.migrations.lock().await.insert("m".to_owned(), running);
    engine.ready.send_replace(Vec::new());
    engine
}

#[tokio::test]
async fn a_change_meant_for_another_epoch_is_not_made() {
    let engine = engine().await;
    let at = |epochs: &[u64]| By { only_at: Some(epochs.to_vec()), ..By::any("ann") };
    let acknowledge = || Acknowledge { reason: "known".to_owned(), up_to: None };
    let late = at(&[7]);
    assert_eq!(engine.pause(&late, "m").await.unwrap_err().kind, Refusal::Outdated);
    assert_eq!(engine.abort(&late, "m").await.unwrap_err().kind, Refusal::Outdated);
    let noted = engine.acknowledge_bypass_writes(&late, "m", acknowledge()).await;
    assert_eq!(noted.unwrap_err().kind, Refusal::Outdated);
    for fitting in [at(&[7, 0]), By::any("ann")] {
        assert_eq!(engine.pause(&fitting, "m").await.unwrap_err().code, "wrong-phase");
    }
}

/// Whatever was decided before the turn of the call has come counts for nothing.
#[tokio::test]
async fn the_epoch_is_looked_at_when_no_other_change_can_come_between() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let turn = running.calls.lock().await;
    let by = By { only_at: Some(vec![7]), ..By::any("ann") };
    let call = engine.pause(&by, "m");
    futures::pin_mut!(call);
    assert!(futures::poll!(&mut call).is_pending(), "it was judged before its turn");
    drop(turn);
    assert_eq!(call.await.unwrap_err().kind, Refusal::Outdated);
}

#[test]
fn the_audit_says_what_a_completion_was_forced_past() {
    let how = |force, reason: Option<&str>| Complete { force, reason: reason.map(str::to_owned) };
    let lacking = ["the hold period is not over".to_owned(), "no verification".to_owned()];
    assert_eq!(completion(&how(false, None), &lacking), "complete");
    assert_eq!(
        completion(&how(true, Some(" ")), &lacking),
        "complete (force, although: the hold period is not over; no verification)"
    );
    assert_eq!(completion(&how(true, Some("it is late")), &[]), "complete it is late (force)");
}

#[tokio::test]
async fn the_audit_says_what_was_changed() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let now = || describe(&engine.view(&running));
    assert_eq!(now(), "created, reads 0 %, writes 0 %, epoch 0, throttle none");
    let throttle = Throttle { documents_per_second: Some(10.0), megabytes_per_second: Some(0.5) };
    running.stored.lock().throttle = throttle;
    running.stored.lock().paused = true;
    let expected = "created (paused), reads 0 %, writes 0 %, epoch 0, throttle 10 documents/s and 0.5 MB/s";
    assert_eq!(now(), expected);
}

#[tokio::test]
async fn what_cannot_be_paused_or_resumed_is_told_what_would_fit() {
    let engine = engine().await;
    let by = By::any("ann");
    let resumed = engine.resume(&by, "m").await.unwrap_err().detail;
    assert_eq!(resumed, "it is created; there is nothing to resume; start begins it");
    let paused = engine.pause(&by, "m").await.unwrap_err().detail;
    assert_eq!(paused, "it is created; only one that copies or follows can be paused; start begins it");
}

/// A step that waits for its turn is given up when the plan was halted, replaced or switched off meanwhile.
#[tokio::test]
async fn a_step_of_a_plan_does_not_follow_the_call_that_holds_it() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let plan = StoredPlan {
        plan: Plan::default(),
        state: State::default(),
        done: false,
        decisions: 0,
        by: "ann".to_owned(),
        since: 1,
    };
    let refused = |up| running.must_be_wanted(&plan, up).err().map(|error| error.code);
    assert_eq!(refused(true), Some("plan-changed"), "there is none any more");
    running.stored.lock().plan = Some(plan.clone());
    assert_eq!((refused(true), refused(false)), (None, None));
    let orders = Namespace::new("shop", "orders");
    running.stored.lock().off.plan.switch(Some(&orders), false);
    assert_eq!((refused(true), refused(false)), (Some("plan-switched-off"), None), "it may come down");
    running.stored.lock().off.plan.switch(Some(&orders), true);
    running.stored.lock().plan = Some(StoredPlan { since: 2, ..plan.clone() });
    assert_eq!(refused(false), Some("plan-changed"));
    running.stored.lock().plan = Some(plan.clone());
    // There is no cluster to store it on; it is halted all the same.
    assert!(!engine.halt_plan(&running).await);
    assert_eq!((refused(true), refused(false)), (Some("plan-changed"), Some("plan-changed")));
}
