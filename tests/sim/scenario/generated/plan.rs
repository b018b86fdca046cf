//! What a schedule is made of, drawn from its seed: every act with its time and a seed of its own, so that leaving one
//! out changes nothing about the others.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::network::Weather;
use crate::rng::Rng;
use crate::scenario::client::{COUNTED, Deed, REGISTERS};
use crate::scenario::faults::Fault;
use crate::scenario::operator::Step;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Act {
    /// When, after the beginning of its actor; or as soon as that is done with what it did before.
    pub(super) at: Duration,
    /// The seed of its small choices.
    pub(super) seed: u64,
    /// What.
    pub(super) what: What,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A client does something to a document.
    Client(u8, Deed, i32),
    /// Something goes wrong.
    Fault(Fault),
    /// The operator moves writes, when what was asked before is done.
    Move(u8),
}

/// A schedule.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// The seed of the world.
    pub(super) seed: u64,
    /// How the network is.
    pub(super) weather: Weather,
    /// Clients begin before the migration does, and the weather is calm until it has started: what is late by then
    /// nobody knows of (a limit that the docs tell of).
    pub(super) early: bool,
    /// A collection comes into being while it runs, and a pattern names it.
    pub(super) late: bool,
    /// Everything, by time.
    pub(super) acts: Vec<Act>,
}

/// How many clients there are at most.
const CLIENTS: u64 = 4;
/// Faults of a schedule, at least.
const FAULTS: u64 = 3;

impl Plan {
    /// The schedule of `seed`.
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let millis = |rng: &mut Rng, choices: &[u64]| Duration::from_millis(*rng.pick(choices));
        // Where somebody reads, nobody is deposed or stands still: what a deposed primary answers is the same
        // without a proxy, and a process that was taken for dead goes on reading by its own table.
        let reads = rng.chance(400);
        let span = millis(&mut rng, &[800, 1500, 3000]);
        let early = rng.chance(300);
        let late = rng.chance(350);
        let weather = Weather {
            latency: millis(&mut rng, &[1, 2, 5, 12]),
            late: *rng.pick(&[0, 4, 10]),
            late_by: millis(&mut rng, &[300, 3_000, 20_000]),
            lose_request: *rng.pick(&[0, 3, 15]),
            lose_reply: *rng.pick(&[0, 3, 15]),
            refuse: *rng.pick(&[0, 5]),
            lose_orphan: *rng.pick(&[0, 300]),
            execution: millis(&mut rng, &[0, 1, 5]),
        };
        let mut acts = clients(&mut rng, span, reads, late);
        acts.extend(faults(&mut rng, span, reads));
        acts.extend(moves(&mut rng));
        acts.sort_by_key(|act| act.at);
        Self { seed, weather, early, late, acts }
    }

    /// The same with only those of its acts.
    pub(super) fn only(&self, acts: &[usize]) -> Self {
        Self {
            acts: acts.iter().filter_map(|index| self.acts.get(*index).copied()).collect(),
            ..self.clone()
        }
    }

    /// What the clients do, each in its order.
    pub(super) fn clients(&self) -> Vec<(u8, Vec<Act>)> {
        let of = |client: u8| {
            let its = |act: &&Act| matches!(act.what, What::Client(other, ..) if other == client);
            (client, self.acts.iter().filter(its).copied().collect())
        };
        (0..CLIENTS as u8).map(of).collect()
    }

    /// What goes wrong, in order.
    pub(super) fn faults(&self) -> Vec<(Act, Fault)> {
        let fault = |act: &Act| match act.what {
            What::Fault(fault) => Some((*act, fault)),
            _ => None,
        };
        self.acts.iter().filter_map(fault).collect()
    }

    /// What the operator asks for, in order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let moves = self.acts.iter().filter_map(|act| match act.what {
            What::Move(percent) => Some(Step::Writes(percent)),
            _ => None,
        });
        let create = if self.late { Step::CreateAll } else { Step::Create };
        [create, Step::Start, Step::Reads(100)].into_iter().chain(moves).collect()
    }

    /// Whether somebody reads.
    pub(super) fn reads(&self) -> bool {
        self.acts.iter().any(|act| matches!(act.what, What::Client(_, Deed::Look, _)))
    }
}

fn clients(rng: &mut Rng, span: Duration, reads: bool, late: bool) -> Vec<Act> {
    let kinds = if reads { 16 } else { 12 };
    // Few documents are written often: what goes wrong with one shows.
    let (registers, counters) = (2 + rng.below(5), 2 + rng.below(3));
    let count = 24 + rng.below(25);
    let act = |rng: &mut Rng| {
        let deed = match rng.below(kinds) {
            0..=1 => Deed::Put,
            2 => Deed::Insert,
            3..=4 => Deed::Delete,
            5..=6 => Deed::Step,
            7..=8 => Deed::FindAndStep,
            9..=10 => Deed::Steps,
            11 => Deed::Many,
            _ => Deed::Look,
        };
        let deed = match (deed, late && rng.chance(400)) {
            (Deed::Put, true) => Deed::PutLate,
            (Deed::Delete, true) => Deed::DeleteLate,
            (deed, _) => deed,
        };
        let which = match deed {
            Deed::Put | Deed::Insert | Deed::Delete | Deed::Look => {
                rng.below(registers.min(REGISTERS as u64))
            }
            _ => rng.below(counters.min(COUNTED as u64)),
        };
        let what = What::Client(rng.below(CLIENTS) as u8, deed, which as i32);
        Act { at: rng.between(Duration::ZERO, span), seed: rng.next(), what }
    };
    (0..count).map(|_| act(rng)).collect()
}

fn faults(rng: &mut Rng, span: Duration, reads: bool) -> Vec<Act> {
    let kinds: &[Fault] = if reads {
        &[Fault::Crash, Fault::Cut, Fault::Hold, Fault::Hold, Fault::Deafen]
    } else {
        &[
            Fault::Crash,
            Fault::Pause,
            Fault::Failover,
            Fault::Failover,
            Fault::Cut,
            Fault::Hold,
            Fault::Hold,
            Fault::Lose,
            Fault::Deafen,
        ]
    };
    let count = FAULTS + rng.below(3);
    let act = |rng: &mut Rng| {
        let what = What::Fault(*rng.pick(kinds));
        Act { at: rng.between(Duration::ZERO, span), seed: rng.next(), what }
    };
    (0..count).map(|_| act(rng)).collect()
}

fn moves(rng: &mut Rng) -> Vec<Act> {
    let mut at = 0;
    let mut acts = Vec::new();
    for turn in 0..1 + rng.below(3) {
        let others: Vec<u8> = [0, 25, 60, 100].into_iter().filter(|percent| *percent != at).collect();
        at = *rng.pick(&others);
        acts.push(Act { at: Duration::from_millis(turn), seed: rng.next(), what: What::Move(at) });
    }
    acts
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  clients begin {} the migration; {:?}",
            if self.early { "before" } else { "after" },
            self.weather
        )?;
        for act in &self.acts {
            let at = act.at.as_millis();
            match act.what {
                What::Client(client, deed, which) => {
                    writeln!(f, "  {at:>5} ms  client {client}: {deed:?} of {which}")?;
                }
                What::Fault(fault) => writeln!(f, "  {at:>5} ms  {fault:?}")?,
                What::Move(percent) => writeln!(f, "  then      writes to {percent} %")?,
            }
        }
        Ok(())
    }
}
