//! Pools against a server that misbehaves on request.

use std::collections::HashSet;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use bson::{RawDocumentBuf, rawdoc};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::super::command::{Commands, Reply, Request, SendError};
use super::super::pools::Pools;
use super::super::selection::Selection;
use super::super::uri::Settings;
use super::*;
use crate::shutdown::Tasks;
use crate::wire::op_msg::{self, OpMsg};

const LIMIT: Duration = Duration::from_secs(5);

/// A primary that does what the name of a command says.
#[derive(Default)]
struct Fake {
    connections: AtomicI32,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    most_handshakes: AtomicUsize,
    slow_handshakes: AtomicBool,
    mute: AtomicBool,
}

impl Fake {
    async fn start() -> (Arc<Self>, String) {
        let fake = Arc::new(Self::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (server, me) = (fake.clone(), address.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, me) = (server.clone(), me.clone());
                tokio::spawn(async move {
                    server.open.fetch_add(1, Ordering::SeqCst);
                    let _ = server.serve(stream, &me).await;
                    server.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        (fake, address)
    }

    async fn serve(&self, mut stream: TcpStream, me: &str) -> std::io::Result<()> {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        loop {
            let mut message = vec![0; 4];
            stream.read_exact(&mut message).await?;
            let length = i32::from_le_bytes(message[..4].try_into().unwrap());
            message.resize(usize::try_from(length).unwrap(), 0);
            stream.read_exact(&mut message[4..]).await?;
            let parsed = OpMsg::parse(&message).unwrap();
            let id = parsed.header.request_id;
            let body = RawDocumentBuf::from_bytes(message[parsed.body].to_vec()).unwrap();
            let name = body.iter_elements().next().unwrap().unwrap().key().as_str().to_owned();
            let fine = rawdoc! { "connection": number, "ok": 1 };
            let reply = match name.as_str() {
                "isMaster" => self.handshake(me).await,
                "hang" => return std::future::pending().await,
                "close" => return Ok(()),
                "huge" => return stream.write_all(&[0xff, 0xff, 0xff, 0x7f].repeat(4)).await,
                "twice" => [op_msg::build(1, id, 0, fine.as_bytes(), None)].concat().repeat(2),
                "mixup" => op_msg::build(1, id + 1, 0, fine.as_bytes(), None),
                "notPrimary" => {
                    let error = rawdoc! { "ok": 0, "code": 10107, "errmsg": "not primary" };
                    op_msg::build(1, id, 0, error.as_bytes(), None)
                }
                _ => op_msg::build(1, id, 0, fine.as_bytes(), None),
            };
            let reply = if name == "isMaster" { with_response_to(reply, id) } else { reply };
            stream.write_all(&reply).await?;
            if name == "pingAndClose" {
                return Ok(());
            }
        }
    }

    async fn handshake(&self, me: &str) -> Vec<u8> {
        if self.mute.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let now = self.handshakes.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_handshakes.fetch_max(now, Ordering::SeqCst);
        if self.slow_handshakes.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(30)).await;
        }
        self.handshakes.fetch_sub(1, Ordering::SeqCst);
        let hello = rawdoc! {
            "ismaster": true, "setName": "x", "hosts": [me], "me": me, "maxWireVersion": 17, "ok": 1,
        };
        op_msg::build(1, 0, 0, hello.as_bytes(), None)
    }
}

fn with_response_to(mut message: Vec<u8>, id: i32) -> Vec<u8> {
    message[8..12].copy_from_slice(&id.to_le_bytes());
    message
}

struct Setup {
    fake: Arc<Fake>,
    cluster: Arc<Cluster>,
    pools: Arc<Pools>,
    tasks: Tasks,
}

async fn setup(share: usize) -> Setup {
    setup_with(share, "").await
}

async fn setup_with(share: usize, options: &str) -> Setup {
    let (fake, address) = Fake::start().await;
    let settings = Settings::parse(&format!("mongodb://{address}/?{options}")).await.unwrap();
    let tasks = Tasks::default();
    let cluster = Cluster::connect(settings, &tasks).await.unwrap();
    cluster.wait_for(&Selection::Primary, LIMIT).await.unwrap();
    let pools = cluster.pools(share);
    Setup { fake, cluster, pools, tasks }
}

impl Setup {
    async fn run_within(&self, name: &str, limit: Duration) -> Result<Reply, SendError> {
        let mut body = RawDocumentBuf::new();
        body.append(bson::raw::CString::try_from(name).unwrap(), 1);
        self.pools.run(Request::new("admin", body).within(limit)).await
    }

