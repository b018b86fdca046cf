use super::*;
use bson::oid::ObjectId;
use bson::{Document, RawDocument, rawdoc};
use rustix::io::ioctl_fionread;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::clock::SystemClock;
use crate::handover::Handed;
use crate::listener::{Entrance, Listener, bind, take_on};
use crate::model::capabilities::Capabilities;
use crate::router::{AlwaysOld, Shared};
use crate::wire::op_msg::{OpMsg, build};

const LONG: Duration = Duration::from_secs(60);

/// What the edge of a process needs, with a door that stays the same whoever stands behind it.
struct Edge {
    settings: Settings,
    listener: Listener,
}

impl Edge {
    fn new() -> Self {
        let mut settings = Settings::new(([127, 0, 0, 1], 0).into());
        settings.workers = std::num::NonZeroUsize::MIN;
        settings.drain = LONG;
        settings.farewell = Duration::ZERO;
        let entrance: &Entrance = &settings.entrances[0];
        let listener = bind(entrance, ObjectId::new(), &mut Handed::default()).unwrap().remove(0);
        Self { settings, listener }
    }

    /// One process, whose clients are told of `capabilities`.
    fn process(&self, capabilities: &Arc<SharedCapabilities>) -> Arc<Workers> {
        let shared = Shared::new(Arc::new(SystemClock));
        let build: BuildRouter =
            Arc::new(move |_| Router::new(shared.clone(), [None, None], Arc::new(AlwaysOld)));
        Arc::new(Workers::start(&self.settings, capabilities, &build).unwrap())
    }

    /// The same, where they are known.
    fn process_of(&self, capabilities: Capabilities) -> Arc<Workers> {
        self.process(&Arc::new(SharedCapabilities::new_with(Some(capabilities))))
    }

    /// A client of `workers`, and its socket as they see it.
    fn client(&self, workers: &Workers) -> (TcpStream, StdStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let seen = stream.try_clone().unwrap();
        workers.hand_over(0, stream, self.listener.door());
        (TcpStream::from_std(client).unwrap(), seen)
    }

    /// Goes on with what another process has left.
    fn take_on(&self, kept: Vec<Kept>, workers: &Workers) {
        let came = kept.len();
        assert_eq!(take_on(kept, &[&self.listener], workers), came);
    }
}

fn hello(number: i32) -> Vec<u8> {
    build(number, 0, 0, rawdoc! { "hello": 1, "$db": "admin" }.as_bytes(), None)
}

/// What the next reply answers to, and what it says; `None`: the connection was closed.
async fn reply(client: &mut TcpStream) -> Option<(i32, Document)> {
    let reading = async {
        let mut bytes = vec![0; 4];
        client.read_exact(&mut bytes).await.ok()?;
        let length = u32::from_le_bytes(bytes[..].try_into().unwrap());
        bytes.resize(length.try_into().unwrap(), 0);
        client.read_exact(&mut bytes[4..]).await.ok()?;
        let parts = OpMsg::parse(&bytes).unwrap();
        let body = RawDocument::from_bytes(&bytes[parts.body]).unwrap();
        Some((parts.header.response_to, Document::try_from(body).unwrap()))
    };
    tokio::time::timeout(LONG, reading).await.expect("neither a reply nor the end")
}

async fn ask(client: &mut TcpStream, message: &[u8]) -> Option<(i32, Document)> {
    client.write_all(message).await.ok()?;
    reply(client).await
}

async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect(what);
}

#[tokio::test]
async fn a_message_that_has_begun_when_the_drain_does_is_answered() {
    let edge = Edge::new();
    let capabilities = Arc::new(SharedCapabilities::new());
    let workers = edge.process(&capabilities);
    let (mut client, seen) = edge.client(&workers);
    // The first is under way, as nobody knows yet what to answer; of the second there is a half.
    let (first, second) = (hello(1), hello(2));
    client.write_all(&[&first[..], &second[..20]].concat()).await.unwrap();
    wait_until("a session that reads", || ioctl_fionread(&seen).unwrap() == 0).await;
    // Else it would stay open.
    drop(seen);
    let drain = workers.stop.ending.drain.clone();
    let stopping = tokio::spawn(workers.stop(Duration::MAX));
    drain.cancelled().await;
    capabilities.set(Capabilities::OF_6_0).unwrap();
    assert_eq!(reply(&mut client).await.unwrap().0, 1);
    assert_eq!(ask(&mut client, &second[20..]).await.expect("it was cut off").0, 2);
    // What begins only now is not.
    assert!(ask(&mut client, &hello(3)).await.is_none(), "it is still served");
    assert!(stopping.await.unwrap(), "not in time");
}

#[tokio::test]
async fn what_a_client_was_told_outlives_more_than_one_process() {
    let edge = Edge::new();
    let less = Capabilities::OF_6_0;
    let more = Capabilities { max_wire_version: 21, ..less };
    let first = edge.process_of(less);
    let (mut quiet, _) = edge.client(&first);
    let (mut asks, _) = edge.client(&first);
    for client in [&mut quiet, &mut asks] {
        assert_eq!(ask(client, &hello(1)).await.unwrap().1.get_i32("maxWireVersion").unwrap(), 17);
    }
    let second = edge.process_of(more);
    edge.take_on(first.leave_clients(LONG).await, &second);
    assert_eq!(ask(&mut asks, &hello(2)).await.unwrap().1.get_i32("maxWireVersion").unwrap(), 21);
    let third = edge.process_of(less);
    edge.take_on(second.leave_clients(LONG).await, &third);
    // Nobody has told this one of more than there is.
    assert!(ask(&mut quiet, &hello(3)).await.is_some(), "it was forgotten what it was told");
    assert!(reply(&mut asks).await.is_none(), "it was told of more");
    third.stop(LONG).await;
}

#[tokio::test]
async fn who_is_not_known_to_fit_yet_is_left_to_the_process_after() {
    let edge = Edge::new();
    let first = edge.process_of(Capabilities::OF_6_0);
    let (mut client, _) = edge.client(&first);
    assert!(ask(&mut client, &hello(1)).await.is_some());
    // It ends before a cluster has answered.
    let second = edge.process(&Arc::new(SharedCapabilities::new()));
    edge.take_on(first.leave_clients(LONG).await, &second);
    let kept = second.leave_clients(LONG).await;
    assert_eq!(kept.len(), 1, "it was closed");
    let older = Capabilities { max_wire_version: 13, ..Capabilities::OF_6_0 };
    let third = edge.process_of(older);
    edge.take_on(kept, &third);
    assert!(reply(&mut client).await.is_none(), "it was forgotten what it was told");
    third.stop(LONG).await;
}
