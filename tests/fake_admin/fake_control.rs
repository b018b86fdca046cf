//! An engine that only remembers what it was asked.

use std::sync::Mutex;

use async_trait::async_trait;
use reshard::migration::control::{
    Acknowledge, AcknowledgeUnreturned, Acknowledged, AuditEvent, Basis, By, BypassReport, BypassWrite,
    Cluster, ClusterTime, Compared, Complete, Conclusion, Conflict, Control, ControlError, CountByCluster,
    DecisionList, DiffReport, EqualUpTo, EventList, Finding, Gate, Identities, Keys, Lag, MigrationView,
    Mismatch, NewMigration, Page, Part, Patience, Phase, PinCounts, PinList, PinView, Pinned, Place,
    Placement, Plan, PreflightReport, Progress, Ramp, RampDecision, RampStatus, RampView, RangeOperations,
    RangeSpec, RangeView, Refusal, RehearsalCounts, RehearsalView, SetPins, SetRehearsal, SetShadow,
    SetSwitches, Severity, ShadowCounts, ShadowView, ShapeList, ShapeView, SideLatency, Stay, Steer,
    Switches, Throttle, Unreturned, UnreturnedList, UnreturnedPage, UnreturnedState, UnreturnedView, Verdict,
    Verification, VerificationReport, Verify, WithoutNew,
};
use reshard::migration::shadow::{AccessView, Example, ExampleField, LatencyView, ShapeDiff};
use reshard::model::percent::Percent;

/// What it knows, and how it is to behave.
#[derive(Default)]
pub struct FakeControl {
    migrations: Mutex<Vec<MigrationView>>,
    /// What was asked, by whom.
    pub calls: Mutex<Vec<String>>,
    /// The answer to whatever is asked next.
    pub refuse: Mutex<Option<ControlError>>,
    /// Why it is not ready.
    pub not_ready: Mutex<Vec<String>>,
    /// How long `set_writes` takes.
    pub slow: Mutex<std::time::Duration>,
    verifying: Mutex<u32>,
    plan: Mutex<Option<Plan>>,
    switches: Mutex<Switches>,
}

fn rehearsal_counts() -> RehearsalCounts {
    RehearsalCounts {
        rehearsal_factor: 1.5,
        rehearsal_reads: 30,
        rehearsal_errors: 1,
        rehearsal_dropped: 2,
        rehearsal_skipped: 3,
    }
}

fn counts() -> ShadowCounts {
    ShadowCounts {
        shadow_percent: 2.5,
        shadow_sampled: 20,
        shadow_compared: 10,
        shadow_equal: 8,
        shadow_transient: 1,
        shadow_differences: Some(1),
        shadow_nondeterministic: 2,
        shadow_unsettled: 0,
        shadow_failed: 0,
        shadow_dropped: 4,
        shadow_skipped: 3,
    }
}

type Result<T> = std::result::Result<T, ControlError>;

impl FakeControl {
    /// Everything asked so far.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Notes what is asked of `name`, at the epoch at which it is to be done.
    fn ask(&self, by: &By, name: &str, what: String) -> Result<()> {
        if let Some(view) = self.migrations.lock().unwrap().iter().find(|view| view.name == name) {
            by.may_change(view.epoch)?;
        }
        self.calls.lock().unwrap().push(format!("{}: {what}", by.who.0));
        self.refuse.lock().unwrap().take().map_or(Ok(()), Err)
    }

    fn change(&self, name: &str, how: impl FnOnce(&mut MigrationView)) -> Result<MigrationView> {
        let mut migrations = self.migrations.lock().unwrap();
        let found = migrations.iter_mut().find(|view| view.name == name);
        let view = found.ok_or_else(|| {
            ControlError::new(Refusal::NotFound, "no-such-migration", format!("there is no migration {name}"))
        })?;
        how(view);
        view.epoch += 1;
        Ok(view.clone())
    }

    fn step(&self, by: &By, name: &str, step: &str, phase: Phase) -> Result<MigrationView> {
        self.ask(by, name, format!("{step} {name}"))?;
        self.change(name, |view| view.phase = phase)
    }

