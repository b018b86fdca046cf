//! What a process has used, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Units of CPU time in /proc/PID/stat: 100 a second on every platform of MongoDB.
const TICK: Duration = Duration::from_millis(10);

/// CPU time of all threads of a process, user and system. Threads must not have ended in between.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    match threads(pid) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => ticks(pid),
    }
}

/// To the nanosecond, where the kernel keeps such statistics.
fn threads(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().context("an empty schedstat")?;
        nanos += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// The same in hundredths of a second; threads that have ended count too.
pub(crate) fn ticks(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, the name, may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("a malformed stat")?;
    let field =
        |index: usize| rest.split_whitespace().nth(index - 3).and_then(|text| text.parse::<u32>().ok());
    let (user, system) = field(14).zip(field(15)).context("a malformed stat")?;
    Ok(TICK * (user + system))
}

/// Memory that a process holds, in bytes.
pub(crate) fn rss(pid: u32) -> Result<u64> {
    let (file, name) = match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(text) => (text, "Rss:"),
        Err(_) => (fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:"),
    };
    let line = file.lines().find_map(|line| line.strip_prefix(name)).context("no resident size")?;
    let kilobytes: u64 = line.split_whitespace().next().context("no resident size")?.parse()?;
    Ok(kilobytes * 1024)
}
