//! The sockets that a process listens on, and the clients that it finds connected.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::net::TcpListener;

use super::StartError;
use crate::handover::Handed;
use crate::listener::{self, Listener, Settings as ListenerSettings, Workers};

/// Binds all listeners; each socket comes with the name of its listener.
pub(super) fn bind_all(
    settings: &ListenerSettings,
    handed: &mut Handed,
) -> Result<Vec<(String, Listener)>, StartError> {
    let process = bson::oid::ObjectId::new();
    let mut all = Vec::new();
    for entrance in &settings.entrances {
        let section = match entrance.name.as_str() {
            "listen" => "listen".to_owned(),
            extra => format!("listeners.{extra}"),
        };
        let bound = listener::bind(entrance, process, handed);
        for socket in bound.map_err(|error| StartError::Address { section, error })? {
            let (address, face) = (socket.address(), entrance.face.name());
            tracing::info!(listener = entrance.name, %address, face, "listening");
            all.push((entrance.name.clone(), socket));
        }
    }
    if all.is_empty() {
        return Err(std::io::Error::other("there is no address to listen on").into());
    }
    Ok(all)
}

/// Goes on with the clients of the process before this one.
pub(super) fn go_on_with(handed: &mut Handed, entrances: &[(String, Listener)], workers: &Workers) {
    let clients = handed.take_clients().unwrap_or_else(|error| {
        tracing::warn!(%error, "clients of the process before are lost");
        Vec::new()
    });
    let came = clients.len();
    let listeners: Vec<&Listener> = entrances.iter().map(|(_, listener)| listener).collect();
    let taken_on = listener::take_on(clients, &listeners, workers);
    if came > 0 {
        tracing::info!(
            clients = taken_on,
            closed = came - taken_on,
            "going on with clients of the process before"
        );
    }
}

/// Binds the socket of the admin API.
pub(super) fn bind_admin(address: SocketAddr, handed: &mut Handed) -> Result<TcpListener, StartError> {
    let named = |error: std::io::Error| StartError::Address {
        section: "admin".to_owned(),
        error: std::io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")),
    };
    let bind = || {
        let socket = std::net::TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    handed.take(address).map_or_else(bind, Ok).and_then(TcpListener::from_std).map_err(named)
}

/// All sockets once more: clients can connect as long as these are open.
pub(super) fn keep(
    entrances: &[(String, Listener)],
    admin: Option<&TcpListener>,
) -> std::io::Result<Vec<OwnedFd>> {
    let admin = admin.map(|admin| admin.as_fd().try_clone_to_owned());
    entrances.iter().map(|(_, listener)| listener.keep()).chain(admin).collect()
}
