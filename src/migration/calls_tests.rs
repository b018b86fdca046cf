use std::time::Duration;

use futures::FutureExt;

use super::*;
use crate::clock::SystemClock;
use crate::migration::control::NamespaceSpec;
use crate::migration::engine::{Environment, Settings};
use crate::migration::evidence::Looked;
use crate::migration::plan::{
    Act, Freeze, Gate, Place, RampDecision, RampStatus, State, StoredPlan, Verdict,
};
use crate::migration::plan_moves::{Attempt, Done};
use crate::migration::stored::Stored;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::policy::ramp::decide;
use crate::policy::ramp_moves::Trying;
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

fn followed(plan: Plan) -> StoredPlan {
    let (state, by, stays) = (State::default(), "ann".to_owned(), Vec::new());
    StoredPlan { plan, state, done: false, decisions: 0, by, since: 1, resumed: 0, stays }
}

/// A step that waits for its turn is given up when the plan was halted, replaced or switched off meanwhile.
#[tokio::test]
async fn a_step_of_a_plan_does_not_follow_the_call_that_holds_it() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let plan = followed(Plan::default());
    let (from, to) = (Place::default(), Place::default());
    let wanted = |plan: &StoredPlan, up| running.must_be_wanted(Attempt { plan, from, to }, up, 0);
    let refused = |up| wanted(&plan, up).err().map(|error| error.code);
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
    assert!(!engine.halt_plan(&running, "ann moved reads to 10 %").await);
    assert_eq!((refused(true), refused(false)), (Some("plan-changed"), Some("plan-changed")));
}

/// Who halted it first says why, and it is told at once; letting it go on takes back the decisions from before.
#[tokio::test]
async fn a_plan_that_is_halted_by_a_move_by_hand_says_so_and_goes_on_from_there() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let plan = followed(Plan { dry_run: false, ..Plan::default() });
    running.stored.lock().plan = Some(plan.clone());
    for why in ["ann moved reads to 10 %", "bob moved reads to 5 %"] {
        assert!(!engine.halt_plan(&running, why).await, "there is no cluster to store it on");
    }
    let view = engine.plan_of(&running).await.unwrap();
    assert_eq!(view.status, RampStatus::Paused);
    assert!(view.why.contains("ann moved reads to 10 %") && !view.why.contains("bob"), "{}", view.why);
    let halted = running.stored.lock().plan.clone().unwrap();
    let resumed = StoredPlan { state: halted.state.resumed(), resumed: 7, ..halted };
    assert_eq!(
        (resumed.status(), &resumed.state.halted, resumed.state.expected),
        (RampStatus::Running, &None, None)
    );
    running.stored.lock().plan = Some(resumed.clone());
    let (from, to) = (Place::default(), Place::default());
    let wanted = |plan: &StoredPlan| running.must_be_wanted(Attempt { plan, from, to }, true, 0);
    assert_eq!(wanted(&plan).unwrap_err().code, "plan-changed", "it was halted and resumed in between");
    assert!(wanted(&resumed).is_ok());
    running.stored.lock().plan = Some(StoredPlan { done: true, ..resumed });
    assert!(engine.halt_plan(&running, "too late").await, "what has ended is not halted");
    assert_eq!(running.stored.lock().plan.as_ref().unwrap().status(), RampStatus::Done);
}

#[tokio::test]
async fn a_step_whose_time_has_passed_while_it_waited_is_not_taken() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let freezes = vec![Freeze { from: "1970-01-02".into(), to: "1970-01-02".into() }];
    let plan = followed(Plan { freezes, ..Plan::default() });
    running.stored.lock().plan = Some(plan.clone());
    let (from, to) = (Place::default(), Place::default());
    let midnight = 24 * 3_600_000;
    let refused = |up, now| {
        running.must_be_wanted(Attempt { plan: &plan, from, to }, up, now).err().map(|error| error.code)
    };
    assert_eq!(refused(true, midnight - 1), None);
    assert_eq!((refused(true, midnight), refused(false, midnight)), (Some("outside-windows"), None));
}

#[tokio::test]
async fn a_plan_in_place_of_another_keeps_its_windows_unless_somebody_says_why_not() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let freezes = vec![Freeze { from: "2000-01-01".into(), to: "2999-12-31".into() }];
    let open = |override_reason: Option<&str>| Plan {
        override_reason: override_reason.map(str::to_owned),
        min_oplog_window_seconds: 0.0,
        ..Plan::default()
    };
    let strict = Plan { freezes, ..open(None) };
    let refused = async |plan: &Plan| {
        let refused = Control::start_plan(&*engine, &By::any("bob"), "m", plan.clone()).await.unwrap_err();
        (refused.code, refused.detail)
    };
    // Nothing can be stored here: what is not refused for its windows fails for that.
    let stored = refused(&open(None)).await.0;
    assert_ne!(stored, "drops-windows");
    running.stored.lock().plan = Some(followed(strict.clone()));
    for paused in [false, true] {
        running.stored.lock().plan.as_mut().unwrap().state.paused = paused;
        let (code, detail) = refused(&open(None)).await;
        assert_eq!(code, "drops-windows");
        assert!(detail.contains("2000-01-01 to 2999-12-31"), "{detail}");
    }
    assert_eq!(refused(&strict).await.0, stored);
    assert_eq!(
        refused(&Plan { dry_run: true, ..open(None) }).await.0,
        "drops-windows",
        "not by a detour either"
    );
    let reasoned = open(Some("the launch was put off"));
    assert_eq!(refused(&reasoned).await.0, stored);
    let audited = engine.described(&running, &reasoned);
    assert!(audited.contains("past windows and freezes: the launch was put off"), "{audited}");
    assert!(audited.contains("dropping of the plan in force: freezes: 2000-01-01"), "{audited}");
    running.stored.lock().plan.as_mut().unwrap().done = true;
    assert_eq!(refused(&open(None)).await.0, stored, "a plan that has ended is not in force");
}

