//! What must hold between keys, wherever the values that it takes are good by themselves.

use std::net::SocketAddr;

use super::StateHome;
use super::reader::Reader;
use super::sections::Draft;

/// Notes every contradiction.
pub(super) fn together(draft: &Draft, reader: &mut Reader<'_>) {
    addresses(draft, reader);
    clusters(draft, reader);
    times(draft, reader);
}

fn addresses(draft: &Draft, reader: &mut Reader<'_>) {
    let listen = draft.listen.as_ref().map(|listen| (listen.address, listen.allow_insecure));
    let admin = draft.admin.as_ref().map(|admin| admin.address);
    if let Some(admin) = admin.filter(|admin| !admin.ip().is_loopback()) {
        let message = format!(
            "{admin} can be reached from other machines. Until authentication exists the admin port refuses \
             to listen beyond loopback; write \"127.0.0.1:{}\"",
            admin.port()
        );
        reader.problem_at("admin", "address", message);
    }
    if let Some((listen, false)) = listen
        && !listen.ip().is_loopback()
        && reader.is_sure("listen.allow_insecure")
    {
        let message = format!(
            "{listen} can be reached from other machines without encryption; write \"127.0.0.1:{}\", or add \
             allow_insecure = true below [listen] if the network is trusted",
            listen.port()
        );
        reader.problem_at("listen", "address", message);
    }
    if let (Some((listen, _)), Some(admin)) = (listen, admin)
        && clash(listen, admin)
    {
        let message = format!("port {} is already that of listen.address; choose another", admin.port());
        reader.problem_at("admin", "address", message);
    }
}

fn clash(listen: SocketAddr, admin: SocketAddr) -> bool {
    let same_ip = listen.ip() == admin.ip() || listen.ip().is_unspecified() || admin.ip().is_unspecified();
    // Port 0 asks the system for a free one.
    same_ip && listen.port() == admin.port() && listen.port() != 0
}

fn clusters(draft: &Draft, reader: &mut Reader<'_>) {
    let itself = draft.listen.as_ref().map(|listen| listen.address.to_string());
    for (name, side) in [("old", &draft.old), ("new", &draft.new)] {
        if let (Some(side), Some(itself)) = (side, &itself)
            && side.uri.hosts().iter().any(|host| host.replace("localhost", "127.0.0.1") == *itself)
        {
            let message = format!("{itself} is listen.address: reshard would connect to itself");
            reader.problem_at(name, "uri", message);
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
