//! Free ports that stay reserved while a node is down.
//!
//! A node keeps its port over a stop and start, so nobody else may take it meanwhile. Two things see to
//! that: a lock on a file named after the port, which other test beds respect, and a port below the
//! range from which the system gives ports to outgoing connections, which respect no file.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use crate::cache;

/// Ports handed out in this process: kept apart from the lock files, so that the answer does not hang
/// on how the file system treats two locks of one process.
static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

const LOWEST: u16 = 20_000;
const DEFAULT_EPHEMERAL: u16 = 32_768;

/// A port on 127.0.0.1 that no other test bed uses until this is dropped.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    pub(crate) fn reserve() -> Result<Self> {
        let folder = cache::folder()?.join("ports");
        fs::create_dir_all(&folder).context("creating the folder of port locks")?;
        let ephemeral = first_ephemeral_port();
        if ephemeral > LOWEST + 500 {
            // Each process begins somewhere else, so that parallel ones seldom try the same port.
            let count = ephemeral - LOWEST;
            let start = RandomState::new().hash_one(std::process::id()) % u64::from(count);
            for step in 0..u64::from(count) {
                let number = LOWEST + u16::try_from((start + step) % u64::from(count))?;
                if let Some(port) = Self::try_reserve(&folder, number)? {
                    return Ok(port);
                }
            }
        }
        for _ in 0..1000 {
            let number = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if let Some(port) = Self::try_reserve(&folder, number)? {
                return Ok(port);
            }
        }
        bail!("no free port on 127.0.0.1")
    }

    fn try_reserve(folder: &std::path::Path, number: u16) -> Result<Option<Self>> {
        if !TAKEN.lock().insert(number) {
            return Ok(None);
        }
        let path: PathBuf = folder.join(number.to_string());
        let lock = cache::lock_file(&path)?;
        let free = lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
        if !free {
            TAKEN.lock().remove(&number);
            return Ok(None);
        }
        Ok(Some(Self { number, _lock: lock }))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        TAKEN.lock().remove(&self.number);
    }
}

/// The first port the system may give to an outgoing connection.
fn first_ephemeral_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(DEFAULT_EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_while_they_are_held() {
        let ports: Vec<Port> = (0..20).map(|_| Port::reserve().unwrap()).collect();
        let numbers: HashSet<u16> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
    }

    #[test]
    fn a_port_in_use_is_passed_over() {
        let folder = cache::folder().unwrap().join("ports");
        let number = Port::reserve().unwrap().number();
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
        assert!(Port::try_reserve(&folder, number).unwrap().is_none());
    }
}
