//! What must hold between keys.

use std::net::SocketAddr;

use super::reader::Reader;
use super::{Config, StateHome};

/// Notes every contradiction of `config`, whose keys are valid by themselves.
pub(super) fn together(config: &Config, reader: &mut Reader<'_>) {
    addresses(config, reader);
    clusters(config, reader);
    times(config, reader);
}

fn addresses(config: &Config, reader: &mut Reader<'_>) {
    let (listen, admin) = (config.listen.address, config.admin.address);
    if !admin.ip().is_loopback() {
        let message = format!(
            "{admin} can be reached from other machines. Until authentication exists the admin port refuses \
             to listen beyond loopback; write \"127.0.0.1:{}\"",
            admin.port()
        );
        reader.problem_at("admin", "address", message);
    }
    if !listen.ip().is_loopback() && !config.listen.allow_insecure {
        let message = format!(
            "{listen} can be reached from other machines without encryption; write \"127.0.0.1:{}\", or add \
             allow_insecure = true below [listen] if the network is trusted",
            listen.port()
        );
        reader.problem_at("listen", "address", message);
    }
    if clash(listen, admin) {
        let message = format!("port {} is already that of listen.address; choose another", admin.port());
        reader.problem_at("admin", "address", message);
    }
}

fn clash(listen: SocketAddr, admin: SocketAddr) -> bool {
    let same_ip = listen.ip() == admin.ip() || listen.ip().is_unspecified() || admin.ip().is_unspecified();
    // Port 0 asks the system for a free one.
    same_ip && listen.port() == admin.port() && listen.port() != 0
}

fn clusters(config: &Config, reader: &mut Reader<'_>) {
    let itself = config.listen.address.to_string();
    let sides = [("old", Some(&config.old)), ("new", config.new.as_ref())];
    for (name, side) in sides.into_iter().filter_map(|(name, side)| side.map(|side| (name, side))) {
        if side.uri.hosts().iter().any(|host| host.replace("localhost", "127.0.0.1") == itself) {
            let message = format!("{itself} is listen.address: reshard would connect to itself");
            reader.problem_at(name, "uri", message);
        }
    }
    match &config.new {
        Some(new) => {
            if let Some(shared) = new.uri.hosts().iter().find(|host| config.old.uri.hosts().contains(host)) {
                let message = format!(
                    "{shared} is a server of old too; new must be another cluster (leave [new] out for a \
                     plain proxy)"
                );
                reader.problem_at("new", "uri", message);
            }
        }
        None if config.migration.state == StateHome::New => {
            let message = "\"new\" needs a section [new]; add it or write \"old\"";
            reader.problem_at("migration", "state", message);
        }
        None => {}
    }
}

fn times(config: &Config, reader: &mut Reader<'_>) {
    let lease = config.migration.lease;
    for (key, limit) in
        [("max_pause_ms", config.migration.max_pause), ("mirror_timeout_ms", config.migration.mirror_timeout)]
    {
        if limit >= lease {
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
