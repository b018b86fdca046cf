//! Latency per kind of operation and per phase, and the longest gaps.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::ops::OpKind;
use crate::stats::{Gap, Latency, PhaseStats};

const HIGHEST_MICROS: u64 = 3_600_000_000;

/// How one operation ended, for the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As it should.
    Good,
    /// With an error that the application saw.
    Error,
}

/// One finished operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) worker: usize,
    pub(crate) kind: OpKind,
    /// When it should have started.
    pub(crate) intended: Instant,
    pub(crate) end: Instant,
    pub(crate) ending: Ending,
    /// Writes acknowledged by it.
    pub(crate) writes: u64,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_MICROS, 3).unwrap_or_else(|_| {
        let mut growing =
            Histogram::new_with_max(u64::MAX / 2, 1).unwrap_or_else(|_| unreachable!("valid bounds"));
        growing.auto(true);
        growing
    })
}

#[derive(Debug)]
struct Phase {
    name: String,
    running: Option<Instant>,
    spent: Duration,
    overall: Histogram<u64>,
    kinds: HashMap<OpKind, Histogram<u64>>,
    errors: u64,
    writes: u64,
    gap: Option<Gap>,
    outage: Option<Gap>,
}

impl Phase {
    fn new(name: &str, now: Instant) -> Self {
        Self {
            name: name.into(),
            running: Some(now),
            spent: Duration::ZERO,
            overall: histogram(),
            kinds: HashMap::new(),
            errors: 0,
            writes: 0,
            gap: None,
            outage: None,
        }
    }

    fn seconds(&self, now: Instant) -> f64 {
        (self.spent + self.running.map_or(Duration::ZERO, |since| now - since)).as_secs_f64()
    }

    fn stats(&self, now: Instant) -> PhaseStats {
        let seconds = self.seconds(now);
        let mut by_kind: Vec<_> = self.kinds.iter().collect();
        by_kind.sort_by_key(|(kind, _)| **kind);
        PhaseStats::new(
            &self.name,
            seconds,
            Latency::of(&self.overall),
            by_kind.into_iter().map(|(kind, h)| (kind.name().to_owned(), Latency::of(h))).collect(),
            (self.overall.len(), self.errors, self.writes),
            (self.gap.clone(), self.outage.clone()),
        )
    }
}

/// Everything measured in one load.
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    phases: Vec<Phase>,
    current: usize,
    /// When each phase began, for operations that span several.
    begun: Vec<(Instant, usize)>,
    /// Per worker: intended start of its first write that was not acknowledged
    /// since the last one that was.
    outages: Vec<Option<Instant>>,
}

impl Recorder {
    pub(crate) fn new(first_phase: &str, workers: usize, start: Instant) -> Self {
        Self {
            start,
            phases: vec![Phase::new(first_phase, start)],
            current: 0,
            begun: vec![(start, 0)],
            outages: vec![None; workers],
        }
    }

    /// Ends the phase and starts another, or goes on with one of that name.
    pub(crate) fn set_phase(&mut self, name: &str, now: Instant) {
        self.pause(now);
        let known = self.phases.iter().position(|phase| phase.name == name);
        self.current = known.unwrap_or(self.phases.len());
        if known.is_none() {
            self.phases.push(Phase::new(name, now));
        }
        self.phases[self.current].running = Some(now);
        self.begun.push((now, self.current));
    }

    /// Stops the clock of the running phase.
    pub(crate) fn pause(&mut self, now: Instant) {
        let phase = &mut self.phases[self.current];
        phase.spent += phase.running.take().map_or(Duration::ZERO, |since| now - since);
    }