    fn ramp(&self, name: &str, percent: Percent, how: impl FnOnce(&mut MigrationView)) -> Result<Ramp> {
        let epoch = self.change(name, how)?.epoch;
        Ok(Ramp {
            percent,
            epoch,
            pause_ms: 42,
            attempts: 1,
            ended_transactions: 0,
            elapsed_ms: 57,
            removed_pins: 0,
            unreturned: None,
            all_named: false,
        })
    }
}

#[async_trait]
impl Control for FakeControl {
    async fn create(&self, by: &By, new: NewMigration) -> Result<MigrationView> {
        self.ask(by, &new.name, format!("create {}", new.name))?;
        let view = MigrationView {
            name: new.name,
            namespaces: new.namespaces,
            phase: Phase::Created,
            paused: false,
            reads_percent: Percent::ZERO,
            writes_percent: Percent::ZERO,
            epoch: 1,
            created_at: 1_700_000_000_000,
            failure: None,
            throttle: Throttle::default(),
            verification: None,
            spot_check: None,
            ranges: new.ranges.into_iter().map(|range| on_old(range, 1023)).collect(),
            placements: Vec::new(),
        };
        self.migrations.lock().unwrap().push(view.clone());
        Ok(view)
    }

    async fn list(&self) -> Result<Vec<MigrationView>> {
        Ok(self.migrations.lock().unwrap().clone())
    }

    async fn get(&self, name: &str) -> Result<MigrationView> {
        assert_ne!(name, "panic", "as the test asked");
        let found = self.migrations.lock().unwrap().iter().find(|view| view.name == name).cloned();
        found.ok_or_else(|| {
            ControlError::new(Refusal::NotFound, "no-such-migration", format!("there is no migration {name}"))
        })
    }

    async fn preflight(&self, name: &str) -> Result<PreflightReport> {
        self.get(name).await?;
        let finding = Finding {
            severity: Severity::Refused,
            code: "no-oplog".to_owned(),
            namespace: String::new(),
            message: "old is not a replica set".to_owned(),
            remedy: "restart it with --replSet".to_owned(),
        };
        let ok = name != "standalone";
        Ok(PreflightReport { ok, findings: if ok { Vec::new() } else { vec![finding] } })
    }

    async fn start(&self, by: &By, name: &str) -> Result<MigrationView> {
        self.step(by, name, "start", Phase::Copying)
    }

    async fn pause(&self, by: &By, name: &str) -> Result<MigrationView> {
        self.ask(by, name, format!("pause {name}"))?;
        self.change(name, |view| view.paused = true)
    }

    async fn resume(&self, by: &By, name: &str) -> Result<MigrationView> {
        self.ask(by, name, format!("resume {name}"))?;
        self.change(name, |view| view.paused = false)
    }

    async fn verify(&self, by: &By, name: &str, how: Verify) -> Result<Verification> {
        self.ask(by, name, format!("{how} {name}"))?;
        self.change(name, |_| {})?;
        *self.verifying.lock().unwrap() = 2;
        Ok(Verification { asked: how, running: true, total_documents: 10, ..Verification::default() })
    }

