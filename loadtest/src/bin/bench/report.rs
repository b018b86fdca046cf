//! Medians over rounds, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::client::Operation;
use crate::idle::PerClient;
use crate::round::Outcome;

/// CPU per operation that the proxy may use, in multiples of HAProxy's.
const CPU_LIMIT: f64 = 1.5;
/// Memory that an idle client may cost.
const IDLE_LIMIT_KB: f64 = 12.0;

/// What lies between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Path {
    Direct,
    Haproxy,
    Reshard,
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "HAProxy",
            Self::Reshard => "reshard",
        }
    }
}

/// One operation over so many connections on one path.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) operation: Operation,
    pub(crate) connections: usize,
    pub(crate) path: Path,
    /// Microseconds of CPU of the process in the middle per operation.
    cpu: Option<f64>,
    /// The same of the server.
    server_cpu: f64,
    median: f64,
    p99: f64,
    throughput: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts of operations")]
fn per_operation(micros: f64, outcome: &Outcome) -> f64 {
    micros / outcome.operations.max(1) as f64
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(values[values.len() / 2 - 1], upper)) }
}

impl Cell {
    pub(crate) fn new(operation: Operation, connections: usize, path: Path, rounds: &[Outcome]) -> Self {
        let over = |of: &dyn Fn(&Outcome) -> f64| median(rounds.iter().map(of)).unwrap_or_default();
        let middle = |outcome: &Outcome| Some(per_operation(outcome.middle?.as_secs_f64() * 1e6, outcome));
        Self {
            operation,
            connections,
            path,
            cpu: median(rounds.iter().filter_map(middle)),
            server_cpu: over(&|outcome| per_operation(outcome.server.as_secs_f64() * 1e6, outcome)),
            median: over(&|outcome| outcome.median),
            p99: over(&|outcome| outcome.p99),
            throughput: over(&|outcome| 1.0 / per_operation(outcome.seconds, outcome).max(f64::MIN_POSITIVE)),
        }
    }
}

/// The proxy against something else, under the same load.
#[derive(Clone, Debug, Serialize)]
struct Ratio {
    operation: Operation,
    connections: usize,
    against: Path,
    cpu: Option<f64>,
    median: f64,
    p99: f64,
    throughput: f64,
}

/// Memory for each idle client, in KB of 1,024 bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Idle {
    path: Path,
    clients: u16,
    after_hello_kb: f64,
    after_find_kb: f64,
}

impl Idle {
    pub(crate) fn new(path: Path, clients: u16, each: PerClient) -> Self {
        let (after_hello_kb, after_find_kb) = (each.greeted / 1024.0, each.used / 1024.0);
        Self { path, clients, after_hello_kb, after_find_kb }
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    cells: Vec<Cell>,
    ratios: Vec<Ratio>,
    idle: Vec<Idle>,
    missed: Vec<String>,
}

impl Report {
    pub(crate) fn new(cells: Vec<Cell>, idle: Vec<Idle>) -> Self {
        let ratios: Vec<_> = cells.iter().filter_map(|cell| ratio(cell, &cells)).collect();
        let missed = missed(&ratios, &idle);
        Self { cells, ratios, idle, missed }
    }
}

/// The proxy under the load of `cell`, which is of another path.
fn ratio(cell: &Cell, cells: &[Cell]) -> Option<Ratio> {
    let Cell { operation, connections, path, .. } = *cell;
    let alike = |other: &&Cell| {
        other.operation == operation && other.connections == connections && other.path == Path::Reshard
    };
    let proxy = cells.iter().find(alike).filter(|_| path != Path::Reshard)?;
    Some(Ratio {
        operation,
        connections,
        against: path,
        cpu: proxy.cpu.zip(cell.cpu).map(|(proxy, other)| proxy / other),
        median: proxy.median / cell.median,
        p99: proxy.p99 / cell.p99,
        throughput: proxy.throughput / cell.throughput,
    })
}

fn missed(ratios: &[Ratio], idle: &[Idle]) -> Vec<String> {
    let mut missed = Vec::new();
    for Ratio { operation, connections, against, cpu, .. } in ratios {
        if let Some(cpu) = cpu.filter(|cpu| *cpu > CPU_LIMIT) {
            missed.push(format!(
                "{} over {connections} connections: {cpu:.2} x the CPU of {}, not {CPU_LIMIT}",
                operation.name(),
                against.name()
            ));
        }
    }
    for idle in idle.iter().filter(|idle| idle.path == Path::Reshard) {
        let most = idle.after_hello_kb.max(idle.after_find_kb);
        if most > IDLE_LIMIT_KB {
            missed.push(format!("an idle client costs {most:.1} KB, not {IDLE_LIMIT_KB}"));
        }
    }
    missed
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "| operation | connections | path | CPU us/op | server CPU us/op | median us | p99 us | ops/s |"
        )?;
        writeln!(out, "|---|---:|---|---:|---:|---:|---:|---:|")?;
        for cell in &self.cells {
            let cpu = cell.cpu.map_or("-".into(), |cpu| format!("{cpu:.1}"));
            writeln!(
                out,
                "| {} | {} | {} | {cpu} | {:.1} | {:.0} | {:.0} | {:.0} |",
                cell.operation.name(),
                cell.connections,
                cell.path.name(),
                cell.server_cpu,
                cell.median,
                cell.p99,
                cell.throughput
            )?;
        }
        writeln!(out, "\n| reshard / other | connections | against | CPU | median | p99 | throughput |")?;
        writeln!(out, "|---|---:|---|---:|---:|---:|---:|")?;
        for ratio in &self.ratios {
            let cpu = ratio.cpu.map_or("-".into(), |cpu| format!("**{cpu:.2}**"));
            writeln!(
                out,
                "| {} | {} | {} | {cpu} | {:.2} | {:.2} | {:.2} |",
                ratio.operation.name(),
                ratio.connections,
                ratio.against.name(),
                ratio.median,
                ratio.p99,
                ratio.throughput
            )?;
        }
        if !self.idle.is_empty() {
            writeln!(out, "\n| idle clients | path | KB each after hello | KB each after a find |")?;
            writeln!(out, "|---:|---|---:|---:|")?;
        }
        for Idle { path, clients, after_hello_kb, after_find_kb } in &self.idle {
            writeln!(out, "| {clients} | {} | {after_hello_kb:.1} | {after_find_kb:.1} |", path.name())?;
        }
        writeln!(
            out,
            "\nTargets: at most {CPU_LIMIT} x HAProxy's CPU, at most {IDLE_LIMIT_KB} KB per idle client."
        )?;
        for missed in &self.missed {
            writeln!(out, "MISSED: {missed}")?;
        }
        if self.missed.is_empty() {
            writeln!(out, "All that was measured meets them.")?;
        }
        Ok(())
    }
}
