//! `migrate ramp …`: ramps by plan.

use std::fmt::Write;

use clap::{Args, Subcommand, ValueEnum};
use hyper::http::Method;
use serde_json::json;

use super::failure::Failure;
use super::human::{table, time};
use super::migrate::{Session, page_of, path};
use crate::migration::control::{
    Back, DecisionList, Gate, Place, Plan, RampStatus, RampView, Shadow, Stay, Verdict,
};
use crate::model::percent::Percent;

#[derive(Debug, Subcommand)]
pub(super) enum Ramp {
    /// Start a ramp by plan, in place of the one before
    Start(Box<Start>),
    /// How it is going, with what its gates say
    Status { name: String },
    /// Halt it: it moves nothing, neither up nor down
    Pause { name: String },
    /// Let it go on, also one that came down too often to go up by itself
    Resume { name: String },
    /// Forget the plan; reads and writes stay where they are
    Stop { name: String },
    /// What ramps decided, with the numbers that they went by
    Decisions {
        name: String,
        /// Only those with a lower number
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: Option<u16>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Start {
    name: String,
    /// Move this range instead of percentages: once all gates have held for the dwell, all of it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["reads", "writes"])]
    range: Option<String>,
    /// Percentages of reads, as 5,10,25,50,75,100; "none" leaves reads as they are
    #[arg(long, value_name = "STEPS", value_parser = steps)]
    reads: Option<Steps>,
    /// Percentages of writes, once the reads are where they are to be; left out, writes stay as they are
    #[arg(long, value_name = "STEPS", value_parser = steps)]
    writes: Option<Steps>,
    /// Seconds that all gates must have held at each step
    #[arg(long, value_name = "N")]
    dwell_seconds: Option<u32>,
    /// How far down a broken gate brings it
    #[arg(long, value_enum)]
    back: Option<HowFar>,
    /// Go up although nothing compares answers by shadow reads
    #[arg(long)]
    without_shadow: bool,
    /// Go up also outside the plan's windows and on days that it freezes; says why, for the audit
    #[arg(long, value_name = "REASON")]
    override_reason: Option<String>,
    /// Decide and record, and move nothing
    #[arg(long)]
    dry_run: bool,
    /// The plan in JSON, as the API takes it, for what has no option here; options go before it
    #[arg(long, value_name = "JSON", value_parser = plan)]
    plan: Option<Plan>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HowFar {
    Step,
    Zero,
}

#[derive(Debug, Clone)]
struct Steps(Vec<Percent>);

fn steps(text: &str) -> Result<Steps, String> {
    if text == "none" {
        return Ok(Steps(Vec::new()));
    }
    let steps = text.split(',').map(|step| step.trim().parse().ok()).collect::<Option<Vec<Percent>>>();
    steps.map(Steps).ok_or_else(|| "write percentages like 5,10,25,50,75,100, or none".to_owned())
}

fn plan(text: &str) -> Result<Plan, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

impl Start {
    fn plan(self) -> Plan {
        let mut plan = self.plan.unwrap_or_default();
        plan.range = self.range.or(plan.range);
        plan = plan.settled();
        if let Some(Steps(reads)) = self.reads {
            plan.reads = reads;
        }
        if let Some(Steps(writes)) = self.writes {
            plan.writes = writes;
        }
        plan.dwell_seconds = self.dwell_seconds.unwrap_or(plan.dwell_seconds);
        plan.back = self.back.map_or(plan.back, |back| match back {
            HowFar::Step => Back::Step,
            HowFar::Zero => Back::Zero,
        });
        if self.without_shadow {
            plan.shadow = Shadow::Off;
        }
        plan.override_reason = self.override_reason.or(plan.override_reason);
        plan.dry_run |= self.dry_run;
        plan
    }
}

pub(super) async fn run(session: &Session, action: Ramp) -> Result<(), Failure> {
    let steer = async |name: &str, step: &str| {
        session.show(Method::POST, &path(name, &format!("plan/{step}")), None, view).await.map(drop)
    };
    match action {
        Ramp::Start(start) => {
            let path = path(&start.name, "plan");
            session.show(Method::PUT, &path, Some(json!(start.plan())), view).await.map(drop)
        }
        Ramp::Status { name } => session.look(&path(&name, "plan"), view).await,
        Ramp::Pause { name } => steer(&name, "pause").await,
        Ramp::Resume { name } => steer(&name, "resume").await,
        Ramp::Stop { name } => {
            let was = |was: &RampView| format!("stopped; it was: {}", view(was));
            session.show(Method::DELETE, &path(&name, "plan"), None, was).await.map(drop)
        }
        Ramp::Decisions { name, before, limit } => {
            session.look(&page_of(&name, "plan/decisions", before, limit), decisions).await
        }
    }
}

fn view(view: &RampView) -> String {
    let status = match view.status {
        RampStatus::Running => "running",
        RampStatus::Paused => "paused",
        RampStatus::Stopped => "came down too often to go up by itself; resume it once you know why",
        RampStatus::Done => "done",
    };
    let dry = if view.plan.dry_run { " (dry run)" } else { "" };
    let steps = match &view.plan.range {
        Some(range) => format!("moves range {range}"),
        None => {
            let steps = view.plan.steps();
            format!("steps {}", steps.iter().map(place).collect::<Vec<_>>().join(" "))
        }
    };
    let mut out = format!(
        "{status}{dry}: reads {} % and writes {} % on new; {steps}; held {} of {} s; came down {} times\n",
        view.reads_percent, view.writes_percent, view.dwelt_seconds, view.plan.dwell_seconds, view.setbacks
    );
    if !view.why.is_empty() {
        let _ = writeln!(out, "{}", view.why);
    }
    if !view.gates.is_empty() {
        out.push_str(&table(["GATE", "SAYS", "NUMBERS"], view.gates.iter().map(row).collect()));
    }
    if !view.steps.is_empty() {
        out.push_str(&table(["READS/WRITES", "REACHED", "LEFT"], view.steps.iter().map(stay).collect()));
    }
    out.trim_end().to_owned()
}

fn row(gate: &Gate) -> [String; 3] {
    let verdict = match gate.verdict {
        Verdict::Passed => "passed",
        Verdict::TooFew => "too few",
        Verdict::Unknown => "unknown",
        Verdict::Broken => "broken",
    };
    [gate.name.clone(), verdict.to_owned(), gate.detail.clone()]
}

fn stay(stay: &Stay) -> [String; 3] {
    let at = Place { reads: stay.reads, writes: stay.writes };
    [place(&at), time(stay.reached_at), stay.left_at.map_or_else(|| "it is there".to_owned(), time)]
}

fn place(place: &Place) -> String {
    format!("{}/{}", place.reads, place.writes)
}

fn decisions(list: &DecisionList) -> String {
    if list.decisions.is_empty() {
        return "No decisions.".to_owned();
    }
    let rows = list.decisions.iter().map(|one| {
        let to = one.to.as_ref().map_or(String::new(), |to| format!(" -> {}", place(to)));
        let act = if one.dry_run { format!("would {}", one.act) } else { one.act.clone() };
        let at = format!("{}{to}", place(&one.from));
        let left = one.left_at.map_or_else(String::new, time);
        let reached = one.reached_at.map_or_else(String::new, time);
        [one.number.to_string(), time(one.at), act, at, reached, left, one.result.clone(), one.why.clone()]
    });
    let titles = ["NUMBER", "TIME", "DECIDED", "READS/WRITES", "REACHED", "LEFT", "RESULT", "WHY"];
    let mut out = table(titles, rows.collect());
    if let Some(next) = list.next {
        let _ = write!(out, "\nMore: --before {next}");
    }
    out
}