    async fn verification(&self, name: &str) -> Result<VerificationReport> {
        self.get(name).await?;
        let time = |seconds| ClusterTime { seconds, increment: 7 };
        let compared = Compared {
            namespace: "shop.orders".to_owned(),
            documents_on_old: 10,
            documents_on_new: 10,
            digest_of_old: "00ff".repeat(8),
            digest_of_new: "00ff".repeat(8),
            mismatches: 1,
            repaired: 1,
        };
        let full = Verification {
            namespaces: vec!["shop.orders".to_owned()],
            compared_documents: 10,
            total_documents: 10,
            mismatches: 1,
            repaired: 1,
            started_at: Some(1_700_000_000_000),
            finished_at: Some(1_700_000_060_000),
            collections: vec![compared.clone()],
            equal_up_to: Some(EqualUpTo { old: time(1_700_000_059), new: time(1_700_000_060) }),
            ..Verification::default()
        };
        let asked = Verify { compare: Basis::Digest, sample_percent: 5.0, ..Verify::default() };
        let part = Verification { asked, equal_up_to: None, ..full.clone() };
        let mismatch = Mismatch {
            namespace: "shop.orders".to_owned(),
            key: "\"<b>1</b>\"".to_owned(),
            kind: "content".to_owned(),
            paths: vec!["total".to_owned(), "lines.0.price".to_owned()],
            repaired: true,
            at: 1_700_000_030_000,
        };
        let blind_spots = Basis::Digest.blind_spots();
        Ok(VerificationReport {
            migration: name.to_owned(),
            made_at: 1_700_000_100_000,
            made_by: "1.2.3".to_owned(),
            phase: Phase::Synced,
            clusters: Identities { old: "a".to_owned(), new: "b".to_owned() },
            conclusion: Conclusion::Equal,
            reasons: Vec::new(),
            verification: Some(full),
            spot_check: Some(part),
            blind_spots: blind_spots.iter().map(|spot| (*spot).to_owned()).collect(),
            mismatches: vec![mismatch],
            fingerprint: String::new(),
        }
        .sealed())
    }

    async fn set_reads(&self, by: &By, name: &str, percent: Percent) -> Result<Ramp> {
        self.ask(by, name, format!("reads {name} {percent}"))?;
        self.ramp(name, percent, |view| view.reads_percent = percent)
    }

    async fn set_writes(&self, by: &By, name: &str, percent: Percent, how: Patience) -> Result<Ramp> {
        let slow = *self.slow.lock().unwrap();
        // How long it takes is what a test asks for.
        tokio::time::sleep(slow).await;
        let Patience { max_pause_ms: max, end_transactions_after: after } = how;
        self.ask(by, name, format!("writes {name} {percent} {max:?} {after:?}"))?;
        self.ramp(name, percent, |view| view.writes_percent = percent)
    }

    async fn pin(&self, by: &By, name: &str, asked: SetPins) -> Result<Pinned> {
        self.ask(by, name, format!("pin {name} {:?} {:?} {:?}", asked.keys, asked.ranges, asked.to))?;
        let ramp = self.ramp(name, Percent::whole(5), |_| {})?;
        Ok(Pinned { ramp, pins: pins(asked.to), note: "a slot goes along".to_owned() })
    }

    async fn unpin(&self, by: &By, name: &str, asked: Keys) -> Result<Pinned> {
        self.ask(by, name, format!("unpin {name} {:?} {:?}", asked.keys, asked.ranges))?;
        let ramp = self.ramp(name, Percent::whole(5), |_| {})?;
        Ok(Pinned { ramp, pins: Vec::new(), note: "a slot goes along".to_owned() })
    }

    async fn pins(&self, name: &str) -> Result<PinList> {
        self.get(name).await?;
        Ok(PinList { pins: pins(Cluster::New), ranges: ranges() })
    }

    async fn switch(&self, by: &By, name: &str, asked: SetSwitches) -> Result<Switches> {
        self.ask(by, name, format!("{asked} {name}"))?;
        self.change(name, |_| {})?;
        let mut now = self.switches.lock().unwrap();
        now.inline_mirror = asked.inline_mirror.unwrap_or(now.inline_mirror);
        now.read_routing = asked.read_routing.unwrap_or(now.read_routing);
        now.shadow = asked.shadow.unwrap_or(now.shadow);
        now.repair = asked.repair.unwrap_or(now.repair);
        now.plan = asked.plan.unwrap_or(now.plan);
        Ok(now.clone())
    }

    async fn rollback(&self, by: &By, name: &str) -> Result<Ramp> {
        self.ask(by, name, format!("rollback {name}"))?;
        self.ramp(name, Percent::ZERO, |view| {
            (view.reads_percent, view.writes_percent) = (Percent::ZERO, Percent::ZERO);
        })
    }