/// Neither the time that a step took counts for its dwell, nor what was measured before it.
#[tokio::test]
async fn a_step_begins_when_it_has_been_taken() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let plan = followed(Plan { dry_run: true, dwell_seconds: 10, ..Plan::default() });
    running.stored.lock().plan = Some(plan.clone());
    let gates = [Gate { name: "ready".into(), verdict: Verdict::Passed, detail: String::new() }];
    let decision = decide(&plan.plan, &plan.state, Place::default(), &gates, 1_000);
    let Act::Up(to) = decision.act else { panic!("{decision:?}") };
    assert!(running.keep(&plan, &decision, &Done::at(to, Ok(())), 1, 9_000));
    let known = running.stored.lock().plan.clone().unwrap();
    assert_eq!((known.state.looked_at, known.state.dwelt_ms, known.decisions), (Some(9_000), 0, 1));
    assert_eq!(known.stays.last().map(|stay| (stay.reads, stay.reached_at)), Some((to.reads, 9_000)));
    let next = decide(&known.plan, &known.state, to, &gates, 18_999);
    assert_eq!((next.act, next.state.dwelt_ms), (Act::Hold, 9_999));
    // It was halted while the step was taken: nothing of it is taken for reached, and its end is no longer awaited.
    let trying = Some(Trying { number: 2, to });
    let halted = State { trying, ..known.state.clone() }.halted("ann moved reads to 10 %");
    running.stored.lock().plan = Some(StoredPlan { state: halted, ..known.clone() });
    assert!(!running.keep(&known, &next, &Done::at(to, Ok(())), 2, 30_000));
    let left = running.stored.lock().plan.clone().unwrap();
    assert_eq!((left.state.trying, left.state.paused, left.decisions), (None, true, 1));
}

/// Without a record to go by it is somewhere on its way, which the plan does not take for a move of others.
#[tokio::test]
async fn a_move_of_which_nothing_is_known_stays_under_way() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    let plan = followed(Plan::default());
    running.stored.lock().plan = Some(plan.clone());
    let gates = [Gate { name: "ready".into(), verdict: Verdict::Passed, detail: String::new() }];
    let decision = decide(&plan.plan, &plan.state, Place::default(), &gates, 1_000);
    let Act::Up(to) = decision.act else { panic!("{decision:?}") };
    assert!(running.keep(&plan, &decision, &Done::at(to, Err("no answer".into())), 1, 9_000));
    assert_eq!(running.stored.lock().plan.as_ref().unwrap().state.trying, Some(Trying { number: 1, to }));
}

/// What could not be stored is told by the next look of this process, and by whoever follows until then.
#[tokio::test]
async fn a_step_of_which_the_end_could_not_be_stored_stays_under_way() {
    let engine = engine().await;
    let running = engine.running("m").await.unwrap();
    running.stored.lock().plan = Some(followed(Plan::default()));
    let to = Place { reads: 5.into(), writes: 0.into() };
    let told = RampDecision {
        number: 3,
        at: 1,
        look: 1,
        first_broken_look: None,
        act: "up".into(),
        dry_run: false,
        from: Place::default(),
        to: Some(to),
        reached_at: None,
        left_at: Some(2),
        why: "all gates hold".into(),
        result: "ok".into(),
        gates: Vec::new(),
    };
    let mut looked = Looked::default();
    assert!(engine.tell_end(&running, &mut looked, told.clone()).await.is_err(), "there is no cluster");
    let trying = || running.stored.lock().plan.as_ref().unwrap().state.trying;
    assert_eq!((trying(), &looked.untold), (Some(Trying { number: 3, to }), &vec![told.clone()]));
    // Nobody tells that the process ended as long as this one knows better.
    let mut plan = running.stored.lock().plan.clone().unwrap();
    engine.tell_untold(&running, &mut looked).await;
    engine.tell_of_cut_off(&running, &looked, &mut plan, to).await;
    assert_eq!((trying(), looked.untold), (Some(Trying { number: 3, to }), vec![told]));
    assert_eq!(plan.state.trying, trying());
    // With its plan nobody would tell it any more.
    assert!(engine.conclude_plan(&running).await.is_err());
    assert!(engine.stop_plan(&running).await.is_err());
    assert!(running.stored.lock().plan.is_some());
}