    /// Which connection of the server served it.
    async fn ping(&self) -> i32 {
        self.run_within("ping", LIMIT).await.unwrap().body.get_i32("connection").unwrap()
    }

    async fn take(&self) -> Pooled {
        self.pools.checkout(&Selection::Primary, LIMIT).await.unwrap()
    }

    fn stats(&self) -> PoolStats {
        self.pools.stats()[0].1
    }
}

async fn number(pooled: &mut Pooled) -> i32 {
    let message = op_msg::build(1, 0, 0, rawdoc! { "ping": 1 }.as_bytes(), None);
    let mut reply = BytesMut::new();
    let (head, rest) = message.split_at(20);
    let mut parts = [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(rest)];
    pooled.exchange(&mut parts, &mut reply).await.unwrap();
    let body = OpMsg::parse(&reply).unwrap().body;
    RawDocumentBuf::from_bytes(reply[body].to_vec()).unwrap().get_i32("connection").unwrap()
}

#[tokio::test]
async fn connections_are_bounded_and_waiters_served_in_order() {
    let setup = setup(2).await;
    let (first, second) = (setup.take().await, setup.take().await);
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    for waiter in 0..3 {
        let (pools, served) = (setup.pools.clone(), served.clone());
        tokio::spawn(async move {
            let _pooled = pools.checkout(&Selection::Primary, LIMIT).await.unwrap();
            served.send(waiter).unwrap();
        });
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_millis(20)).await;
    let stats = setup.stats();
    assert_eq!((stats.in_use, stats.waiting, stats.created), (2, 3, 2));
    let error = setup.pools.checkout(&Selection::Primary, Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(&error, SendError::Busy(why) if why.contains("no connection")), "{error}");
    drop(first);
    for waiter in 0..3 {
        assert_eq!(order.recv().await, Some(waiter));
    }
    drop(second);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(setup.stats(), PoolStats { in_use: 0, idle: 2, waiting: 0, created: 2, gave_up: 1 });
}

#[tokio::test]
async fn the_last_used_is_the_next() {
    let setup = setup(5).await;
    let (mut first, mut second) = (setup.take().await, setup.take().await);
    let (first_number, second_number) = (number(&mut first).await, number(&mut second).await);
    drop(second);
    drop(first);
    assert_eq!(setup.ping().await, first_number);
    let _first = setup.take().await;
    assert_eq!(setup.ping().await, second_number);
}

#[tokio::test]
async fn few_are_opened_at_once_and_what_comes_back_is_taken_first() {
    let setup = setup(64).await;
    setup.fake.slow_handshakes.store(true, Ordering::SeqCst);
    let users = (0..64).map(|_| {
        let pools = setup.pools.clone();
        tokio::spawn(
            async move { number(&mut pools.checkout(&Selection::Primary, LIMIT).await.unwrap()).await },
        )
    });
    let mut served = HashSet::new();
    for user in users.collect::<Vec<_>>() {
        served.insert(user.await.unwrap());
    }
    assert!(setup.fake.most_handshakes.load(Ordering::SeqCst) <= 2);
    assert!(served.len() < 10, "{} connections for 64 short pings", served.len());
}

#[tokio::test]
async fn a_given_up_exchange_closes_its_connection() {
    let setup = setup(5).await;
    let before = setup.ping().await;
    let open = setup.fake.open.load(Ordering::SeqCst);
    let result = setup.run_within("hang", Duration::from_millis(50)).await;
    assert!(matches!(&result, Err(SendError::Unknown(why)) if why.contains("no answer")), "{result:?}");
    assert_eq!(setup.stats().idle, 0);
    assert_ne!(setup.ping().await, before);
    assert_eq!(setup.fake.open.load(Ordering::SeqCst), open + 1, "the fake never reads again after `hang`");
}

#[tokio::test]
async fn a_connection_that_died_idle_is_replaced_without_an_error() {
    let setup = setup(5).await;
    let dead = setup.run_within("pingAndClose", LIMIT).await.unwrap().body.get_i32("connection").unwrap();
    sleep(Duration::from_millis(20)).await;
    assert_ne!(setup.ping().await, dead);
    assert_eq!(setup.stats(), PoolStats { in_use: 0, idle: 1, waiting: 0, created: 2, gave_up: 0 });
}

#[tokio::test]
async fn a_connection_that_breaks_in_use_takes_its_generation_with_it() {
    let setup = setup(5).await;
    let (other, last) = (setup.take().await, setup.take().await);
    drop(other);
    drop(last);
    assert_eq!(setup.stats().idle, 2);
    let result = setup.run_within("close", LIMIT).await;
    assert!(matches!(result, Err(SendError::Unknown(_))), "{result:?}");
    // The server is asked again and found well.
    setup.ping().await;
    assert_eq!((setup.stats().idle, setup.stats().created), (1, 3));
}

#[tokio::test]
async fn replies_that_are_none_are_refused() {
    let setup = setup(5).await;
    for name in ["huge", "twice", "mixup"] {
        let before = setup.ping().await;
        let result = setup.run_within(name, LIMIT).await;
        if name != "twice" {
            assert!(matches!(result, Err(SendError::Unknown(_))), "{name}: {result:?}");
        }
        // Whether the second reply came together with the first or later: nobody else reads it.
        sleep(Duration::from_millis(20)).await;
        assert_ne!(setup.ping().await, before, "{name}");
    }
}

#[tokio::test]
async fn not_primary_makes_unknown_and_shutdown_retires_connections() {
    let setup = setup(5).await;
    let first = setup.ping().await;
    let reply = setup.run_within("notPrimary", LIMIT).await.unwrap();
    assert_eq!(reply.error().unwrap().code, 10107);
    // Found again at once; connections stay good when only the role was lost.
    assert_eq!(setup.ping().await, first);
    let server = setup.cluster.topology().servers[0].address.clone();
    setup.cluster.note_reply_error(&server, 11000);
    assert_eq!(setup.ping().await, first);
    setup.cluster.note_reply_error(&server, 91);
    assert!(setup.cluster.topology().primary().is_none());
    assert_ne!(setup.ping().await, first);
}

#[tokio::test]
async fn idle_connections_expire() {
    let setup = setup_with(5, "maxIdleTimeMS=30").await;
    setup.ping().await;
    setup.pools.sweep();
    assert_eq!(setup.stats().idle, 1);
    sleep(Duration::from_millis(40)).await;
    setup.pools.sweep();
    assert_eq!(setup.stats().idle, 0);
}

#[tokio::test]
async fn a_server_that_never_answers_costs_the_limit_and_no_more() {
    let setup = setup_with(5, "connectTimeoutMS=200").await;
    setup.fake.mute.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let limit = Duration::from_millis(600);
    let error = setup.pools.checkout(&Selection::Primary, limit).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(error.to_string().contains("no connection with handshake within 200 ms"), "{error}");
    setup.fake.mute.store(false, Ordering::SeqCst);
    setup.ping().await;
    // Given up by the user before the connection gives up by itself.
    setup.cluster.note_reply_error(&setup.cluster.topology().servers[0].address, 91);
    setup.fake.mute.store(true, Ordering::SeqCst);
    let result = setup.run_within("ping", Duration::from_millis(50)).await;
    assert!(matches!(result, Err(SendError::NotSent(_))), "{result:?}");
    assert!(setup.tasks.stop(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn a_closed_cluster_serves_nobody() {
    let setup = setup(5).await;
    setup.ping().await;
    setup.cluster.close();
    let result = setup.run_within("ping", LIMIT).await;
    assert!(matches!(result, Err(SendError::NotSent(_))), "{result:?}");
    assert!(setup.pools.stats().is_empty());
}

/// Waits for so many connections that nobody uses.
async fn until_idle(pools: &Pools, expected: usize) {
    let idle = || pools.stats().iter().map(|(_, stats)| stats.idle).sum::<usize>();
    tokio::time::timeout(LIMIT, async {
        while idle() != expected {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} are idle, not {expected}", idle()));
}

#[tokio::test]
async fn the_least_connections_are_there_before_anybody_asks_and_again_after_a_failure() {
    let setup = setup_with(1, "maxPoolSize=8&minPoolSize=6").await;
    // Half of all, so half of the least.
    let pools = setup.cluster.warm_pools(4);
    until_idle(&pools, 3).await;
    assert_eq!(setup.pools.stats(), [], "a pool that is not for applications");
    let member = setup.cluster.member(&pools.stats()[0].0).unwrap();
    setup.cluster.note_check_failed(&member, "a test".to_owned());
    tokio::time::timeout(LIMIT, async {
        while pools.stats()[0].1.created < 6 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    setup.tasks.stop(LIMIT).await;
}