    async fn rollback_without_new(
        &self,
        by: &By,
        name: &str,
        asked: WithoutNew,
        only: Option<Keys>,
    ) -> Result<Ramp> {
        let part = only.map(|only| format!(" of {:?} {:?}", only.keys, only.ranges)).unwrap_or_default();
        self.ask(by, name, format!("rollback {name}{part} without new: {}", asked.reason))?;
        let ramp = self.ramp(name, Percent::ZERO, |view| {
            (view.reads_percent, view.writes_percent) = (Percent::ZERO, Percent::ZERO);
        })?;
        Ok(Ramp { unreturned: Some(2), all_named: true, ..ramp })
    }

    async fn unreturned(&self, name: &str, page: UnreturnedPage) -> Result<UnreturnedList> {
        self.get(name).await?;
        let document = |key: &str, state: &str, why: Option<&str>| Unreturned {
            namespace: "shop.orders".to_owned(),
            key: key.to_owned(),
            state: state.to_owned(),
            why: why.map(str::to_owned),
            on_new: why.map(|_| "{\"_id\":2}".to_owned()),
        };
        let conflict = document("2", "conflict", Some("the application has written it on old since"));
        let next = page.limit.map(|_| "0".repeat(32));
        Ok(UnreturnedList { documents: vec![document("1", "brought_back", None), conflict], next })
    }

    async fn acknowledge_unreturned(
        &self,
        by: &By,
        name: &str,
        asked: AcknowledgeUnreturned,
    ) -> Result<UnreturnedView> {
        self.ask(by, name, format!("acknowledge-unreturned {name} {}", asked.reason))?;
        Ok(UnreturnedView {
            since: 1_700_000_000_000,
            reason: "a fire".to_owned(),
            state: UnreturnedState::Done,
            problem: None,
            named: 2,
            all_named: true,
            brought_back: 1,
            on_both: 0,
            conflicts: 1,
            acknowledged: Some(asked.reason),
        })
    }

    async fn complete(&self, by: &By, name: &str, how: Complete) -> Result<MigrationView> {
        self.step(by, name, &format!("complete {} {:?}", how.force, how.reason), Phase::Completed)
    }

    async fn abort(&self, by: &By, name: &str) -> Result<MigrationView> {
        self.step(by, name, "abort", Phase::Aborted)
    }

    async fn drop_old(&self, by: &By, name: &str) -> Result<MigrationView> {
        self.step(by, name, "drop-old", Phase::Completed)
    }

    async fn set_throttle(&self, by: &By, name: &str, throttle: Throttle) -> Result<Throttle> {
        self.ask(by, name, format!("throttle {name} {:?}", throttle.documents_per_second))?;
        self.change(name, |view| view.throttle = throttle)?;
        Ok(throttle)
    }

    async fn progress(&self, name: &str) -> Result<Progress> {
        let view = self.get(name).await?;
        let mut verifying = self.verifying.lock().unwrap();
        *verifying = verifying.saturating_sub(1);
        Ok(Progress {
            phase: view.phase,
            paused: view.paused,
            reads_percent: view.reads_percent,
            writes_percent: view.writes_percent,
            epoch: view.epoch,
            copied_documents: 1_200,
            total_documents: 2_400,
            copied_bytes: 12_000_000,
            total_bytes: 24_000_000,
            documents_per_second: 100.0,
            bytes_per_second: 1e6,
            throttle: view.throttle,
            elapsed_seconds: Some(12.0),
            remaining_seconds: Some(75.0),
            remaining_note: (name == "behind").then(|| "following old will never catch up".to_owned()),
            lag_seconds: Some(0.2),
            lag: Lag { old_to_new: Some(0.2), new_to_old: None },
            converged: 7,
            repaired: 0,
            mirror_failures: 1,
            invariant_violations: 2,
            targeted_reads: 30,
            broadcast_reads: 4,
            conflicts: 0,
            bypass_writes: 2,
            bypass_writes_total: 5,
            bypass_writes_unjudged: 0,
            shadow: counts(),
            rehearsal: rehearsal_counts(),
            oplog_window_seconds: Some(90_000.0),
            can_cut_over: name == "ready",
            blocked_by: if name == "ready" {
                Vec::new()
            } else {
                vec!["the copy is not finished".to_owned()]
            },
            verification: Some(Verification {
                running: *verifying > 0,
                compared_documents: 10,
                total_documents: 10,
                mismatches: u64::from(name == "different"),
                ..Verification::default()
            }),
            spot_check: None,
            pins: PinCounts { to_old: 1, to_new: 2, not_in_force: 1 },
            switches: self.switches.lock().unwrap().clone(),
            ranges: ranges(),
            unreturned: (name == "returning").then(|| UnreturnedView {
                since: 1_700_000_000_000,
                reason: "a fire".to_owned(),
                state: UnreturnedState::BringingBack,
                problem: Some("process p: it is alive".to_owned()),
                named: 3,
                all_named: false,
                brought_back: 1,
                on_both: 1,
                conflicts: 1,
                acknowledged: None,
            }),
            placements: vec![Placement {
                namespace: "shop.orders".to_owned(),
                shard_key: None,
                route_key: Some("customer_id".to_owned()),
                primary_shard: Some("s1".to_owned()),
            }],
        })
    }