    pub(crate) fn record(&mut self, sample: Sample) {
        let took = sample.end.saturating_duration_since(sample.intended);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).clamp(1, HIGHEST_MICROS);
        let phase = &mut self.phases[self.current];
        phase.writes += sample.writes;
        match sample.ending {
            Ending::Good => {
                phase.overall.saturating_record(micros);
                phase.kinds.entry(sample.kind).or_insert_with(histogram).saturating_record(micros);
            }
            Ending::Error => phase.errors += 1,
        }
        if sample.kind.is_write() {
            self.record_gap(sample);
        }
    }

    fn record_gap(&mut self, sample: Sample) {
        let open = self.outages.get(sample.worker).copied().flatten();
        if sample.ending == Ending::Error || sample.writes == 0 {
            if let (Some(slot @ None), Ending::Error) = (self.outages.get_mut(sample.worker), sample.ending) {
                *slot = Some(sample.intended);
            }
            return;
        }
        let gap = self.gap(sample, sample.intended);
        let outage = self.gap(sample, open.unwrap_or(sample.intended));
        if let Some(slot) = self.outages.get_mut(sample.worker) {
            *slot = None;
        }
        for phase in self.overlapped(sample.intended) {
            keep_longest(&mut self.phases[phase].gap, &gap);
        }
        for phase in self.overlapped(open.unwrap_or(sample.intended)) {
            keep_longest(&mut self.phases[phase].outage, &outage);
        }
    }

    fn gap(&self, sample: Sample, since: Instant) -> Gap {
        Gap {
            milliseconds: sample.end.saturating_duration_since(since).as_secs_f64() * 1000.0,
            worker: sample.worker,
            operation: sample.kind.name().to_owned(),
            at_seconds: since.saturating_duration_since(self.start).as_secs_f64(),
        }
    }

    /// The phases that have run since an instant.
    fn overlapped(&self, since: Instant) -> Vec<usize> {
        let first = self.begun.iter().rposition(|(at, _)| *at <= since).unwrap_or(0);
        let mut phases: Vec<_> = self.begun[first..].iter().map(|(_, phase)| *phase).collect();
        phases.sort_unstable();
        phases.dedup();
        phases
    }

    pub(crate) fn current_name(&self) -> String {
        self.phases[self.current].name.clone()
    }

    pub(crate) fn phases(&self, now: Instant) -> Vec<PhaseStats> {
        self.phases.iter().map(|phase| phase.stats(now)).collect()
    }

    /// Operations of all phases that ended well, and the latency of the running phase.
    pub(crate) fn glance(&self) -> (u64, Latency) {
        let operations = self.phases.iter().map(|phase| phase.overall.len()).sum();
        (operations, Latency::of(&self.phases[self.current].overall))
    }

    /// All phases in one.
    pub(crate) fn total(&self, now: Instant) -> PhaseStats {
        let mut sum = Phase::new("total", self.start);
        sum.running = None;
        for phase in &self.phases {
            sum.spent += Duration::from_secs_f64(phase.seconds(now));
            let _ = sum.overall.add(&phase.overall);
            for (kind, other) in &phase.kinds {
                let _ = sum.kinds.entry(*kind).or_insert_with(histogram).add(other);
            }
            sum.errors += phase.errors;
            sum.writes += phase.writes;
            for (slot, gap) in [(&mut sum.gap, &phase.gap), (&mut sum.outage, &phase.outage)] {
                if let Some(gap) = gap {
                    keep_longest(slot, gap);
                }
            }
        }
        sum.stats(now)
    }
}

fn keep_longest(slot: &mut Option<Gap>, gap: &Gap) {
    if slot.as_ref().is_none_or(|kept| kept.milliseconds < gap.milliseconds) {
        *slot = Some(gap.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(intended: Instant, end: Instant, ending: Ending) -> Sample {
        Sample {
            worker: 0,
            kind: OpKind::Inc,
            intended,
            end,
            ending,
            writes: u64::from(ending == Ending::Good),
        }
    }

    #[test]
    fn a_gap_counts_in_each_phase_it_overlaps() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut recorder = Recorder::new("before", 1, start);
        recorder.record(sample(at(0), at(5), Ending::Good));
        recorder.set_phase("during", at(100));
        recorder.record(sample(at(90), at(190), Ending::Good));
        recorder.set_phase("after", at(200));
        recorder.record(sample(at(200), at(203), Ending::Good));
        let gaps: Vec<_> =
            recorder.phases(at(300)).into_iter().map(|p| p.longest_write.unwrap().milliseconds).collect();
        assert_eq!(gaps, [100.0, 100.0, 3.0]);
        let total = recorder.total(at(300));
        assert_eq!((total.operations, total.writes_acknowledged), (3, 3));
        assert!((total.seconds - 0.3).abs() < 1e-6);
    }

    #[test]
    fn an_outage_spans_errors_until_the_next_acknowledgement() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut recorder = Recorder::new("load", 1, start);
        recorder.record(sample(at(10), at(20), Ending::Error));
        recorder.record(sample(at(30), at(40), Ending::Error));
        recorder.record(sample(at(50), at(60), Ending::Good));
        let total = recorder.total(at(100));
        assert_eq!(total.longest_write.unwrap().milliseconds, 10.0);
        assert_eq!(total.longest_outage.unwrap().milliseconds, 50.0);
        assert_eq!(total.errors, 2);
    }
}
