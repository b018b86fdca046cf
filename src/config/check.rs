//! What must hold between keys, wherever the values that it takes are good by themselves.

use std::net::SocketAddr;

use super::StateHome;
use super::reader::Reader;
use super::sections::Draft;
use crate::listener::face::{Face, Secondary};
use crate::listener::tls::TlsFiles;

/// Notes every contradiction.
pub(super) fn together(draft: &Draft, reader: &mut Reader<'_>) {
    addresses(draft, reader);
    clusters(draft, reader);
    times(draft, reader);
}

/// Every address that applications connect to: its section, itself, and whether it may be reached.
fn entrances(draft: &Draft) -> Vec<(String, SocketAddr, bool)> {
    // Whoever logs in or shows a certificate is known; encryption by itself keeps nobody out.
    let is_safe = |allowed: bool, tls: &Option<TlsFiles>, login: bool| {
        allowed || tls.as_ref().is_some_and(|tls| login || tls.ca_file.is_some())
    };
    let first = draft.listen.iter();
    let first = first
        .map(|it| ("listen".to_owned(), it.address, is_safe(it.allow_insecure, &it.tls, it.login), &it.face));
    let more = draft.listeners.iter().map(|it| {
        let is_safe = is_safe(it.allow_insecure, &it.tls, it.login);
        (format!("listeners.{}", it.name), it.address, is_safe, &it.face)
    });
    let mut all = Vec::new();
    for (section, address, is_safe, face) in first.chain(more) {
        let inner = |(number, other): (usize, &Secondary)| {
            (format!("{section}.secondaries[{number}]"), other.address, is_safe)
        };
        let secondaries: Vec<_> = face.secondaries().enumerate().map(inner).collect();
        all.push((section, address, is_safe));
        all.extend(secondaries);
    }
    all
}

fn addresses(draft: &Draft, reader: &mut Reader<'_>) {
    let admin = draft.admin.as_ref().map(|admin| admin.address);
    if let Some(admin) = admin.filter(|admin| !admin.ip().is_loopback()) {
        let message = format!(
            "{admin} can be reached from other machines. Until authentication exists the admin port refuses \
             to listen beyond loopback; write \"127.0.0.1:{}\"",
            admin.port()
        );
        reader.problem_at("admin", "address", message);
    }
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    for (section, address, is_safe) in entrances(draft) {
        let listener = section.split(".secondaries").next().unwrap_or(&section).to_owned();
        let is_sure = reader.is_sure(&format!("{listener}.allow_insecure"));
        if !address.ip().is_loopback() && !is_safe && is_sure {
            let message = format!(
                "{address} can be reached by everybody on other machines; write \"127.0.0.1:{}\", or below \
                 [{listener}] add tls and login = true, tls with a ca_file, or allow_insecure = true if the network is trusted",
                address.port()
            );
            reader.problem_at(&section, "address", message);
        }
        must_be_free(reader, &taken, &section, address);
        taken.push((section, address));
    }
    if let Some(admin) = admin {
        must_be_free(reader, &taken, "admin", admin);
    }
    hosts(draft, reader);
}

fn must_be_free(reader: &mut Reader<'_>, taken: &[(String, SocketAddr)], section: &str, address: SocketAddr) {
    if let Some((other, _)) = taken.iter().find(|(_, taken)| clash(*taken, address)) {
        let message = format!("port {} is already that of {other}.address; choose another", address.port());
        reader.problem_at(section, "address", message);
    }
}

/// Members of a replica set are told apart by their names.
fn hosts(draft: &Draft, reader: &mut Reader<'_>) {
    let first = draft.listen.iter().map(|it| ("listen".to_owned(), &it.face));
    let more = draft.listeners.iter().map(|it| (format!("listeners.{}", it.name), &it.face));
    for (section, face) in first.chain(more) {
        let Face::ReplicaSet(set) = face else { continue };
        let mut known: Vec<&String> = set.host.iter().collect();
        for (number, host) in set.secondaries.iter().enumerate() {
            let Some(host) = &host.host else { continue };
            if known.contains(&host) {
                let message = format!("{host} is the host of another member already; each needs its own");
                reader.problem_at(&format!("{section}.secondaries[{number}]"), "host", message);
            }
            known.push(host);
        }
    }
}

fn clash(listen: SocketAddr, admin: SocketAddr) -> bool {
    let same_ip = listen.ip() == admin.ip() || listen.ip().is_unspecified() || admin.ip().is_unspecified();
    // Port 0 asks the system for a free one.
    same_ip && listen.port() == admin.port() && listen.port() != 0
}

fn clusters(draft: &Draft, reader: &mut Reader<'_>) {
    for (section, address, _) in entrances(draft) {
        let itself = address.to_string();
        for (name, side) in [("old", &draft.old), ("new", &draft.new)] {
            let Some(side) = side else { continue };
            if side.uri.hosts().iter().any(|host| host.replace("localhost", "127.0.0.1") == itself) {
                let message = format!("{itself} is {section}.address: reshard would connect to itself");
                reader.problem_at(name, "uri", message);
            }
        }
    }
    if let (Some(old), Some(new)) = (&draft.old, &draft.new)
        && let Some(shared) = new.uri.hosts().iter().find(|host| old.uri.hosts().contains(host))
    {
        let message = format!(
            "{shared} is a server of old too; new must be another cluster (leave [new] out for a plain proxy)"
        );
        reader.problem_at("new", "uri", message);
    }
    if draft.migration.state == StateHome::New && !draft.new_is_there && reader.is_sure("new") {
        let message = "\"new\" needs a section [new]; add it or write \"old\"";
        reader.problem_at("migration", "state", message);
    }
}

fn times(draft: &Draft, reader: &mut Reader<'_>) {
    let lease = draft.migration.lease;
    for (key, limit) in
        [("max_pause_ms", draft.migration.max_pause), ("mirror_timeout_ms", draft.migration.mirror_timeout)]
    {
        let is_sure = reader.is_sure("migration.lease_ms") && reader.is_sure(&format!("migration.{key}"));
        if is_sure && limit >= lease {
            let message = format!(
                "{} ms is not less than lease_ms ({} ms): a lease would end in the middle; lower it or raise \
                 lease_ms",
                limit.as_millis(),
                lease.as_millis()
            );
            reader.problem_at("migration", key, message);
        }
    }
}