    async fn conflicts(&self, name: &str) -> Result<Vec<Conflict>> {
        self.get(name).await?;
        Ok(vec![Conflict {
            namespace: "shop.orders".to_owned(),
            key: "{\"$oid\":\"1\"}".to_owned(),
            error: "E11000 duplicate key".to_owned(),
            since: 0,
            tries: 3,
        }])
    }

    async fn mismatches(&self, name: &str) -> Result<Vec<Mismatch>> {
        self.get(name).await?;
        Ok(vec![Mismatch {
            namespace: "shop.orders".to_owned(),
            key: "1".to_owned(),
            kind: "content".to_owned(),
            paths: vec!["a.b".to_owned()],
            repaired: true,
            at: 0,
        }])
    }

    async fn start_plan(&self, by: &By, name: &str, plan: Plan) -> Result<RampView> {
        self.ask(by, name, format!("ramp start {name} {:?} {:?}", plan.reads, plan.writes))?;
        self.get(name).await?;
        let problems = plan.problems();
        if !problems.is_empty() {
            return Err(
                ControlError::new(Refusal::Invalid, "invalid-plan", problems.join("; ")).because(problems)
            );
        }
        *self.plan.lock().unwrap() = Some(plan);
        self.plan(name).await
    }

    async fn steer_plan(&self, by: &By, name: &str, how: Steer) -> Result<RampView> {
        self.ask(by, name, format!("ramp {how:?} {name}"))?;
        let status = if how == Steer::Pause { RampStatus::Paused } else { RampStatus::Running };
        Ok(RampView { status, ..self.plan(name).await? })
    }

    async fn stop_plan(&self, by: &By, name: &str) -> Result<RampView> {
        self.ask(by, name, format!("ramp stop {name}"))?;
        let was = self.plan(name).await?;
        *self.plan.lock().unwrap() = None;
        Ok(was)
    }

    async fn plan(&self, name: &str) -> Result<RampView> {
        self.get(name).await?;
        let plan = self.plan.lock().unwrap().clone();
        let none = || ControlError::new(Refusal::NotFound, "no-plan", format!("there is no plan for {name}"));
        let gate = Gate { name: "errors".into(), verdict: Verdict::TooFew, detail: "0 of 5 failed".into() };
        Ok(RampView {
            status: RampStatus::Running,
            plan: plan.ok_or_else(none)?,
            by: "me".into(),
            since: 1_700_000_000_000,
            reads_percent: Percent::whole(25),
            writes_percent: Percent::ZERO,
            dwelt_seconds: 12,
            setbacks: 0,
            gates: vec![gate],
            why: "too little measured: errors: 0 of 5 failed".into(),
            steps: vec![
                Stay {
                    reads: Percent::whole(10),
                    writes: Percent::ZERO,
                    reached_at: 1_700_000_000_000,
                    left_at: Some(1_700_000_300_000),
                },
                Stay {
                    reads: Percent::whole(25),
                    writes: Percent::ZERO,
                    reached_at: 1_700_000_300_000,
                    left_at: None,
                },
            ],
        })
    }

