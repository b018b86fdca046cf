//! Connections of clients that outlive a process, each with what was known of it.
//!
//! They wait in a Unix socket (`SCM_RIGHTS`), of which the next program finds the other end: so they take up no number
//! twice, and however many there are, one is told to it. What is known of them is a file without a name (memfd).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Sockets of one message; Linux takes 253.
const AT_ONCE: usize = 250;
/// The bytes before what is known of a client: how many follow.
const LENGTH: usize = 4;

/// A client's connection, which nobody reads from now.
#[derive(Debug)]
pub struct Kept {
    /// The socket.
    pub socket: OwnedFd,
    /// What is known of it, for whoever goes on with it.
    pub known: Vec<u8>,
}

/// Packs `clients`; the end that the next program unpacks. Those that do not fit are closed: tens of thousands do.
pub(super) fn pack(clients: Vec<Kept>) -> io::Result<OwnedFd> {
    let (here, there) = UnixStream::pair()?;
    // Nobody reads while this process waits.
    here.set_nonblocking(true)?;
    // As much as the system allows.
    set_socket_send_buffer_size(&here, 64 << 20)?;
    let mut file = File::from(memfd_create("clients", MemfdFlags::CLOEXEC)?);
    let (mut sockets, mut known) = (Vec::with_capacity(clients.len()), Vec::new());
    for client in clients {
        let length = u32::try_from(client.known.len()).map_err(io::Error::other)?;
        known.extend_from_slice(&length.to_le_bytes());
        known.extend_from_slice(&client.known);
        sockets.push(client.socket);
    }
    file.write_all(&known)?;
    send(&here, &[file.as_fd()])?;
    for (number, some) in sockets.chunks(AT_ONCE).enumerate() {
        if let Err(error) = send(&here, &some.iter().map(AsFd::as_fd).collect::<Vec<_>>()) {
            let closed = sockets.len() - number * AT_ONCE;
            tracing::warn!(%error, closed, "clients are closed: no more can be handed over");
            break;
        }
    }
    Ok(there.into())
}

/// What was packed.
pub(super) fn unpack(parcel: OwnedFd) -> io::Result<Vec<Kept>> {
    let parcel = UnixStream::from(parcel);
    let mut received = Vec::new();
    while receive(&parcel, &mut received)? {}
    let mut received = received.into_iter();
    let mut file = File::from(received.next().ok_or_else(|| io::Error::other("nothing is in it"))?);
    let mut known = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut known)?;
    let mut left = known.as_slice();
    let mut kept = Vec::with_capacity(received.len());
    for socket in received {
        let one = take_one(&mut left).ok_or_else(|| io::Error::other("of some nothing is known"))?;
        kept.push(Kept { socket, known: one.to_vec() });
    }
    Ok(kept)
}

fn take_one<'a>(left: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = left.split_first_chunk::<LENGTH>()?;
    let (one, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    *left = rest;
    Some(one)
}

fn send(socket: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many sockets at once"));
    }
    // A message of no bytes carries nothing.
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; `false`: there is none any more, or only a part of it can be had.
fn receive(socket: &UnixStream, files: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            files.extend(some);
        }
    }
    // What comes after a part would be taken for something else.
    Ok(received.bytes > 0 && !received.flags.contains(ReturnFlags::CTRUNC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_clients_come_out_as_they_were_packed() {
        let mut others = Vec::new();
        let mut client = |number: u32| {
            let (here, there) = UnixStream::pair().unwrap();
            others.push(there);
            Kept { socket: here.into(), known: number.to_string().into_bytes() }
        };
        let packed = pack((0..400).map(&mut client).collect()).unwrap();
        let unpacked = unpack(packed).unwrap();
        assert_eq!(unpacked.len(), 400);
        for (number, (client, other)) in unpacked.into_iter().zip(&mut others).enumerate() {
            assert_eq!(client.known, number.to_string().into_bytes());
            UnixStream::from(client.socket).write_all(&[number.to_le_bytes()[0]]).unwrap();
            let mut byte = [0];
            other.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], number.to_le_bytes()[0]);
        }
        assert!(unpack(pack(Vec::new()).unwrap()).unwrap().is_empty());
    }
}