    async fn decisions(&self, name: &str, _: Page) -> Result<DecisionList> {
        self.get(name).await?;
        let decision = RampDecision {
            number: 7,
            at: 1_700_000_000_000,
            look: 61,
            first_broken_look: None,
            act: "up".into(),
            dry_run: false,
            from: place(10),
            to: Some(place(25)),
            reached_at: Some(1_699_999_700_000),
            left_at: Some(1_700_000_000_400),
            why: "all gates hold".into(),
            result: "ok".into(),
            gates: Vec::new(),
        };
        Ok(DecisionList { decisions: vec![decision], next: None })
    }

    async fn shapes(&self, name: &str, part: Part) -> Result<ShapeList> {
        self.get(name).await?;
        let side = |p99_ms| SideLatency {
            operations: 1200,
            recent_operations: 1000,
            p50_ms: Some(1.0),
            p95_ms: Some(2.0),
            p99_ms: Some(p99_ms),
            ..SideLatency::default()
        };
        let shape = ShapeView {
            shape: "00c0ffee00c0ffee".into(),
            namespace: "shop.orders".into(),
            text: "{find: orders, filter: {_id: ?}}".into(),
            old: side(3.0),
            new: side(40.0),
            baseline_samples: Some(5000),
            baseline_p99_ms: Some(2.5),
        };
        let (old, new) = (shape.old, shape.new);
        let shapes = if part.after == 0 { vec![shape] } else { Vec::new() };
        Ok(ShapeList { shape_count: 1, shapes_not_told_apart: 0, old, new, shapes, next: None })
    }

    async fn bypass_writes(&self, name: &str, page: Page) -> Result<BypassReport> {
        self.get(name).await?;
        let number = page.before.unwrap_or(6) - 1;
        let write = BypassWrite {
            number,
            at: 0,
            cluster_time: "1700000000.3".to_owned(),
            side: "old".to_owned(),
            namespace: "shop.orders".to_owned(),
            key: "1".to_owned(),
            kind: "update".to_owned(),
            undone: true,
            image: Some("{\"_id\":1}".to_owned()),
            image_truncated: false,
        };
        let next = page.limit.map(|_| number);
        Ok(BypassReport {
            bypass_writes: 2,
            bypass_writes_total: 5,
            writes: vec![write],
            next,
            ..Default::default()
        })
    }

    async fn acknowledge_bypass_writes(
        &self,
        by: &By,
        name: &str,
        asked: Acknowledge,
    ) -> Result<Acknowledged> {
        self.ask(by, name, format!("acknowledge-bypass {name} {:?} {}", asked.up_to, asked.reason))?;
        self.get(name).await?;
        Ok(Acknowledged {
            up_to: 5,
            writes: 2,
            latest: "shop.orders, _id 1".to_owned(),
            at: 0,
            who: by.who.0.clone(),
            reason: asked.reason,
        })
    }

    async fn set_shadow(&self, by: &By, name: &str, asked: SetShadow) -> Result<ShadowView> {
        self.ask(by, name, format!("shadow {name} {asked}"))?;
        self.get(name).await?;
        Ok(ShadowView { percent: asked.percent, show_values: asked.show_values })
    }

    async fn set_rehearsal(&self, by: &By, name: &str, asked: SetRehearsal) -> Result<RehearsalView> {
        self.ask(by, name, format!("{asked} {name}"))?;
        self.rehearsal(name).await
    }

    async fn rehearsal(&self, name: &str) -> Result<RehearsalView> {
        self.get(name).await?;
        let list = self.shapes(name, Part::default()).await?;
        Ok(RehearsalView {
            counts: rehearsal_counts(),
            began_at: Some(0),
            ends_at: Some(600_000),
            ended: Some("its time is over".to_owned()),
            old: list.old,
            new: list.new,
            shapes: list.shapes,
        })
    }

    async fn diffs(&self, name: &str, page: Part) -> Result<DiffReport> {
        self.get(name).await?;
        let field = ExampleField {
            path: "address.zip".to_owned(),
            kind: "type".to_owned(),
            old: Some("Int32".to_owned()),
            new: Some("String".to_owned()),
        };
        let example = Example {
            at: 0,
            kind: "changed".to_owned(),
            served_by: "old".to_owned(),
            key: Some("1".to_owned()),
            fields: vec![field],
        };
        let latency = LatencyView { samples: 10, p50_ms: Some(1.0), p95_ms: Some(2.0), p99_ms: Some(4.0) };
        let access = |scan: &str, documents_examined, shards: &str| {
            let (scan, shards) = (scan.to_owned(), shards.to_owned());
            Some(AccessView { at: 0, scan, documents_examined, shards })
        };
        let shape = ShapeDiff {
            shape: "00000000000000ab".to_owned(),
            namespace: "shop.orders".to_owned(),
            command: "find".to_owned(),
            query: "{\"a\": 1}".to_owned(),
            runs: 10,
            equal: 8,
            permuted: 0,
            transient: 1,
            different: 1,
            nondeterministic: 0,
            unsettled: 0,
            failed: 0,
            differences: [("type".to_owned(), 1)].into(),
            first_seen: Some(0),
            last_seen: Some(0),
            examples: vec![example],
            old: latency,
            new: latency,
            old_access: access("index", 1, "unsharded"),
            new_access: access("collection", 90, "all"),
        };
        let next = page.limit.map(|limit| page.after + u64::from(limit));
        let skipped = [("joins".to_owned(), 3)].into();
        Ok(DiffReport { counts: counts(), skipped, shapes: vec![shape], next })
    }

    async fn audit(&self, name: &str, page: Page) -> Result<EventList> {
        self.get(name).await?;
        let event = AuditEvent {
            at: 0,
            who: "ann".to_owned(),
            what: "start".to_owned(),
            from: "created".to_owned(),
            to: "copying".to_owned(),
            result: "ok".to_owned(),
            elapsed_ms: Some(57),
        };
        let next = page.limit.map(|limit| page.before.unwrap_or(0) + i64::from(limit));
        Ok(EventList { events: vec![event], next })
    }

    async fn not_ready(&self) -> Vec<String> {
        self.not_ready.lock().unwrap().clone()
    }
}

fn pins(to: Cluster) -> Vec<PinView> {
    let pin = |key: Option<&str>, range: Option<&str>, in_force| PinView {
        key: key.map(str::to_owned),
        range: range.map(str::to_owned),
        slot: 533,
        to,
        in_force,
        since: 1_700_000_000_000,
    };
    vec![pin(Some("\"acme\""), None, true), pin(Some("7"), None, false), pin(None, Some("eu"), true)]
}

fn on_old(range: RangeSpec, slot: u16) -> RangeView {
    RangeView {
        range,
        slot,
        reads: Cluster::Old,
        writes: Some(Cluster::Old),
        reads_percent: 0.0,
        writes_percent: Some(0.0),
        pinned: None,
        operations: RangeOperations::default(),
    }
}

fn ranges() -> Vec<RangeView> {
    let view = |name: &str, to: Option<serde_json::Value>, on, pinned| RangeView {
        range: RangeSpec { name: name.to_owned(), from: Some("eu-".into()), to },
        slot: 1022,
        reads: on,
        writes: Some(on),
        reads_percent: if on == Cluster::New { 100.0 } else { 0.0 },
        writes_percent: Some(if on == Cluster::New { 100.0 } else { 0.0 }),
        pinned,
        operations: RangeOperations {
            reads: CountByCluster { old: 12, new: 1_300 },
            writes: CountByCluster { old: 7, new: 40 },
        },
    };
    vec![
        view("eu", Some("eu.".into()), Cluster::New, Some(Cluster::New)),
        view("late", None, Cluster::Old, None),
    ]
}

fn place(reads: u8) -> Place {
    Place { reads: reads.into(), writes: Percent::ZERO }
}
